// Package arch is the table of architectures: what the model_type of a config.json stands for. A new one is a line here.
package arch

import (
	"sort"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Arch is one architecture.
type Arch struct {
	Kind  string                        // the registered module kind
	Roles func(name string) tensor.Role // how it uses the tensor of that name
	Sizes func(config []byte) (Sizes, error)
}

// Sizes is what an importer asks of a config.json that was checked.
type Sizes struct {
	Vocab     int
	MaxTokens int // of one text
}

var table = map[string]Arch{}

func init() {
	for _, f := range encoder.Families() {
		table[f] = Arch{Kind: f, Roles: encoder.Roles, Sizes: encoderSizes}
	}
}

func encoderSizes(config []byte) (Sizes, error) {
	c, err := encoder.ParseConfig(config)
	if err != nil {
		return Sizes{}, err
	}
	return Sizes{c.Sizes().Vocab, c.Sizes().MaxTokens}, nil
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
