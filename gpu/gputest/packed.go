package gputest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// packed imports the panels of a weight. They are made here from the definition, by no code of the project, and lie between
// guards: a device that reads past them finds NaN, and must not show it.
func (b *bench) packed(form pack.Form, g grid) *gpu.Weight {
	b.t.Helper()
	per, behind := form.Inputs(), 0
	if form == pack.Int8 {
		behind = 2
	}
	panels, lines := (g.rows+15)/16, (g.cols+per-1)/per
	shape := tensor.Shape{panels, lines + behind, 16}
	if per > 1 {
		shape = append(shape, per)
	}
	const guard = 4096
	size := panels * (lines + behind) * 64
	room := make([]float32, size/4+2*guard)
	for i := range room {
		room[i] = float32(math.NaN())
	}
	whole, err := tensor.FromFloat32s(tensor.Shape{len(room)}, room)
	if err != nil {
		b.t.Fatal(err)
	}
	data := whole.Data[4*guard:][:size]
	clear(data)
	for n := range g.rows {
		panel := data[n/16*(lines+behind)*64:]
		scale, sum := scaleOf(g.row(n)), int32(0)
		for k, w := range g.row(n) {
			at := k/per*64 + n%16*4 + k%per*4/per
			switch form {
			case pack.F32:
				binary.LittleEndian.PutUint32(panel[at:], math.Float32bits(float32(w)))
			case pack.BF16:
				bits, _ := narrow(float32(w), tensor.BF16)
				binary.LittleEndian.PutUint16(panel[at:], bits)
			case pack.Int8:
				q := whole8(w, scale)
				sum += int32(q)
				panel[at] = byte(int8(q))
			}
		}
		if behind > 0 {
			binary.LittleEndian.PutUint32(panel[lines*64+n%16*4:], math.Float32bits(scale))
			binary.LittleEndian.PutUint32(panel[lines*64+64+n%16*4:], uint32(sum))
		}
	}
	w, err := b.dev.(gpu.PackedImporter).ImportPacked(tensor.View{DType: form.DType(), Shape: shape, Data: data}, gpu.Panels(form), g.rows, g.cols)
	if err != nil {
		b.t.Fatal(err)
	}
	if w.Layout != gpu.Panels(form) || w.N != g.rows || w.K != g.cols || w.PadN != panels*16-g.rows || w.PadK != lines*per-g.cols {
		b.t.Errorf("the weight says %+v", w.WeightInfo)
	}
	return w
}

// scaleOf and whole8 are what p16-int8 makes of an output's weights.
func scaleOf(w []float64) float32 {
	top := 0.0
	for _, v := range w {
		top = max(top, math.Abs(v))
	}
	return float32(top / 127)
}

func whole8(w float64, scale float32) float64 {
	if scale == 0 {
		return 0
	}
	return math.RoundToEven(w / float64(scale))
}

// formed is the two factors of a product as a form has them: x and w rounded to BF16, or in 8 bits, w with a scale for each
// output, x with a scale and a zero point for each row (in F32, for a rounding decides to which side a value goes).
func formed(form pack.Form, x, w grid) (grid, grid) {
	if form == pack.F32 {
		return x, w
	}
	xf, wf := newGrid(x.rows, x.cols), newGrid(w.rows, w.cols)
	if form == pack.BF16 {
		for _, p := range [][2]grid{{x, xf}, {w, wf}} {
			for i, v := range p[0].v {
				_, p[1].v[i] = narrow(float32(v), tensor.BF16)
			}
		}
		return xf, wf
	}
	for n := range w.rows {
		scale := scaleOf(w.row(n))
		for k, v := range w.row(n) {
			wf.set(n, k, float64(scale)*whole8(v, scale))
		}
	}
	for i := range x.rows {
		var lo, hi float32
		finite := true
		for _, v := range x.row(i) {
			lo, hi = min(lo, float32(v)), max(hi, float32(v))
			finite = finite && !math.IsNaN(v) && !math.IsInf(v, 0)
		}
		const part = float32(1.0 / 255)
		scale := float32(hi*part) - float32(lo*part)
		inv := float32(1) / scale
		if scale < 0x1p-126 {
			scale, inv = 0, 0
		}
		zero := -math.RoundToEven(float64(float32(lo * inv)))
		for k, v := range x.row(i) {
			q := min(math.RoundToEven(float64(float32(math.FMA(float64(float32(v)), float64(inv), zero)))), 255)
			xf.set(i, k, float64(scale)*(q-zero))
			if !finite {
				xf.set(i, k, math.NaN())
			}
		}
	}
	return xf, wf
}

// testPacked: panels of every form give the right answers, and those of F32 the same bits as the plain weight does.
//
// The bound is that of the plain product, on the factors as the form has them. It is generous in 8 bits, where the sum is
// exact and three roundings follow.
func testPacked(t *testing.T, dev gpu.Device) {
	if _, ok := dev.(gpu.PackedImporter); !ok {
		t.Skipf("%s takes no packed weights", dev.Info().Backend)
	}
	for _, form := range pack.Forms {
		t.Run(form.String(), func(t *testing.T) { testForm(t, dev, form) })
	}
	testPackedRefused(t, dev)
}

func testForm(t *testing.T, dev gpu.Device, form pack.Form) {
	for _, c := range [][3]int{{1, 1, 1}, {1, 100, 67}, {3, 16, 5}, {5, 65, 384}, {13, 31, 33}, {40, 384, 384}, {29, 70, 1536},
		{1, 768, 768}, {7, 80, 3072}, {203, 48, 768}, {14, 33, 1021}, {2, 17, 2}, {0, 5, 3}} {
		for _, a := range []gpu.Act{gpu.None, gpu.SiLU} {
			t.Run(fmt.Sprint(c, a), func(t *testing.T) { packedProduct(t, dev, form, c[0], c[1], c[2], a) })
		}
	}
	t.Run("every height", func(t *testing.T) {
		for m := 1; m <= 27; m++ {
			for _, nk := range [][2]int{{1, 1}, {15, 3}, {33, 18}, {53, 21}, {64, 7}, {96, 9}} {
				packedProduct(t, dev, form, m, nk[0], nk[1], gpu.None)
			}
		}
	})
	t.Run("NaN, Inf and next to nothing", func(t *testing.T) {
		b := newBench(t, dev)
		x, w := b.random(6, 37, 1), b.random(18, 37, 1)
		x.set(1, 36, math.NaN())
		x.set(2, 0, math.Inf(1))
		x.set(3, 5, math.Inf(-1))
		for j := range 37 {
			x.set(4, j, 0)
			x.set(5, j, float64(float32(1e-39)))
			w.set(3, j, 0)
			w.set(4, j, math.Abs(w.at(4, j))/100)
		}
		g, err := gpu.NewGroup([]*gpu.Weight{b.packed(form, w)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		dst := b.room(6, 18, 0)
		b.s.Linear(dst, b.put(x, 0), g, gpu.Epilogue{})
		xf, wf := formed(form, x, w)
		a := linearRef(xf, []grid{wf}, nil, gpu.None, nil)
		for i := range a.bound.v { // each input and each sum may be flushed to zero
			a.bound.v[i] += 2 * 37 * tiny
		}
		b.check(dst, a)
	})
	t.Run("bits", func(t *testing.T) {
		const rows, k = 131, 131
		for _, n := range []int{103, 16, 64} {
			b := newBench(t, dev)
			x, w, bias := b.random(rows, k, 1), b.random(n, k, 1), b.random(1, n, 1)
			g, err := gpu.NewGroup([]*gpu.Weight{b.packed(form, w)}, []*gpu.Weight{b.weight(&bias, tensor.F32, tensor.Other)})
			if err != nil {
				t.Fatal(err)
			}
			inBatches(b, g, b.put(x, 0), n)
		}
	})
}

// packedProduct is a group of three weights, the last plain, with all that an epilogue can have.
func packedProduct(t *testing.T, dev gpu.Device, form pack.Form, m, n, k int, a gpu.Act) {
	t.Helper()
	b := newBench(t, dev)
	x, w, second, last := b.random(m, k, 1), b.random(n, k, 1/math.Sqrt(float64(k))), b.random(19, k, 1), b.random(3, k, 1)
	bias, res := b.random(1, n, 1), b.random(m, n+22, 1)
	bw := b.weight(&bias, tensor.F32, tensor.Other)
	run := func(ws ...*gpu.Weight) gpu.Matrix {
		t.Helper()
		g, err := gpu.NewGroup(ws, []*gpu.Weight{bw, nil, nil})
		if err != nil {
			t.Fatal(err)
		}
		dst := b.put(res, 1)
		b.s.Linear(dst, b.put(x, n%3), g, gpu.Epilogue{Act: a, Residual: dst})
		return dst
	}
	plain := b.weight(&last, tensor.F32, tensor.LinearT)
	got := run(b.packed(form, w), b.packed(form, second), plain)
	xf, wf := formed(form, x, w)
	_, sf := formed(form, x, second)
	left := linearRef(xf, []grid{wf, sf}, []grid{bias, {}}, a, part(res, 0, n+19))
	right := linearRef(x, []grid{last}, nil, a, part(res, n+19, 3))
	b.check(got, beside(left, right))
	if form == pack.F32 {
		want := run(b.weight(&w, tensor.F32, tensor.Linear), b.weight(&second, tensor.F32, tensor.Linear), plain)
		same(t, "packed", b.read(got), b.read(want))
	}
}

// part is some columns of a grid.
func part(g grid, from, n int) *grid {
	p := newGrid(g.rows, n)
	for i := range g.rows {
		copy(p.row(i), g.row(i)[from:])
	}
	return &p
}

// beside is two answers as one.
func beside(a, b answer) answer {
	join := func(l, r grid) grid {
		g := newGrid(l.rows, l.cols+r.cols)
		for i := range g.rows {
			copy(g.row(i)[copy(g.row(i), l.row(i)):], r.row(i))
		}
		return g
	}
	return answer{join(a.want, b.want), join(a.bound, b.bound)}
}

func testPackedRefused(t *testing.T, dev gpu.Device) {
	b := newBench(t, dev)
	v, err := tensor.FromFloat32s(tensor.Shape{1, 4, 16}, make([]float32, 64))
	if err != nil {
		t.Fatal(err)
	}
	p := dev.(gpu.PackedImporter)
	panels := gpu.Panels(pack.F32)
	other := panels
	other.Version++
	for name, try := range map[string]struct {
		v      tensor.View
		layout gpu.Layout
		n, k   int
		kind   error
	}{
		"another version": {v, other, 3, 4, gpu.ErrUnsupported},
		"plain":           {v, gpu.Plain, 3, 4, gpu.ErrUnsupported},
		"too many":        {v, panels, 17, 4, gpu.ErrShape},
		"none":            {v, panels, 0, 4, gpu.ErrShape},
		"negative":        {v, panels, -1, 4, gpu.ErrShape},
		"other depth":     {v, panels, 3, 5, gpu.ErrShape},
		"short":           {tensor.View{DType: v.DType, Shape: v.Shape, Data: v.Data[:252]}, panels, 3, 4, gpu.ErrShape},
		"dtype":           {tensor.View{DType: tensor.BF16, Shape: v.Shape, Data: v.Data[:128]}, panels, 3, 4, gpu.ErrUnsupported},
		"another form":    {tensor.View{DType: tensor.BF16, Shape: v.Shape, Data: v.Data[:128]}, gpu.Panels(pack.BF16), 3, 4, gpu.ErrShape},
		"too deep":        {tensor.View{DType: tensor.I8, Shape: tensor.Shape{1, 1, 16, 4}}, gpu.Panels(pack.Int8), 3, pack.MaxInt8Inputs + 1, gpu.ErrShape},
	} {
		if _, err := p.ImportPacked(try.v, try.layout, try.n, try.k); !errors.Is(err, try.kind) {
			t.Errorf("%s: %v, want %v", name, err, try.kind)
		}
	}
	if w := b.packed(pack.F32, b.random(3, 4, 1)); w.Role != tensor.Linear {
		t.Errorf("role %v", w.Role)
	}
}
