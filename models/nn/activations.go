package nn

import (
	"fmt"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/shm/tensor"
)

func init() {
	models.Register("nn.ReLU", func(models.Source) (models.Module, error) { return NewReLU(), nil })
	models.Register("nn.SiLU", func(models.Source) (models.Module, error) { return NewSiLU(), nil })
	models.Register("nn.Tanh", func(models.Source) (models.Module, error) { return NewTanh(), nil })
	models.Register("nn.Sigmoid", func(models.Source) (models.Module, error) { return NewSigmoid(), nil })
	models.Register("nn.Identity", func(models.Source) (models.Module, error) { return NewIdentity(), nil })
	models.Register("nn.GELU", loadConfig(func() *GELU { return &GELU{} }, func(g *GELU) error { return g.err() }))
	models.Register("nn.Softmax", loadConfig(NewSoftmax, func(*Softmax) error { return nil }))
	models.Register("nn.Dropout", loadConfig(func() *Dropout { return &Dropout{} }, func(*Dropout) error { return nil }))
}

// loadConfig is the constructor of a layer that is its config.
func loadConfig[L models.Module](blank func() L, check func(L) error) models.Constructor {
	return func(src models.Source) (models.Module, error) {
		l := blank()
		if err := src.Config(l); err != nil {
			return nil, err
		}
		if err := check(l); err != nil {
			return nil, fmt.Errorf("%s: %w", src.Path(), err)
		}
		return l, nil
	}
}

// activation is a step that a layer before it can do on the way.
type activation interface {
	step
	act() gpu.Act
}

// same is the part of an element-wise step that all share.
type same struct{ _ byte } // not of size 0, so that two layers are never at one address

func (*same) device() gpu.Device                          { return nil }
func (*same) check(in tensor.Shape) (tensor.Shape, error) { return in, nil }

// ReLU is max(x, 0). NaN stays.
type ReLU struct{ same }

// NewReLU makes the layer.
func NewReLU() *ReLU { return &ReLU{} }

// Spec implements models.Module.
func (l *ReLU) Spec() models.Spec { return models.Spec{Kind: "nn.ReLU"} }

// Forward implements Layer.
func (l *ReLU) Forward(x *Tensor) (*Tensor, error)      { return forward(x, l) }
func (l *ReLU) act() gpu.Act                            { return gpu.ReLU }
func (l *ReLU) launch(s *gpu.Stream, dst, x gpu.Matrix) { s.Act(dst, x, l.act()) }

// SiLU is x*sigmoid(x).
type SiLU struct{ same }

// NewSiLU makes the layer.
func NewSiLU() *SiLU { return &SiLU{} }

// Spec implements models.Module.
func (l *SiLU) Spec() models.Spec { return models.Spec{Kind: "nn.SiLU"} }

// Forward implements Layer.
func (l *SiLU) Forward(x *Tensor) (*Tensor, error)      { return forward(x, l) }
func (l *SiLU) act() gpu.Act                            { return gpu.SiLU }
func (l *SiLU) launch(s *gpu.Stream, dst, x gpu.Matrix) { s.Act(dst, x, l.act()) }

// Tanh is the hyperbolic tangent.
type Tanh struct{ same }

// NewTanh makes the layer.
func NewTanh() *Tanh { return &Tanh{} }

// Spec implements models.Module.
func (l *Tanh) Spec() models.Spec { return models.Spec{Kind: "nn.Tanh"} }

// Forward implements Layer.
func (l *Tanh) Forward(x *Tensor) (*Tensor, error)      { return forward(x, l) }
func (l *Tanh) act() gpu.Act                            { return gpu.Tanh }
func (l *Tanh) launch(s *gpu.Stream, dst, x gpu.Matrix) { s.Act(dst, x, l.act()) }

// Sigmoid is 1/(1+e^-x).
type Sigmoid struct{ same }

// NewSigmoid makes the layer.
func NewSigmoid() *Sigmoid { return &Sigmoid{} }

// Spec implements models.Module.
func (l *Sigmoid) Spec() models.Spec { return models.Spec{Kind: "nn.Sigmoid"} }

// Forward implements Layer.
func (l *Sigmoid) Forward(x *Tensor) (*Tensor, error)      { return forward(x, l) }
func (l *Sigmoid) act() gpu.Act                            { return gpu.Sigmoid }
func (l *Sigmoid) launch(s *gpu.Stream, dst, x gpu.Matrix) { s.Act(dst, x, l.act()) }

// GELU is x*Phi(x), Phi being the normal distribution, or its approximation by tanh. As torch.nn.GELU.
type GELU struct {
	Approximate string `json:"approximate"` // "none" (also when empty) or "tanh"
}

// NewGELU makes the exact layer.
func NewGELU() *GELU { return &GELU{Approximate: "none"} }

func (l *GELU) err() error {
	switch l.Approximate {
	case "", "none", "tanh":
		return nil
	}
	return &gpu.OpError{Op: "nn.GELU", Kind: gpu.ErrUnsupported, Reason: fmt.Sprintf(`approximate %q: want "none" or "tanh"`, l.Approximate)}
}

// Spec implements models.Module.
func (l *GELU) Spec() models.Spec {
	c := *l
	if c.Approximate == "" {
		c.Approximate = "none"
	}
	return models.Spec{Kind: "nn.GELU", Config: c}
}

// Forward implements Layer.
func (l *GELU) Forward(x *Tensor) (*Tensor, error) { return forward(x, l) }

func (l *GELU) act() gpu.Act {
	if l.Approximate == "tanh" {
		return gpu.GELUTanh
	}
	return gpu.GELUErf
}

func (l *GELU) device() gpu.Device                          { return nil }
func (l *GELU) check(in tensor.Shape) (tensor.Shape, error) { return in, l.err() }
func (l *GELU) launch(s *gpu.Stream, dst, x gpu.Matrix)     { s.Act(dst, x, l.act()) }

// Softmax is the softmax over the last dimension. As torch.nn.Softmax(dim=-1).
type Softmax struct {
	Dim int `json:"dim"` // -1, or the number of the last dimension
}

// NewSoftmax makes the layer.
func NewSoftmax() *Softmax { return &Softmax{Dim: -1} }

// Spec implements models.Module.
func (l *Softmax) Spec() models.Spec { return models.Spec{Kind: "nn.Softmax", Config: *l} }

// Forward implements Layer.
func (l *Softmax) Forward(x *Tensor) (*Tensor, error) { return forward(x, l) }

func (l *Softmax) device() gpu.Device { return nil }
func (l *Softmax) check(in tensor.Shape) (tensor.Shape, error) {
	if l.Dim != -1 && l.Dim != len(in)-1 {
		return nil, &gpu.OpError{Op: "nn.Softmax", Kind: gpu.ErrUnsupported, Reason: fmt.Sprintf("dim %d: only the last dimension (-1)", l.Dim),
			Operands: []gpu.Operand{{Name: "x", Shape: in, DType: tensor.F32}}}
	}
	return in, nil
}
func (l *Softmax) launch(s *gpu.Stream, dst, x gpu.Matrix) { s.Softmax(dst, x) }

// Identity gives back what it gets.
type Identity struct{ _ byte } // not of size 0, so that two are never at one address

// NewIdentity makes the layer.
func NewIdentity() *Identity { return &Identity{} }

// Spec implements models.Module.
func (l *Identity) Spec() models.Spec { return models.Spec{Kind: "nn.Identity"} }

// Forward implements Layer.
func (l *Identity) Forward(x *Tensor) (*Tensor, error) { return x, nil }

// Dropout gives back what it gets: it acts in training only. It is here so that the layers behind it keep their numbers.
type Dropout struct {
	P float64 `json:"p"`
}

// NewDropout makes the layer.
func NewDropout(p float64) *Dropout { return &Dropout{P: p} }

// Spec implements models.Module.
func (l *Dropout) Spec() models.Spec { return models.Spec{Kind: "nn.Dropout", Config: *l} }

// Forward implements Layer.
func (l *Dropout) Forward(x *Tensor) (*Tensor, error) { return x, nil }
