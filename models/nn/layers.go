package nn

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/shm/tensor"
)

func init() {
	models.Register("nn.Linear", loadLinear)
	models.Register("nn.LayerNorm", loadLayerNorm)
	models.Register("nn.Embedding", loadEmbedding)
}

// deviceOf is the device of a source, or the default where it has none.
func deviceOf(src models.Source) gpu.Device {
	if d := src.Device(); d != nil {
		return d
	}
	return Default()
}

// Linear is y = x W^T + b: x [.., in], y [.., out], weight [out, in], bias [out]. Weights may be F32, F16 or BF16. As
// torch.nn.Linear.
type Linear struct {
	in, out      int
	dev          gpu.Device
	weight, bias *param // bias may be nil
	group        *gpu.Group
	err          error // of making it; Forward returns it
}

// NewLinear makes a layer with values between -1/sqrt(in) and 1/sqrt(in). Options: Seed, NoBias, On. Sizes that are
// not positive make a layer whose Forward says so.
func NewLinear(in, out int, opts ...Option) *Linear {
	o := optionsOf(opts)
	l := blankLinear(in, out, !o.noBias, o.dev)
	if l.err != nil {
		return l
	}
	r := o.rand()
	limit := 1 / math.Sqrt(float64(in))
	for _, p := range l.params() {
		if l.err = p.init(o.dev, func() float32 { return float32((2*r.Float64() - 1) * limit) }); l.err != nil {
			return l
		}
	}
	l.err = l.ready()
	return l
}

func blankLinear(in, out int, bias bool, dev gpu.Device) *Linear {
	l := &Linear{in: in, out: out, dev: dev, weight: &param{name: "weight", shape: tensor.Shape{out, in}, role: tensor.Linear}}
	if bias {
		l.bias = &param{name: "bias", shape: tensor.Shape{out}}
	}
	if in <= 0 || out <= 0 {
		l.err = &gpu.OpError{Op: "nn.Linear", Kind: gpu.ErrShape, Reason: fmt.Sprintf("in_features %d, out_features %d", in, out)}
	}
	return l
}

type linearConfig struct {
	In   int   `json:"in_features"`
	Out  int   `json:"out_features"`
	Bias *bool `json:"bias"`
}

func loadLinear(src models.Source) (models.Module, error) {
	var c linearConfig
	if err := src.Config(&c); err != nil {
		return nil, err
	}
	l := blankLinear(c.In, c.Out, c.Bias == nil || *c.Bias, deviceOf(src))
	if l.err != nil {
		return nil, fmt.Errorf("%s: %w", src.Path(), l.err)
	}
	if err := load(src, l.dev, l.params()); err != nil {
		return nil, err
	}
	if err := l.ready(); err != nil {
		return nil, fmt.Errorf("%s: %w", src.Path(), err)
	}
	return l, nil
}

// Spec implements models.Module.
func (l *Linear) Spec() models.Spec {
	bias := l.bias != nil
	return models.Spec{Kind: "nn.Linear", Config: linearConfig{l.in, l.out, &bias}, Params: specs(l.params())}
}

// Forward implements Layer.
func (l *Linear) Forward(x *Tensor) (*Tensor, error) { return forward(x, l) }

// Size is the width of what goes in and of what comes out.
func (l *Linear) Size() (in, out int) { return l.in, l.out }

func (l *Linear) params() []*param {
	if l.bias == nil {
		return []*param{l.weight}
	}
	return []*param{l.weight, l.bias}
}

func (l *Linear) ready() error {
	if l.err != nil {
		return l.err
	}
	var bias *gpu.Weight
	if l.bias != nil {
		bias = l.bias.w
	}
	var err error
	l.group, err = gpu.NewGroup([]*gpu.Weight{l.weight.w}, []*gpu.Weight{bias})
	return err
}

func (l *Linear) device() gpu.Device { return l.dev }

func (l *Linear) check(in tensor.Shape) (tensor.Shape, error) {
	if l.err != nil {
		return nil, l.err
	}
	if len(in) == 0 || in[len(in)-1] != l.in {
		return nil, &gpu.OpError{Op: "nn.Linear", Kind: gpu.ErrShape, Reason: fmt.Sprintf("the last dimension of x is to be %d", l.in),
			Operands: []gpu.Operand{{Name: "x", Shape: in, DType: tensor.F32}, {Name: "weight", Shape: l.weight.shape, DType: l.weight.view.DType}}}
	}
	out := clone(in)
	out[len(out)-1] = l.out
	if _, ok := out.Elements(); !ok {
		return nil, shapeError("nn.Linear", in, "the result %v is too large", out)
	}
	return out, nil
}

func (l *Linear) launch(s *gpu.Stream, dst, x gpu.Matrix) { l.launchAct(s, dst, x, gpu.None) }

func (l *Linear) launchAct(s *gpu.Stream, dst, x gpu.Matrix, a gpu.Act) {
	s.Linear(dst, x, l.group, gpu.Epilogue{Act: a})
}

// LayerNorm is (x-mean)/sqrt(var+eps)*weight+bias over the last dimension. As torch.nn.LayerNorm over one dimension.
type LayerNorm struct {
	size         int
	eps          float64
	dev          gpu.Device
	weight, bias *param
	err          error
}

// NewLayerNorm makes a layer with weight 1, bias 0 and eps 1e-5. Options: On.
func NewLayerNorm(size int, opts ...Option) *LayerNorm { return NewLayerNormEps(size, 1e-5, opts...) }

// NewLayerNormEps is NewLayerNorm with another eps.
func NewLayerNormEps(size int, eps float64, opts ...Option) *LayerNorm {
	o := optionsOf(opts)
	l := blankLayerNorm(size, eps, o.dev)
	if l.err == nil {
		l.err = l.weight.init(o.dev, func() float32 { return 1 })
	}
	if l.err == nil {
		l.err = l.bias.init(o.dev, func() float32 { return 0 })
	}
	return l
}

func blankLayerNorm(size int, eps float64, dev gpu.Device) *LayerNorm {
	l := &LayerNorm{size: size, eps: eps, dev: dev,
		weight: &param{name: "weight", shape: tensor.Shape{size}}, bias: &param{name: "bias", shape: tensor.Shape{size}}}
	if size <= 0 || !(eps >= 0) {
		l.err = &gpu.OpError{Op: "nn.LayerNorm", Kind: gpu.ErrShape, Reason: fmt.Sprintf("normalized_shape %d, eps %v", size, eps)}
	}
	return l
}

type layerNormConfig struct {
	Shape sizeOrList `json:"normalized_shape"`
	Eps   *float64   `json:"eps"`
}

// sizeOrList is a size that may be written as a list of one.
type sizeOrList int

func (n *sizeOrList) UnmarshalJSON(b []byte) error {
	var list []int
	if json.Unmarshal(b, &list) == nil {
		if len(list) != 1 {
			return fmt.Errorf("normalized_shape %s: one dimension is supported", b)
		}
		*n = sizeOrList(list[0])
		return nil
	}
	return json.Unmarshal(b, (*int)(n))
}

func loadLayerNorm(src models.Source) (models.Module, error) {
	var c layerNormConfig
	if err := src.Config(&c); err != nil {
		return nil, err
	}
	eps := 1e-5
	if c.Eps != nil {
		eps = *c.Eps
	}
	l := blankLayerNorm(int(c.Shape), eps, deviceOf(src))
	if l.err != nil {
		return nil, fmt.Errorf("%s: %w", src.Path(), l.err)
	}
	return l, load(src, l.dev, l.params())
}

// Spec implements models.Module.
func (l *LayerNorm) Spec() models.Spec {
	return models.Spec{Kind: "nn.LayerNorm", Config: layerNormConfig{sizeOrList(l.size), &l.eps}, Params: specs(l.params())}
}

// Forward implements Layer.
func (l *LayerNorm) Forward(x *Tensor) (*Tensor, error) { return forward(x, l) }

func (l *LayerNorm) params() []*param   { return []*param{l.weight, l.bias} }
func (l *LayerNorm) ready() error       { return l.err }
func (l *LayerNorm) device() gpu.Device { return l.dev }

func (l *LayerNorm) check(in tensor.Shape) (tensor.Shape, error) {
	if l.err != nil {
		return nil, l.err
	}
	if len(in) == 0 || in[len(in)-1] != l.size {
		return nil, shapeError("nn.LayerNorm", in, "the last dimension of x is to be %d", l.size)
	}
	return in, nil
}

func (l *LayerNorm) launch(s *gpu.Stream, dst, x gpu.Matrix) {
	s.LayerNorm(dst, x, gpu.Matrix{}, l.weight.w, l.bias.w, float32(l.eps))
}

// Embedding gives for each index a row of its table: x I32 [..], y [.., dim], weight [n, dim]. As torch.nn.Embedding.
type Embedding struct {
	n, dim int
	dev    gpu.Device
	weight *param
	err    error
}

// NewEmbedding makes a table with values of mean 0 and variance 1. Options: Seed, On.
func NewEmbedding(n, dim int, opts ...Option) *Embedding {
	o := optionsOf(opts)
	l := blankEmbedding(n, dim, o.dev)
	if l.err == nil {
		r := o.rand()
		l.err = l.weight.init(o.dev, func() float32 { return float32(r.NormFloat64()) })
	}
	return l
}

func blankEmbedding(n, dim int, dev gpu.Device) *Embedding {
	l := &Embedding{n: n, dim: dim, dev: dev, weight: &param{name: "weight", shape: tensor.Shape{n, dim}, role: tensor.Lookup}}
	if n <= 0 || dim <= 0 {
		l.err = &gpu.OpError{Op: "nn.Embedding", Kind: gpu.ErrShape, Reason: fmt.Sprintf("num_embeddings %d, embedding_dim %d", n, dim)}
	}
	return l
}

type embeddingConfig struct {
	N   int `json:"num_embeddings"`
	Dim int `json:"embedding_dim"`
}

func loadEmbedding(src models.Source) (models.Module, error) {
	var c embeddingConfig
	if err := src.Config(&c); err != nil {
		return nil, err
	}
	l := blankEmbedding(c.N, c.Dim, deviceOf(src))
	if l.err != nil {
		return nil, fmt.Errorf("%s: %w", src.Path(), l.err)
	}
	return l, load(src, l.dev, l.params())
}

// Spec implements models.Module.
func (l *Embedding) Spec() models.Spec {
	return models.Spec{Kind: "nn.Embedding", Config: embeddingConfig{l.n, l.dim}, Params: specs(l.params())}
}

// Size is the number of rows and their width.
func (l *Embedding) Size() (n, dim int) { return l.n, l.dim }

func (l *Embedding) params() []*param   { return []*param{l.weight} }
func (l *Embedding) ready() error       { return l.err }
func (l *Embedding) device() gpu.Device { return l.dev }

// Forward implements Layer. x is made by [NewInts]; an index that is no row is an error of kind gpu.ErrIndex.
func (l *Embedding) Forward(x *Tensor) (*Tensor, error) {
	if l.err != nil {
		return nil, l.err
	}
	if x == nil || x.ints == nil {
		e := &gpu.OpError{Op: "nn.Embedding", Kind: gpu.ErrUnsupported, Reason: "x is to hold indices (nn.NewInts)"}
		if x != nil {
			e.Operands = []gpu.Operand{{Name: "x", Shape: x.shape, DType: x.DType()}}
		}
		return nil, e
	}
	for i, id := range x.ints {
		if id < 0 || int(id) >= l.n {
			return nil, &gpu.OpError{Op: "nn.Embedding", Kind: gpu.ErrIndex, Reason: fmt.Sprintf("index %d at %d, of %d rows", id, i, l.n),
				Operands: []gpu.Operand{{Name: "x", Shape: x.shape, DType: tensor.I32}, {Name: "weight", Shape: l.weight.shape, DType: l.weight.view.DType}}}
		}
	}
	return run(l.dev, append(clone(x.shape), l.dim), func(s *gpu.Stream, out gpu.Matrix) {
		ids := s.I32(len(x.ints))
		s.UploadInts(ids, x.ints)
		s.Gather(out, []gpu.Lookup{{Table: l.weight.w, IDs: ids}})
	}, x)
}
