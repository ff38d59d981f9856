// Package arch is the table of architectures: what the model_type of a config.json stands for. A new one is a line here.
package arch

import (
	"sort"

	"github.com/zcstore/zcstore/models/bert"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Arch is one architecture.
type Arch struct {
	Kind  string                        // the registered module kind
	Roles func(name string) tensor.Role // how it uses the tensor of that name
}

var table = map[string]Arch{
	"bert": {Kind: bert.Kind, Roles: bert.Roles},
}

// Find is the architecture of a model_type.
func Find(modelType string) (Arch, bool) {
	a, ok := table[modelType]
	return a, ok
}

// Types lists the model types, sorted.
func Types() []string {
	var out []string
	for t := range table {
		out = append(out, t)
	}
	sort.Strings(out)
	return out
}
