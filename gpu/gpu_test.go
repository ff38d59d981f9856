package gpu

import (
	"errors"
	"testing"

	"github.com/zcstore/zcstore/shm/tensor"
)

type fakeBuf struct{ n int }

func (b *fakeBuf) Device() Device { return nil }
func (b *fakeBuf) Len() int       { return 4 * b.n }
func (b *fakeBuf) Free()          {}

func TestMatrixValid(t *testing.T) {
	b := &fakeBuf{20}
	for _, c := range []struct {
		off, rows, cols, stride int
		ok                      bool
	}{
		{0, 4, 5, 5, true},
		{0, 5, 5, 5, false},
		{1, 4, 5, 5, false},
		{3, 3, 2, 7, true}, // the last row ends before its stride
		{0, 2, 5, 4, false},
		{-1, 1, 1, 1, false},
		{0, -1, 5, 5, false},
		{20, 0, 5, 5, true},
		{21, 0, 5, 5, false},
		{0, 1 << 62, 5, 1 << 62, false},
		{0, 1 << 32, 0, 1 << 32, false},
	} {
		m := Matrix{Buf: b, Off: c.off, Rows: c.rows, Cols: c.cols, Stride: c.stride, DType: tensor.F32}
		if m.valid() != c.ok {
			t.Errorf("%+v: valid is not %v", c, c.ok)
		}
	}
	if (Matrix{}).valid() {
		t.Error("the zero matrix is valid")
	}
}

func TestMatrixOverlaps(t *testing.T) {
	b, other := &fakeBuf{100}, &fakeBuf{100}
	whole := Matrix{Buf: b, Rows: 5, Cols: 10, Stride: 10}
	for _, c := range []struct {
		name string
		a, b Matrix
		want bool
	}{
		{"itself", whole, whole, true},
		{"columns side by side", whole.Columns(0, 4), whole.Columns(4, 6), false},
		{"columns that share one", whole.Columns(0, 5), whole.Columns(4, 6), true},
		{"rows apart", whole.Slice(0, 2), whole.Slice(2, 3), false},
		{"rows that share one", whole.Slice(0, 3), whole.Slice(2, 3), true},
		{"corners", whole.Slice(0, 3).Columns(0, 5), whole.Slice(2, 3).Columns(5, 5), false},
		{"another buffer", whole, Matrix{Buf: other, Rows: 5, Cols: 10, Stride: 10}, false},
		{"another stride", whole, Matrix{Buf: b, Off: 49, Rows: 1, Cols: 3, Stride: 3}, true},
		{"empty", whole, whole.Slice(0, 0), false},
	} {
		if c.a.overlaps(c.b) != c.want || c.b.overlaps(c.a) != c.want {
			t.Errorf("%s: overlaps is not %v", c.name, c.want)
		}
	}
}

func TestOpErrorText(t *testing.T) {
	err := error(&OpError{Op: "linear", Kind: ErrShape, Reason: "x has 5 columns, the weights take 4", Operands: []Operand{
		{"x", tensor.Shape{2, 5}, tensor.F32}, {"weight", tensor.Shape{3, 4}, tensor.BF16}}})
	const want = "linear: shapes do not fit: x has 5 columns, the weights take 4 (x F32 [2,5], weight BF16 [3,4])"
	if err.Error() != want || !errors.Is(err, ErrShape) || errors.Is(err, ErrDevice) {
		t.Errorf("got %v", err)
	}
}

func TestDescribe(t *testing.T) {
	view := func(shape ...int) tensor.View {
		n, _ := tensor.Shape(shape).Elements()
		return tensor.View{DType: tensor.BF16, Shape: shape, Data: make([]byte, 2*n)}
	}
	for _, c := range []struct {
		v    tensor.View
		role tensor.Role
		n, k int
	}{
		{view(3, 4), tensor.Linear, 3, 4},
		{view(3, 4), tensor.LinearT, 4, 3},
		{view(3, 4), tensor.LookupLinear, 3, 4},
		{view(4), tensor.Other, 1, 4},
		{view(), tensor.Other, 1, 1},
		{view(2, 3, 4), tensor.Other, 6, 4},
	} {
		i, err := Describe(c.v, c.role)
		if err != nil || i.N != c.n || i.K != c.k || i.DType != tensor.BF16 || i.Layout != Plain {
			t.Errorf("%v as %v: %+v, %v", c.v.Shape, c.role, i, err)
		}
	}
}
