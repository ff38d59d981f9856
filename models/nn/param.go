package nn

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/shm/tensor"
)

// param is a tensor of a layer: on the host, to be stored, and on the device, to compute.
type param struct {
	name  string
	shape tensor.Shape
	role  tensor.Role
	view  tensor.View
	w     *gpu.Weight
}

func (p *param) spec() models.Param { return models.Param{Name: p.name, Tensor: p.view, Role: p.role} }

func specs(params []*param) []models.Param {
	out := make([]models.Param, len(params))
	for i, p := range params {
		out[i] = p.spec()
	}
	return out
}

// load fills the params from a stored module. Views are used in place.
func load(src models.Source, dev gpu.Device, params []*param) error {
	for _, p := range params {
		v, role, err := src.Tensor(p.name, p.shape)
		if err != nil {
			return err
		}
		if p.role, err = roleOf(p, role); err != nil {
			return fmt.Errorf("%s.%s: %w", src.Path(), p.name, err)
		}
		p.view = v
		if p.w, err = dev.Import(v, p.role); err != nil {
			return fmt.Errorf("%s.%s: %w", src.Path(), p.name, err)
		}
	}
	return nil
}

// roleOf joins the stored role with the use here: a tied embedding is both.
func roleOf(p *param, stored tensor.Role) (tensor.Role, error) {
	r, ok := p.role.Merge(stored)
	if !ok || (p.role == tensor.Other && r != tensor.Other) {
		return 0, fmt.Errorf("is stored as %v, used as %v", stored, p.role)
	}
	return r, nil
}

// stateful is a layer with tensors of its own, which LoadStateDict fills.
type stateful interface {
	params() []*param
	device() gpu.Device
	ready() error // after params changed
}

// StateError says how named tensors and a module differ.
type StateError struct {
	Missing    []string // the module has them, the tensors do not
	Unexpected []string // the other way round; only where all names are known
	Wrong      []error  // shapes and dtypes that do not fit, each with the name
}

func (e *StateError) Error() string {
	var parts []string
	if len(e.Missing) > 0 {
		parts = append(parts, "missing tensors: "+some(e.Missing))
	}
	if len(e.Unexpected) > 0 {
		parts = append(parts, "unexpected tensors: "+some(e.Unexpected))
	}
	for i, w := range e.Wrong {
		if i == shown {
			parts = append(parts, fmt.Sprintf("and %d more", len(e.Wrong)-shown))
			break
		}
		parts = append(parts, w.Error())
	}
	return strings.Join(parts, "; ")
}

// shown is how many names of a kind an error spells out; a wrong config makes all of them wrong.
const shown = 5

func some(names []string) string {
	if len(names) <= shown {
		return strings.Join(names, " ")
	}
	return strings.Join(names[:shown], " ") + fmt.Sprintf(" and %d more", len(names)-shown)
}

// Unwrap gives the errors of tensors that do not fit.
func (e *StateError) Unwrap() []error { return e.Wrong }

// LoadStateDict fills a module from tensors that find knows by their names in a PyTorch state dict, each with the prefix
// in front: with prefix "encoder." the first layer of a Sequential takes "encoder.0.weight". The tensors are used in
// place and have to live as long as the module. Names, if given, are all the tensors there are: those under the prefix
// that the module has no use for are reported. The error is a [*StateError], and then the module is as it was.
// Call it before the module is shared.
func LoadStateDict(m models.Module, prefix string, find func(name string) (tensor.View, bool), names ...string) error {
	type slot struct {
		p    *param
		name string
		of   stateful
		view tensor.View
		w    *gpu.Weight
	}
	var slots []slot
	var layers []stateful
	var walk func(m models.Module, prefix string)
	seen := map[models.Module]bool{}
	walk = func(m models.Module, prefix string) {
		if seen[m] {
			return
		}
		seen[m] = true
		if s, ok := m.(stateful); ok {
			layers = append(layers, s)
			for _, p := range s.params() {
				slots = append(slots, slot{p: p, name: prefix + p.name, of: s})
			}
		}
		for _, c := range m.Spec().Children {
			walk(c.Module, prefix+c.Name+".")
		}
	}
	walk(m, prefix)

	e := &StateError{}
	known := map[string]bool{}
	for i := range slots {
		s := &slots[i]
		known[s.name] = true
		v, ok := find(s.name)
		if !ok {
			e.Missing = append(e.Missing, s.name)
			continue
		}
		if !v.Shape.Equal(s.p.shape) {
			e.Wrong = append(e.Wrong, &gpu.OpError{Op: "load " + s.name, Kind: gpu.ErrShape, Reason: "the module has another shape",
				Operands: []gpu.Operand{{Name: "module", Shape: s.p.shape}, {Name: "tensor", Shape: v.Shape, DType: v.DType}}})
			continue
		}
		w, err := s.of.device().Import(v, s.p.role)
		if err != nil {
			e.Wrong = append(e.Wrong, fmt.Errorf("load %s: %w", s.name, err))
			continue
		}
		s.view, s.w = v, w
	}
	for _, n := range names {
		if strings.HasPrefix(n, prefix) && !known[n] {
			e.Unexpected = append(e.Unexpected, n)
		}
	}
	sort.Strings(e.Unexpected)
	if len(e.Missing)+len(e.Unexpected)+len(e.Wrong) > 0 {
		return e
	}
	for _, s := range slots {
		s.p.view, s.p.w = s.view, s.w
	}
	var errs []error
	for _, l := range layers {
		errs = append(errs, l.ready())
	}
	return errors.Join(errs...)
}

// Option changes how a layer is made.
type Option func(*options)

type options struct {
	seed   uint64
	seeded bool
	noBias bool
	dev    gpu.Device
}

// Seed makes the initial values of a layer repeatable. They are drawn as PyTorch draws them, but are not the same.
func Seed(n uint64) Option { return func(o *options) { o.seed, o.seeded = n, true } }

// NoBias leaves the bias out.
func NoBias() Option { return func(o *options) { o.noBias = true } }

// On puts the weights on a device other than [Default].
func On(dev gpu.Device) Option { return func(o *options) { o.dev = dev } }

func optionsOf(opts []Option) *options {
	o := &options{}
	for _, f := range opts {
		f(o)
	}
	if o.dev == nil {
		o.dev = Default()
	}
	if !o.seeded {
		o.seed = rand.Uint64()
	}
	return o
}

// init gives params values and puts them on the device.
func (p *param) init(dev gpu.Device, value func() float32) error {
	n, ok := p.shape.Elements()
	if !ok || n > 1<<32 { // what is larger is loaded, not made
		return shapeError("nn", p.shape, "no such %s can be made", p.name)
	}
	vals := make([]float32, n)
	for i := range vals {
		vals[i] = value()
	}
	var err error
	if p.view, err = tensor.FromFloat32s(p.shape, vals); err != nil {
		return err
	}
	p.w, err = dev.Import(p.view, p.role)
	return err
}

func (o *options) rand() *rand.Rand { return rand.New(rand.NewPCG(o.seed, 0x7a63)) }
