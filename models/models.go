// Package models says what a module is: a part of a pipeline that has weights, and so is shared instead of copied.
//
// A module is described once, by its [Spec], and rebuilt elsewhere from a [Source] by the constructor that its kind
// registered. Nothing here knows where the weights lie: a Source gives views, on the heap or in a shared segment alike.
package models

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Module is a part of a pipeline with weights. Implementations are pointers; the same pointer met twice in a pipeline
// is stored once and restored as one.
type Module interface {
	// Spec describes the module as it is to be stored. The views in it stay valid as long as the module does.
	Spec() Spec
}

// Spec is a module as plain data.
type Spec struct {
	Kind     string  // the registered kind: "nn.Linear", "bert"
	Config   any     // encodes to a JSON object, with the checkpoint's own key names; nil is {}
	Params   []Param // the module's own tensors
	Children []Child // modules inside it, in order
	Values   []Value // bytes that every process copies: a tokenizer's file
}

// Param is one tensor of a module. Two params on the same memory are a tie, and stored once.
type Param struct {
	Name   string // as in the state dict, without the module's own path: "weight", "encoder.layer.0.output.dense.weight"
	Tensor tensor.View
	Role   tensor.Role
}

// Child is a module inside another.
type Child struct {
	Name   string // "0", "1" in a Sequential
	Module Module
}

// Value is a named run of bytes of a module.
type Value struct {
	Name      string
	MediaType string // "application/json", "application/octet-stream"
	Data      []byte
}

// Source is a stored module as its constructor sees it. It is valid only during the constructor; the views it gives
// live as long as the mapping behind it.
type Source interface {
	// Path is where the module stands in its pipeline, for errors: `Encoder.0`.
	Path() string
	// Config decodes the stored config into a pointer.
	Config(into any) error
	// Has reports whether a tensor of this name is stored.
	Has(name string) bool
	// Names lists the stored tensors of this module, sorted.
	Names() []string
	// Tensor is the tensor of that name and its role. The error is typed and names path, shape wanted and shape stored;
	// want nil takes any shape, a dimension of -1 takes any size.
	Tensor(name string, want tensor.Shape) (tensor.View, tensor.Role, error)
	// Child builds the module of that name, once: a child used twice is the same pointer.
	Child(name string) (Module, error)
	// Value is the bytes of that name. As views they live as long as the mapping behind them.
	Value(name string) ([]byte, bool)
	// ChildNames lists the children in stored order.
	ChildNames() []string
	// Device is where the weights are to be used.
	Device() gpu.Device
}

// TableSource is a Source that may have compiled tokenizers beside their files.
type TableSource interface {
	// Tables is what the value of that name was compiled to, for tokenizer.Open: it lives as long as the mapping behind it. It is
	// nil where there is only the value.
	Tables(name string) ([]byte, error)
}

// Constructor rebuilds a module of one kind.
type Constructor func(Source) (Module, error)

var (
	mu    sync.RWMutex
	kinds = map[string]Constructor{} // guarded by mu
)

// Register makes a kind known. It is called from init functions; a kind registered twice is a bug and panics.
func Register(kind string, c Constructor) {
	mu.Lock()
	defer mu.Unlock()
	if _, dup := kinds[kind]; dup {
		panic("models: kind " + kind + " registered twice")
	}
	kinds[kind] = c
}

// Kinds lists what is registered, sorted.
func Kinds() []string {
	mu.RLock()
	defer mu.RUnlock()
	names := make([]string, 0, len(kinds))
	for k := range kinds {
		names = append(names, k)
	}
	sort.Strings(names)
	return names
}

// UnknownKindError says that no constructor is registered for a stored kind.
type UnknownKindError struct{ Kind, Path string }

func (e *UnknownKindError) Error() string {
	return fmt.Sprintf("module %s is of kind %q, which this program does not know (known: %s); import the package that registers it",
		e.Path, e.Kind, strings.Join(Kinds(), " "))
}

// ErrorKind is the kind of zcerr.Unsupported.
func (e *UnknownKindError) ErrorKind() string { return "unsupported" }

// BuildError says which module could not be rebuilt from what is stored, and why.
type BuildError struct {
	Path, Kind string
	Err        error
}

func (e *BuildError) Error() string { return fmt.Sprintf("%s (%s): %v", e.Path, e.Kind, e.Err) }

func (e *BuildError) Unwrap() error { return e.Err }

// ErrorKind is the kind of zcerr.Unsupported for what no backend or architecture computes, else of zcerr.Invalid.
func (e *BuildError) ErrorKind() string {
	if errors.Is(e.Err, gpu.ErrUnsupported) {
		return "unsupported"
	}
	return "invalid"
}

// Build calls the constructor of the kind. Its errors have a kind (see proto/zcerr).
func Build(kind string, s Source) (Module, error) {
	mu.RLock()
	c := kinds[kind]
	mu.RUnlock()
	if c == nil {
		return nil, &UnknownKindError{Kind: kind, Path: s.Path()}
	}
	m, err := c(s)
	if err != nil {
		var named interface{ ErrorKind() string }
		if !errors.As(err, &named) {
			err = &BuildError{Path: s.Path(), Kind: kind, Err: err}
		}
		return nil, err
	}
	return m, nil
}
