package gputest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// bench is one test's work on a device: operands with guards around them, and checks of both.
type bench struct {
	t     testing.TB
	dev   gpu.Device
	s     *gpu.Stream
	rand  *rand.Rand
	guard []guarded
	held  [][]float32 // host memory of uploads, kept as it is until the end
}

type guarded struct {
	m     gpu.Matrix
	whole gpu.Matrix
}

// canary is in every element around a matrix: before it, between its rows, after it.
const canary = 12345.678

func newBench(t testing.TB, dev gpu.Device) *bench {
	t.Helper()
	s, err := dev.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return &bench{t: t, dev: dev, s: s, rand: rand.New(rand.NewPCG(1, 2))}
}

// random is a grid of F32 values of about this size.
func (b *bench) random(rows, cols int, size float64) grid {
	g := newGrid(rows, cols)
	for i := range g.v {
		g.v[i] = float64(float32(b.rand.NormFloat64() * size))
	}
	return g
}

// put makes a matrix on the device, pad elements wider from row to row than it is.
func (b *bench) put(g grid, pad int) gpu.Matrix {
	b.t.Helper()
	const edge = 5
	stride := g.cols + pad
	n := edge + g.rows*stride + edge
	buf, err := b.dev.Alloc(4 * n)
	if err != nil {
		b.t.Fatal(err)
	}
	host := make([]float32, n)
	for i := range host {
		host[i] = canary
	}
	for i := range g.rows {
		for j := range g.cols {
			host[edge+i*stride+j] = float32(g.at(i, j))
		}
	}
	whole := gpu.Matrix{Buf: buf, Rows: 1, Cols: n, Stride: n, DType: tensor.F32}
	b.s.Upload(whole, host)
	b.held = append(b.held, host)
	m := gpu.Matrix{Buf: buf, Off: edge, Rows: g.rows, Cols: g.cols, Stride: stride, DType: tensor.F32}
	b.guard = append(b.guard, guarded{m, whole})
	return m
}

// room is a matrix for a result, full of canaries.
func (b *bench) room(rows, cols, pad int) gpu.Matrix {
	g := newGrid(rows, cols)
	for i := range g.v {
		g.v[i] = canary
	}
	return b.put(g, pad)
}

func (b *bench) ints(ids []int32) gpu.Matrix {
	m := b.s.I32(len(ids))
	b.s.UploadInts(m, ids)
	return m
}

// weight stores a grid as the dtype says and imports it. The grid becomes what was stored.
func (b *bench) weight(g *grid, d tensor.DType, role tensor.Role) *gpu.Weight {
	b.t.Helper()
	shape := tensor.Shape{g.rows, g.cols}
	if role == tensor.Other {
		shape = tensor.Shape{g.cols}
	}
	stored := *g
	if role == tensor.LinearT {
		shape = tensor.Shape{g.cols, g.rows}
		stored = newGrid(g.cols, g.rows)
		for i := range g.rows {
			for j := range g.cols {
				stored.set(j, i, g.at(i, j))
			}
		}
	}
	var v tensor.View
	var err error
	if d == tensor.F32 {
		f := make([]float32, len(stored.v))
		for i, x := range stored.v {
			f[i] = float32(x)
		}
		v, err = tensor.FromFloat32s(shape, f)
	} else {
		raw := make([]byte, 2*len(stored.v), 2*len(stored.v)+8)
		for i, x := range stored.v {
			bits, _ := narrow(float32(x), d)
			raw[2*i], raw[2*i+1] = byte(bits), byte(bits>>8)
		}
		*g = grid{g.rows, g.cols, append([]float64(nil), g.v...)}
		for i, x := range g.v {
			_, g.v[i] = narrow(float32(x), d)
		}
		v, err = tensor.New(d, shape, raw)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	w, err := b.dev.Import(v, role)
	if err != nil {
		b.t.Fatal(err)
	}
	return w
}

// read syncs and gives the values of a matrix.
func (b *bench) read(m gpu.Matrix) []float32 {
	b.t.Helper()
	got := make([]float32, m.Rows*m.Cols)
	b.s.Download(got, m)
	if err := b.s.Sync(); err != nil {
		b.t.Fatal(err)
	}
	return got
}

// check compares a result with the answer, and every canary with itself.
func (b *bench) check(m gpu.Matrix, a answer) {
	b.t.Helper()
	bad := 0
	for i, got := range b.read(m) {
		if want, bound := a.want.v[i], a.bound.v[i]; !near(got, want, bound) {
			if bad++; bad <= 3 {
				b.t.Errorf("[%d,%d] is %v, want %v within %.3g (off by %.3g)", i/m.Cols, i%m.Cols, got, want, bound, math.Abs(float64(got)-want))
			}
		}
	}
	if bad > 3 {
		b.t.Errorf("%d of %d elements are wrong", bad, m.Rows*m.Cols)
	}
	for _, g := range b.guard {
		for i, x := range b.read(g.whole) {
			at := i - g.m.Off
			inside := at >= 0 && at < g.m.Rows*g.m.Stride && at%max(g.m.Stride, 1) < g.m.Cols
			if !inside && x != float32(canary) {
				b.t.Fatalf("wrote %v outside of a [%d,%d] matrix, at element %d", x, g.m.Rows, g.m.Cols, at)
			}
		}
	}
}

// Run is the conformance kit: all ops of the device against the reference, at sizes that are multiples of nothing and
// at those of real models, with strides, guards, infinities and NaN, and what must be refused.
func Run(t *testing.T, dev gpu.Device) {
	t.Run("linear", func(t *testing.T) { testLinear(t, dev) })
	t.Run("elementwise", func(t *testing.T) { testElementwise(t, dev) })
	t.Run("rows", func(t *testing.T) { testRows(t, dev) })
	t.Run("attention", func(t *testing.T) { testAttention(t, dev) })
	t.Run("attention by distance", func(t *testing.T) { testDistances(t, dev) })
	t.Run("unfold", func(t *testing.T) { testUnfold(t, dev) })
	t.Run("rotate", func(t *testing.T) { testRotate(t, dev) })
	t.Run("gather", func(t *testing.T) { testGather(t, dev) })
	t.Run("sizes", func(t *testing.T) { testSizes(t, dev) })
	t.Run("packed", func(t *testing.T) { testPacked(t, dev) })
	t.Run("views", func(t *testing.T) { testViews(t, dev) })
	t.Run("bits", func(t *testing.T) { testBits(t, dev) })
	t.Run("refused", func(t *testing.T) { testRefused(t, dev) })
	t.Run("stream", func(t *testing.T) { testStream(t, dev) })
}

func testLinear(t *testing.T, dev gpu.Device) {
	for _, c := range []struct {
		m, k int
		n    []int
		d    tensor.DType
		role tensor.Role
		bias bool
		act  gpu.Act
		res  string // "", "own", "dst"
		pad  int
	}{
		{1, 1, []int{1}, tensor.F32, tensor.Linear, false, gpu.None, "", 0},
		{1, 7, []int{5}, tensor.F32, tensor.Linear, true, gpu.None, "", 3},
		{2, 3, []int{4}, tensor.F32, tensor.Linear, true, gpu.ReLU, "own", 0},
		{3, 67, []int{36}, tensor.F32, tensor.Linear, true, gpu.GELUErf, "dst", 1},
		{65, 36, []int{36, 36, 36}, tensor.F32, tensor.Linear, true, gpu.None, "", 0},
		{7, 19, []int{3, 50, 1}, tensor.F32, tensor.Linear, true, gpu.Tanh, "own", 2},
		{130, 97, []int{101}, tensor.F32, tensor.Linear, false, gpu.SiLU, "", 5},
		{0, 5, []int{3}, tensor.F32, tensor.Linear, true, gpu.None, "", 0},
		{31, 384, []int{384, 384, 384}, tensor.F32, tensor.Linear, true, gpu.None, "", 0},
		{13, 384, []int{1536}, tensor.F32, tensor.Linear, true, gpu.GELUErf, "", 0},
		{13, 1536, []int{384}, tensor.F32, tensor.Linear, true, gpu.None, "own", 0},
		{5, 768, []int{768}, tensor.F32, tensor.LookupLinear, true, gpu.GELUTanh, "dst", 0},
		{6, 33, []int{70}, tensor.F32, tensor.LinearT, true, gpu.Sigmoid, "own", 1},
		{9, 40, []int{51, 2}, tensor.F16, tensor.Linear, true, gpu.None, "own", 0},
		{70, 129, []int{50}, tensor.BF16, tensor.Linear, true, gpu.GELUErf, "", 0},
		{4, 65, []int{49}, tensor.BF16, tensor.LinearT, false, gpu.None, "", 0},
		{4, 65, []int{49}, tensor.F16, tensor.LinearT, true, gpu.None, "dst", 3},
	} {
		t.Run(fmt.Sprintf("%dx%dx%v %v %v %v res=%s pad=%d", c.m, c.k, c.n, c.d, c.role, c.act, c.res, c.pad), func(t *testing.T) {
			b := newBench(t, dev)
			x := b.random(c.m, c.k, 1)
			var gs, bs []grid
			var ws, biases []*gpu.Weight
			n := 0
			for i, rows := range c.n {
				g := b.random(rows, c.k, 1/math.Sqrt(float64(c.k)))
				ws = append(ws, b.weight(&g, c.d, c.role))
				gs = append(gs, g)
				bias, w := grid{}, (*gpu.Weight)(nil)
				if c.bias && (i != 1 || len(c.n) != 2) { // one group has a weight without
					bias = b.random(1, rows, 1)
					w = b.weight(&bias, c.d, tensor.Other)
				}
				bs, biases = append(bs, bias), append(biases, w)
				n += rows
			}
			group, err := gpu.NewGroup(ws, biases)
			if err != nil {
				t.Fatal(err)
			}
			var res *grid
			dst, e := b.room(c.m, n, c.pad), gpu.Epilogue{Act: c.act}
			if c.res != "" {
				g := b.random(c.m, n, 1)
				res = &g
				e.Residual = b.put(g, c.pad)
				if c.res == "dst" {
					dst = e.Residual
				}
			}
			b.s.Linear(dst, b.put(x, c.pad), group, e)
			b.check(dst, linearRef(x, gs, bs, c.act, res))
		})
	}
	t.Run("NaN and Inf", func(t *testing.T) {
		b := newBench(t, dev)
		x, w := b.random(4, 5, 1), b.random(3, 5, 1)
		x.set(1, 2, math.NaN())
		x.set(2, 0, math.Inf(1))
		x.set(3, 0, math.MaxFloat32)
		w.set(1, 0, 4)
		g, err := gpu.NewGroup([]*gpu.Weight{b.weight(&w, tensor.F32, tensor.Linear)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		dst := b.room(4, 3, 0)
		b.s.Linear(dst, b.put(x, 0), g, gpu.Epilogue{})
		b.check(dst, linearRef(x, []grid{w}, nil, gpu.None, nil))
	})
}

func testElementwise(t *testing.T, dev gpu.Device) {
	special := []float64{0, math.Copysign(0, -1), 1, -1, 1e-30, -1e-30, 5, -5, 20, -20, 88, -88, 104, -104, 1e30, -1e30,
		1e-45, math.Inf(1), math.NaN(), 0.3, -0.3, 2.5, -2.5, 4.7, -4.7, 1e-3, -1e-3, 9.5, -9.5}
	shapes := [][2]int{{1, 1}, {3, 5}, {17, 31}, {5, 1536}, {300, 257}}
	for a := gpu.None; a <= gpu.Sigmoid; a++ {
		for _, c := range shapes {
			t.Run(fmt.Sprintf("%v %v", a, c), func(t *testing.T) {
				b := newBench(t, dev)
				x := b.random(c[0], c[1], 3)
				dst := b.room(c[0], c[1], 2)
				b.s.Act(dst, b.put(x, 1), a)
				b.check(dst, actRef(a, x))
			})
		}
		t.Run(fmt.Sprintf("%v special, in place", a), func(t *testing.T) {
			b := newBench(t, dev)
			x := newGrid(1, len(special))
			for i, v := range special {
				x.v[i] = float64(float32(v))
			}
			m := b.put(x, 0)
			b.s.Act(m, m, a)
			b.check(m, actRef(a, x))
		})
	}
	for op := gpu.Add; op <= gpu.Max; op++ {
		for _, c := range shapes {
			for _, o := range [][2]int{c, {1, c[1]}, {c[0], 1}, {1, 1}} {
				t.Run(fmt.Sprintf("%v %v %v", op, c, o), func(t *testing.T) {
					b := newBench(t, dev)
					x, y := b.random(c[0], c[1], 2), b.random(o[0], o[1], 2)
					y.v[0] = math.Inf(1)
					x.v[len(x.v)-1] = math.NaN()
					dst := b.room(c[0], c[1], 3)
					b.s.Binary(op, dst, b.put(x, 1), b.put(y, 2))
					b.check(dst, binaryRef(op, x, y))
				})
			}
		}
		t.Run(fmt.Sprintf("%v in place and scalar", op), func(t *testing.T) {
			b := newBench(t, dev)
			x, y := b.random(7, 9, 2), b.random(7, 9, 2)
			m := b.put(y, 2)
			b.s.Binary(op, m, b.put(x, 1), m)
			b.check(m, binaryRef(op, x, y))
			f := newGrid(1, 1)
			f.v[0] = float64(float32(0.7))
			m = b.put(x, 1)
			b.s.Scalar(op, m, m, 0.7)
			b.check(m, binaryRef(op, x, f))
		})
	}
}

func testRows(t *testing.T, dev gpu.Device) {
	for _, c := range []struct {
		rows, cols int
		size       float64
		d          tensor.DType
		res        string
	}{{1, 1, 1, tensor.F32, ""}, {3, 5, 1, tensor.F32, "own"}, {7, 36, 10, tensor.F16, "dst"}, {50, 384, 1, tensor.F32, "own"}, {9, 768, 3, tensor.BF16, ""}, {0, 4, 1, tensor.F32, ""}} {
		t.Run(fmt.Sprintf("norms %dx%d %v res=%s", c.rows, c.cols, c.d, c.res), func(t *testing.T) {
			for _, center := range []bool{true, false} {
				b := newBench(t, dev)
				x, g, h := b.random(c.rows, c.cols, c.size), b.random(1, c.cols, 1), b.random(1, c.cols, 1)
				gamma, beta := b.weight(&g, c.d, tensor.Other), b.weight(&h, c.d, tensor.Other)
				xm := b.put(x, 1)
				dst, rm, res := b.room(c.rows, c.cols, 2), gpu.Matrix{}, (*grid)(nil)
				if c.res != "" {
					r := b.random(c.rows, c.cols, c.size)
					res, rm = &r, b.put(r, 3)
					if c.res == "dst" {
						dst = rm
					}
				}
				const eps = 1e-5
				if center {
					b.s.LayerNorm(dst, xm, rm, gamma, beta, eps)
					b.check(dst, normRef(x, res, g.v, h.v, float64(float32(eps)), true))
				} else {
					b.s.RMSNorm(dst, xm, rm, gamma, eps)
					b.check(dst, normRef(x, res, g.v, nil, float64(float32(eps)), false))
				}
			}
		})
		t.Run(fmt.Sprintf("softmax, l2 %dx%d size %v", c.rows, c.cols, c.size), func(t *testing.T) {
			b := newBench(t, dev)
			x := b.random(c.rows, c.cols, 8*c.size)
			dst := b.room(c.rows, c.cols, 1)
			b.s.Softmax(dst, b.put(x, 2))
			b.check(dst, softmaxRef(x))
			m := b.put(x, 1)
			b.s.L2Normalize(m, m, 1e-12)
			b.check(m, l2Ref(x, 1e-12))
		})
	}
	t.Run("softmax of the extreme", func(t *testing.T) {
		b := newBench(t, dev)
		inf, nan := math.Inf(1), math.NaN()
		x := grid{6, 3, []float64{-inf, 0, 1, -inf, -inf, -inf, 0, inf, 1, 1, nan, 2, 1e30, -1e30, 0, 80, 80, -80}}
		for i, v := range x.v {
			x.v[i] = float64(float32(v))
		}
		want := softmaxRef(x)
		for _, row := range []int{1, 2, 3} { // -Inf alone, +Inf, NaN
			for j := range 3 {
				want.want.set(row, j, nan)
			}
		}
		m := b.put(x, 0)
		b.s.Softmax(m, m)
		b.check(m, want)
	})
	t.Run("l2 of zeros", func(t *testing.T) {
		b := newBench(t, dev)
		m := b.put(newGrid(2, 3), 0)
		b.s.L2Normalize(m, m, 1e-12)
		b.check(m, newAnswer(2, 3))
	})
	t.Run("meanpool", func(t *testing.T) {
		b := newBench(t, dev)
		x := b.random(40, 37, 1)
		starts := []int{0, 1, 1, 12, 39, 40}
		mask := make([]int32, 40)
		for i := range 39 { // the last sequence is hidden
			mask[i] = int32(i * i % 3)
		}
		x.set(3, 2, math.NaN()) // 9%3 == 0, so hidden
		xm, dst := b.put(x, 1), b.room(5, 37, 2)
		b.s.MeanPool(dst, xm, b.s.Ragged(starts, mask))
		b.check(dst, meanRef(x, starts, mask))
		dst = b.room(5, 37, 0)
		b.s.MeanPool(dst, xm, b.s.Ragged(starts, nil))
		b.check(dst, meanRef(x, starts, nil))
	})
	t.Run("copy, zero", func(t *testing.T) {
		b := newBench(t, dev)
		x := b.random(5, 7, 1)
		dst := b.room(5, 7, 3)
		b.s.Copy(dst, b.put(x, 1))
		b.check(dst, answer{x, newGrid(5, 7)})
		b.s.Zero(dst.Slice(1, 3).Columns(2, 4))
		for i := 1; i < 4; i++ {
			for j := 2; j < 6; j++ {
				x.set(i, j, 0)
			}
		}
		b.check(dst, answer{x, newGrid(5, 7)})
	})
}

func testAttention(t *testing.T, dev gpu.Device) {
	type attention struct {
		heads, kv, size int
		starts          []int
		mask            string
		scale           float32
		causal          bool
	}
	cases := []attention{
		{1, 1, 1, []int{0, 1}, "", 0, false},
		{3, 3, 12, []int{0, 5, 6, 6, 30}, "", 0, false},
		{2, 2, 8, []int{0, 7, 24}, "holes", 0.5, false},
		{12, 12, 32, []int{0, 31, 33, 70}, "", 0, false},
		{1, 1, 64, []int{0, 203}, "holes", 0, false},
		{2, 2, 128, []int{0, 17, 50}, "", 0, false},
		{2, 2, 5, []int{0, 9, 20}, "one hidden", 0, false},
		{4, 4, 4, []int{0}, "", 0, false},
		{3, 3, 12, []int{0, 5, 6, 6, 30}, "", 0, true},
		{2, 2, 5, []int{0, 9, 20}, "one hidden", 0, true},
		{6, 2, 32, []int{0, 31, 33, 70}, "", 0, false},
	}
	for _, size := range []int{8, 24, 32, 64, 80, 128} { // of real models, and longer than any block
		cases = append(cases, attention{4, 2, size, []int{0, 7, 211}, "", 0, true}, attention{2, 1, size, []int{0, 205, 230}, "holes", 0, true},
			attention{2, 2, size, []int{0, 216}, "", 0, false})
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d heads of %d on %d, %v %s causal=%v", c.heads, c.size, c.kv, c.starts, c.mask, c.causal), func(t *testing.T) {
			b := newBench(t, dev)
			n, h, kv := c.starts[len(c.starts)-1], c.heads*c.size, c.kv*c.size
			all := b.random(n, h+2*kv, 1.5)
			var mask []int32
			if c.mask != "" {
				mask = make([]int32, n)
				for i := range mask {
					mask[i] = int32((i + 1) % 3)
					if c.mask == "one hidden" && i < c.starts[1] {
						mask[i] = 0
					}
					if mask[i] == 0 {
						all.set(i, h+kv, math.NaN()) // what is hidden does not count, whatever it is
						for j := h; j < h+kv; j++ {
							all.set(i, j, 1e4)
						}
					}
				}
			} else if c.causal && n > 0 { // nor does what comes later
				all.set(n-1, h+kv, math.NaN())
				all.set(n-1, h+2*kv-1, math.Inf(1))
			}
			part := func(from, cols int) grid {
				g := newGrid(n, cols)
				for i := range n {
					copy(g.v[i*cols:(i+1)*cols], all.v[i*all.cols+from:])
				}
				return g
			}
			m := b.put(all, 1) // Q, K and V side by side
			dst := b.room(n, h, 2)
			b.s.Attention(dst, m.Columns(0, h), m.Columns(h, kv), m.Columns(h+kv, kv),
				gpu.Attention{Heads: c.heads, KVHeads: c.kv, Scale: c.scale, Seqs: b.s.Ragged(c.starts, mask), Causal: c.causal})
			b.check(dst, attentionRef(part(0, h), part(h, kv), part(h+kv, kv), c.heads, float64(c.scale), c.starts, mask, c.causal, nil))
		})
	}
}

func testDistances(t *testing.T, dev gpu.Device) {
	for _, c := range []struct {
		name                string
		heads, size         int
		starts              []int
		masked, causal      bool
		window, numbers     int
		bias, keys, queries bool
	}{
		{name: "window", heads: 2, size: 12, starts: []int{0, 1, 30, 77}, window: 5},
		{name: "window of nothing but itself and its neighbours", heads: 1, size: 64, starts: []int{0, 40}, window: 1, masked: true},
		{name: "window wider than all", heads: 3, size: 8, starts: []int{0, 7, 20}, window: 64},
		{name: "causal window", heads: 2, size: 16, starts: []int{0, 50}, window: 7, causal: true},
		{name: "long window", heads: 2, size: 32, starts: []int{0, 211, 300}, window: 17},
		{name: "long bias and window", heads: 3, size: 40, starts: []int{0, 140, 141, 300}, window: 64, bias: true},
		{name: "bias, long", heads: 2, size: 64, starts: []int{0, 205}, bias: true},
		{name: "bias", heads: 12, size: 64, starts: []int{0, 31, 31, 64}, bias: true},
		{name: "bias, masked", heads: 3, size: 5, starts: []int{0, 9, 40}, bias: true, masked: true},
		{name: "relative keys", heads: 2, size: 12, starts: []int{0, 6, 23}, numbers: 9, keys: true},
		{name: "relative queries", heads: 2, size: 12, starts: []int{0, 6, 23}, numbers: 9, queries: true},
		{name: "all at once", heads: 4, size: 24, starts: []int{0, 40, 41}, numbers: 32, keys: true, queries: true, bias: true, window: 20, masked: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, dev)
			n, h := c.starts[len(c.starts)-1], c.heads*c.size
			qg, kg, vg := b.random(n, h, 1), b.random(n, h, 1), b.random(n, h, 1)
			var mask []int32
			if c.masked {
				mask = make([]int32, n)
				for i := range mask {
					if mask[i] = int32((i + 1) % 3); mask[i] == 0 {
						vg.set(i, 0, math.NaN())
					}
				}
			}
			if c.window > 0 && c.starts[1] > 2*c.window+2 { // what no query of a window sees does not count for it, whatever it is
				vg.set(0, 0, math.Inf(1))
			}
			seqs := b.s.Ragged(c.starts, mask)
			far := &distances{window: c.window, longest: seqs.MaxLen}
			a := gpu.Attention{Heads: c.heads, Seqs: seqs, Causal: c.causal, Window: c.window}
			around := 2*seqs.MaxLen - 1
			if c.bias {
				g := b.random(around, c.heads, 1)
				far.bias, a.Bias = &g, b.put(g, 3)
			}
			if c.numbers > 0 {
				far.ids = make([]int32, around)
				for i := range far.ids {
					far.ids[i] = int32(i * 7 % c.numbers)
				}
				a.Relative.IDs = b.ints(far.ids)
			}
			if c.keys {
				g := b.random(c.numbers, h, 1)
				far.keys, a.Relative.Keys = &g, b.put(g, 1)
			}
			if c.queries {
				g := b.random(c.numbers, h, 1)
				far.more, a.Relative.Queries = &g, b.put(g, 0)
			}
			dst := b.room(n, h, 2)
			b.s.Attention(dst, b.put(qg, 0), b.put(kg, 1), b.put(vg, 2), a)
			b.check(dst, attentionRef(qg, kg, vg, c.heads, 0, c.starts, mask, c.causal, far))
		})
	}
	for name, id := range map[string]int32{"negative": -1, "past the end": 4} {
		t.Run("number "+name, func(t *testing.T) {
			b := newBench(t, dev)
			x, dst := b.put(b.random(2, 4, 1), 0), b.room(2, 4, 0)
			a := gpu.Attention{Heads: 2, Seqs: b.s.Ragged([]int{0, 2}, nil)}
			a.Relative = gpu.Relative{IDs: b.ints([]int32{0, id, 0}), Keys: b.put(b.random(4, 4, 1), 0)}
			b.s.Attention(dst, x, x, x, a)
			b.wantError(gpu.ErrIndex, "attention")
		})
	}
}

func testUnfold(t *testing.T, dev gpu.Device) {
	for _, kernel := range []int{1, 3, 7} {
		t.Run(fmt.Sprint(kernel), func(t *testing.T) {
			b := newBench(t, dev)
			starts, mask := []int{0, 1, 1, 6, 20}, make([]int32, 20)
			x := b.random(20, 5, 1)
			for i := range mask {
				if mask[i] = int32(boolInt(i%4 != 3)); mask[i] == 0 {
					x.set(i, 2, math.NaN())
				}
			}
			want := newAnswer(20, 5*kernel)
			for s := range len(starts) - 1 {
				for i := starts[s]; i < starts[s+1]; i++ {
					for j := range kernel {
						if at := i + j - kernel/2; at >= starts[s] && at < starts[s+1] && mask[at] != 0 {
							for c := range 5 {
								want.set(i, c*kernel+j, x.at(at, c), 0)
							}
						}
					}
				}
			}
			dst := b.room(20, 5*kernel, 2)
			b.s.Unfold(dst, b.put(x, 1), kernel, b.s.Ragged(starts, mask))
			b.check(dst, want)
		})
	}
}

func testRotate(t *testing.T, dev gpu.Device) {
	for _, c := range []struct{ rows, heads, size int }{{1, 1, 2}, {7, 3, 8}, {40, 12, 64}, {0, 2, 4}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			b := newBench(t, dev)
			x, cos, sin := b.random(c.rows, c.heads*c.size, 2), b.random(c.rows, c.size/2, 1), b.random(c.rows, c.size/2, 1)
			want := newAnswer(c.rows, c.heads*c.size)
			for i := range c.rows {
				for h := range c.heads {
					for k := range c.size / 2 {
						lo, hi := h*c.size+k, h*c.size+k+c.size/2
						p, q, cs, sn := x.at(i, lo), x.at(i, hi), cos.at(i, k), sin.at(i, k)
						bound := func(a, b float64) float64 { return 3*u*(math.Abs(a)+math.Abs(b)) + tiny } // two products and a sum
						want.set(i, lo, p*cs-q*sn, bound(p*cs, q*sn))
						want.set(i, hi, q*cs+p*sn, bound(q*cs, p*sn))
					}
				}
			}
			xm, dst := b.put(x, 1), b.room(c.rows, c.heads*c.size, 2)
			b.s.Rotate(dst, xm, b.put(cos, 0), b.put(sin, 1), c.heads)
			b.check(dst, want)
			b.s.Rotate(xm, xm, b.put(cos, 0), b.put(sin, 1), c.heads)
			b.check(xm, want)
		})
	}
}

func testGather(t *testing.T, dev gpu.Device) {
	for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
		t.Run(d.String(), func(t *testing.T) {
			b := newBench(t, dev)
			ids := [][]int32{{0, 5, 10, 3, 3}, {1, 1, 0, 0, 1}, {6, 0, 1, 2, 3}}
			gs := []grid{b.random(11, 37, 1), b.random(2, 37, 1), b.random(7, 37, 1e-6)} // subnormal in F16
			var tables []gpu.Lookup
			for i := range gs {
				role := [3]tensor.Role{tensor.LookupLinear, tensor.Lookup, tensor.Lookup}[i]
				tables = append(tables, gpu.Lookup{Table: b.weight(&gs[i], d, role), IDs: b.ints(ids[i])})
			}
			dst := b.room(5, 37, 1)
			b.s.Gather(dst, tables)
			b.check(dst, gatherRef(gs, ids))
			picked := b.room(3, 37, 2)
			b.s.Pick(picked, dst, b.ints([]int32{4, 0, 4}))
			a := gatherRef(gs, [][]int32{{3, 0, 3}, {1, 1, 1}, {3, 6, 3}})
			b.check(picked, a)
		})
	}
	for name, id := range map[string]int32{"negative": -1, "past the end": 4, "far": math.MaxInt32} {
		t.Run("index "+name, func(t *testing.T) {
			b := newBench(t, dev)
			g := b.random(4, 3, 1)
			dst := b.room(2, 3, 0)
			b.s.Gather(dst, []gpu.Lookup{{Table: b.weight(&g, tensor.F32, tensor.Lookup), IDs: b.ints([]int32{0, id})}})
			b.wantError(gpu.ErrIndex, "gather")
			b.s.Pick(dst, b.put(g, 0), b.ints([]int32{0, id}))
			b.wantError(gpu.ErrIndex, "pick")
		})
	}
}
