// Package derive makes of stored bytes what workers use in place: weights in the order that kernels read them in, and the
// tables of tokenizers. What is made depends on the source and on the recipe alone, so that it may be dropped and made again at
// any time, and processes share it as they share the source.
//
// Recipes are pure and bounded: they read their source and nothing else, write what they said they would, and need little
// memory beside that. They know no architecture; what a tensor is used for says its role, and what a value is says its name.
package derive

import (
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Form is how a client wants what a version holds.
type Form string

// The forms. Plain is as stored and derives nothing. Tables is what the version's tokenizers are compiled to; it goes with
// any of the others, which are forms of weights.
const (
	Plain  Form = "plain"
	Packed Form = "packed"
	BF16   Form = "bf16"
	Int8   Form = "int8"
	Tables Form = "tokenizer"
)

// Weights are the forms of weights that a client can ask for.
var Weights = []Form{Plain, Packed, BF16, Int8}

// Parse is the form of weights of that name. Errors: Invalid.
func Parse(name string) (Form, error) {
	if f := Form(name); slices.Contains(Weights, f) {
		return f, nil
	}
	var names []string
	for _, f := range Weights {
		names = append(names, string(f))
	}
	return "", zcerr.New(zcerr.Invalid, "there is no form %q", name).WithHint("use one of %s", strings.Join(names, ", "))
}

// recipe is what a form is made by. The version changes when the same source would give other bytes.
type recipe struct {
	name    string
	version int
	tensors bool // of tensors; else of values
	make    func(Source, []byte) (Made, error)
}

var recipes = map[Form]recipe{
	Packed: packed(pack.F32),
	BF16:   packed(pack.BF16),
	Int8:   packed(pack.Int8),
	Tables: {name: "tokenizer", version: tokenizer.CompiledVersion, make: compile},
}

func packed(f pack.Form) recipe {
	return recipe{f.String(), f.Version(), true, func(s Source, b []byte) (Made, error) { return packWeight(f, s, b) }}
}

// Derived reports whether the form is made of others; plain is not.
func (f Form) Derived() bool { return recipes[f].name != "" }

// Recipe names what makes the form, with its version: "p16-f32.1". What another one made is of no use.
func (f Form) Recipe() string { return fmt.Sprintf("%s.%d", recipes[f].name, recipes[f].version) }

// Layout is the recipe in two parts, as a device wants to know it.
func (f Form) Layout() (name string, version int) { return recipes[f].name, recipes[f].version }

// Source is what something is made of.
type Source struct {
	Name   string // for errors
	SHA256 [32]byte

	// Of a tensor; the zero values for a value.
	DType tensor.DType
	Shape tensor.Shape
	Role  tensor.Role
}

// Key names what the form makes of the source: the same key is the same bytes.
func (f Form) Key(s Source) string {
	key := f.Recipe() + "/" + hex.EncodeToString(s.SHA256[:])
	if recipes[f].tensors { // the same bytes may be weights of different sizes
		key += fmt.Sprintf("/%v/%v/%v", s.DType, s.Role, s.Shape)
	}
	return key
}

// Name is by what name a worker finds what was made of tensor row index of a version, or of the value that is this node of
// its tree. It comes after any key.
func Name(index int) string { return "~" + strconv.Itoa(index) }

// OfTensor reports whether the form makes something of a tensor: of weights that are multiplied. What is not made of other
// tensors they are used as they are, with no question asked; one that is multiplied and cannot be made is an error of Make.
func (f Form) OfTensor(r tensor.Role, shape tensor.Shape) bool {
	n, _ := shape.Elements()
	return recipes[f].tensors && n > 0 && (r == tensor.Linear || r == tensor.LinearT || r == tensor.LookupLinear)
}

// TokenizerName is what a module calls the value that is its tokenizer.
const TokenizerName = "tokenizer.json"

// OfValue reports whether the form makes something of a module's value of that name.
func (f Form) OfValue(name string) bool { return f == Tables && name == TokenizerName }

// Made is a tensor that was made. Its bytes come from the reader, in order, just as many as dtype and shape ask for.
type Made struct {
	DType tensor.DType
	Shape tensor.Shape
	io.Reader
}

// Scratch is how many bytes of private memory Make may take for a source of so many bytes, besides a few buffers.
func (f Form) Scratch(size int) uint64 {
	if f != Tables || size > maxTokenizerBytes { // which is refused
		return 0
	}
	return compileFactor * uint64(size)
}

// Make makes the form of a source, whose bytes stay as they are until all were read. Errors: Unsupported and Invalid, with what
// is wrong with the source; those of the reader, too. A panic is a bug of a recipe, and whoever must go on catches it.
func (f Form) Make(s Source, data []byte) (Made, error) {
	r, ok := recipes[f]
	if !ok {
		return Made{}, zcerr.New(zcerr.Invalid, "nothing is made for the form %q", f)
	}
	return r.make(s, data)
}

// refuse says that a source has no such form, and will never have it.
func refuse(s Source, why error, remedy string) error {
	return zcerr.New(zcerr.Unsupported, "%s: %w", s.Name, why).WithHint("%s", remedy)
}
