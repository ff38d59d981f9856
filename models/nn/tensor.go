package nn

import (
	"fmt"
	"runtime"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Tensor is an activation: what goes into a layer and comes out. Values are F32, or I32 for the indices that an
// Embedding takes. Immutable and safe for concurrent use.
//
// A tensor made of values on the host goes to whichever device a layer is on; one that a layer made lies on that
// layer's device, and a layer elsewhere refuses it with gpu.ErrDevice.
type Tensor struct {
	shape tensor.Shape
	host  []float32 // the values, when they are on the host
	ints  []int32   // the same for indices
	dev   gpu.Device
	m     gpu.Matrix
	owner *Tensor // whose memory it is, when it is a part of another
}

// New makes a tensor of values in row-major order, which it copies.
func New(shape tensor.Shape, values []float32) (*Tensor, error) {
	if err := fits(shape, len(values)); err != nil {
		return nil, err
	}
	return &Tensor{shape: clone(shape), host: append(make([]float32, 0, len(values)), values...)}, nil
}

// NewInts makes a tensor of indices, which it copies.
func NewInts(shape tensor.Shape, values []int32) (*Tensor, error) {
	if err := fits(shape, len(values)); err != nil {
		return nil, err
	}
	return &Tensor{shape: clone(shape), ints: append(make([]int32, 0, len(values)), values...)}, nil
}

// FromRows makes a matrix of rows of equal length.
func FromRows(rows [][]float32) (*Tensor, error) {
	t := &Tensor{shape: tensor.Shape{len(rows), 0}, host: []float32{}}
	for i, r := range rows {
		if i == 0 {
			t.shape[1] = len(r)
			t.host = make([]float32, 0, len(rows)*len(r))
		}
		if len(r) != t.shape[1] {
			return nil, shapeError("nn.FromRows", tensor.Shape{len(r)}, "row %d has %d values, row 0 has %d", i, len(r), t.shape[1])
		}
		t.host = append(t.host, r...)
	}
	return t, nil
}

func fits(shape tensor.Shape, n int) error {
	if want, ok := shape.Elements(); !ok || want != n {
		return shapeError("nn.New", shape, "%d values", n)
	}
	return nil
}

func clone(s tensor.Shape) tensor.Shape { return append(tensor.Shape{}, s...) }

// empty is a tensor on a device whose values are still to be written.
func empty(dev gpu.Device, shape tensor.Shape) (*Tensor, error) {
	rows, cols := matrixOf(shape)
	b, err := dev.Alloc(4 * rows * cols)
	if err != nil {
		return nil, err
	}
	t := &Tensor{shape: clone(shape), dev: dev, m: gpu.Matrix{Buf: b, Rows: rows, Cols: cols, Stride: cols, DType: tensor.F32}}
	runtime.AddCleanup(t, gpu.Buf.Free, b)
	return t, nil
}

// Keep copies a matrix of a stream into a tensor of its own, for models that launch ops themselves. The tensor has its
// values after the stream's Sync. The shape holds as many elements as the matrix.
func Keep(s *gpu.Stream, m gpu.Matrix, shape tensor.Shape) (*Tensor, error) {
	if rows, cols := matrixOf(shape); rows != m.Rows || cols != m.Cols {
		return nil, shapeError("nn.Keep", shape, "the matrix is %v", m.Shape())
	}
	t, err := empty(s.Device(), shape)
	if err != nil {
		return nil, err
	}
	s.Copy(t.m, m)
	return t, nil
}

// Shape is the shape. It is the caller's.
func (t *Tensor) Shape() tensor.Shape { return clone(t.shape) }

// DType is F32 or I32.
func (t *Tensor) DType() tensor.DType {
	if t.ints != nil {
		return tensor.I32
	}
	return tensor.F32
}

// Float32s gives the values in row-major order, in memory that is the caller's.
func (t *Tensor) Float32s() ([]float32, error) {
	n, _ := t.shape.Elements()
	out := make([]float32, n)
	if t.ints != nil {
		return nil, t.notFloat("nn.Float32s")
	}
	if t.dev == nil {
		copy(out, t.host)
		return out, nil
	}
	s, err := t.dev.NewStream()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	s.Download(out, t.m)
	err = s.Sync()
	runtime.KeepAlive(t)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Row is row i of the first dimension, without that dimension. It shares memory with t.
func (t *Tensor) Row(i int) (*Tensor, error) {
	if len(t.shape) == 0 || i < 0 || i >= t.shape[0] {
		return nil, &gpu.OpError{Op: "nn.Row", Kind: gpu.ErrIndex, Reason: fmt.Sprintf("row %d", i),
			Operands: []gpu.Operand{{Name: "x", Shape: t.shape, DType: t.DType()}}}
	}
	r := &Tensor{shape: clone(t.shape[1:]), dev: t.dev, owner: t}
	n, _ := r.shape.Elements()
	switch {
	case t.ints != nil:
		r.ints = t.ints[i*n : (i+1)*n]
	case t.dev == nil:
		r.host = t.host[i*n : (i+1)*n]
	default:
		r.m = t.m // whole tensors have no gaps between rows
		r.m.Off += i * n
		r.m.Rows, r.m.Cols = matrixOf(r.shape)
		r.m.Stride = r.m.Cols
	}
	return r, nil
}

// Reshape is the same values in another shape of as many elements.
func (t *Tensor) Reshape(shape tensor.Shape) (*Tensor, error) {
	have, _ := t.shape.Elements()
	if n, ok := shape.Elements(); !ok || n != have {
		return nil, shapeError("nn.Reshape", t.shape, "%v has another number of elements", shape)
	}
	r := *t
	r.shape, r.owner = clone(shape), t
	if t.dev != nil {
		r.m.Rows, r.m.Cols = matrixOf(shape)
		r.m.Stride = r.m.Cols
	}
	return &r, nil
}

// Div is t/f.
func (t *Tensor) Div(f float32) (*Tensor, error) { return t.scalar("nn.Div", gpu.Div, f) }

// Scale is t*f.
func (t *Tensor) Scale(f float32) (*Tensor, error) { return t.scalar("nn.Scale", gpu.Mul, f) }

// Clamp is t with values below lo made lo and values above hi made hi. NaN stays.
func (t *Tensor) Clamp(lo, hi float32) (*Tensor, error) {
	return t.each("nn.Clamp", func(s *gpu.Stream, out, x gpu.Matrix) {
		s.Scalar(gpu.Max, out, x, lo)
		s.Scalar(gpu.Min, out, out, hi)
	})
}

// Add is t+o, element by element. o has the shape of t, or is one row that meets every row of t, or one value.
func (t *Tensor) Add(o *Tensor) (*Tensor, error) { return t.binary("nn.Add", gpu.Add, o) }

// Sub is t-o. Shapes as for Add.
func (t *Tensor) Sub(o *Tensor) (*Tensor, error) { return t.binary("nn.Sub", gpu.Sub, o) }

// Mul is t*o. Shapes as for Add.
func (t *Tensor) Mul(o *Tensor) (*Tensor, error) { return t.binary("nn.Mul", gpu.Mul, o) }

// Quo is t/o. Shapes as for Add.
func (t *Tensor) Quo(o *Tensor) (*Tensor, error) { return t.binary("nn.Quo", gpu.Div, o) }

// Softmax is the softmax over the last dimension.
func (t *Tensor) Softmax() (*Tensor, error) {
	return t.each("nn.Softmax", func(s *gpu.Stream, out, x gpu.Matrix) { s.Softmax(out, x) })
}

// Sigmoid is 1/(1+e^-t).
func (t *Tensor) Sigmoid() (*Tensor, error) {
	return t.each("nn.Sigmoid", func(s *gpu.Stream, out, x gpu.Matrix) { s.Act(out, x, gpu.Sigmoid) })
}

// L2Normalize is each row of the last dimension divided by its length, or by 1e-12 when that is more.
func (t *Tensor) L2Normalize() (*Tensor, error) {
	return t.each("nn.L2Normalize", func(s *gpu.Stream, out, x gpu.Matrix) { s.L2Normalize(out, x, 1e-12) })
}

// MeanPool is the mean of the rows of each sequence: sequence i is the rows from starts[i] to starts[i+1]. mask is nil
// or has an entry for each row; rows where it is 0 do not count.
func (t *Tensor) MeanPool(starts []int, mask []int32) (*Tensor, error) {
	if t.ints != nil {
		return nil, t.notFloat("nn.MeanPool")
	}
	_, cols := matrixOf(t.shape)
	return run(t.device(), tensor.Shape{max(len(starts)-1, 0), cols}, func(s *gpu.Stream, out gpu.Matrix) {
		x := t.on(s)
		s.MeanPool(out, x, s.Ragged(starts, mask))
	}, t)
}

// Pick is the rows of those numbers, in that order: [len(rows), last dimension]. All dimensions but the last are counted
// through as rows.
func (t *Tensor) Pick(rows []int) (*Tensor, error) {
	if t.ints != nil {
		return nil, t.notFloat("nn.Pick")
	}
	n, cols := matrixOf(t.shape)
	ids := make([]int32, len(rows))
	for i, r := range rows {
		if r < 0 || r >= n {
			return nil, &gpu.OpError{Op: "nn.Pick", Kind: gpu.ErrIndex, Reason: fmt.Sprintf("row %d of %d", r, n),
				Operands: []gpu.Operand{{Name: "x", Shape: t.shape, DType: tensor.F32}}}
		}
		ids[i] = int32(r)
	}
	return run(t.device(), tensor.Shape{len(rows), cols}, func(s *gpu.Stream, out gpu.Matrix) {
		x, at := t.on(s), s.I32(len(ids))
		s.UploadInts(at, ids)
		s.Pick(out, x, at)
	}, t)
}

func (t *Tensor) scalar(name string, op gpu.Binary, f float32) (*Tensor, error) {
	return t.each(name, func(s *gpu.Stream, out, x gpu.Matrix) { s.Scalar(op, out, x, f) })
}

func (t *Tensor) each(name string, op func(s *gpu.Stream, out, x gpu.Matrix)) (*Tensor, error) {
	if t.ints != nil {
		return nil, t.notFloat(name)
	}
	return run(t.device(), t.shape, func(s *gpu.Stream, out gpu.Matrix) { op(s, out, t.on(s)) }, t)
}

func (t *Tensor) binary(name string, op gpu.Binary, o *Tensor) (*Tensor, error) {
	if t.ints != nil {
		return nil, t.notFloat(name)
	}
	if o == nil {
		return nil, shapeError(name, t.shape, "the other tensor is nil")
	}
	if o.ints != nil {
		return nil, o.notFloat(name)
	}
	n, _ := o.shape.Elements()
	_, cols := matrixOf(t.shape)
	if _, oc := matrixOf(o.shape); !o.shape.Equal(t.shape) && n != 1 && !(n == cols && oc == cols) {
		return nil, &gpu.OpError{Op: name, Kind: gpu.ErrShape, Reason: "shapes are neither equal nor is one a row or a value",
			Operands: []gpu.Operand{{Name: "t", Shape: t.shape, DType: tensor.F32}, {Name: "o", Shape: o.shape, DType: tensor.F32}}}
	}
	dev := t.device()
	if t.dev == nil && o.dev != nil {
		dev = o.dev
	}
	return run(dev, t.shape, func(s *gpu.Stream, out gpu.Matrix) { s.Binary(op, out, t.on(s), o.on(s)) }, t, o)
}

func (t *Tensor) notFloat(op string) error {
	return &gpu.OpError{Op: op, Kind: gpu.ErrUnsupported, Reason: "values are to be F32",
		Operands: []gpu.Operand{{Name: "x", Shape: t.shape, DType: t.DType()}}}
}

// device is where the tensor is, or would go.
func (t *Tensor) device() gpu.Device {
	if t.dev == nil {
		return Default()
	}
	return t.dev
}

// on is the tensor as a matrix of the stream, uploaded if it is on the host.
func (t *Tensor) on(s *gpu.Stream) gpu.Matrix {
	if t.ints != nil {
		s.Fail(t.notFloat("nn"))
		return gpu.Matrix{}
	}
	if t.dev != nil {
		return t.m
	}
	m := s.F32(matrixOf(t.shape))
	s.Upload(m, t.host)
	return m
}
