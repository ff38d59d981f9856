package gputest

import (
	"fmt"
	"math"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// testSizes goes over what kernels treat apart: every height of a tile with every kind of tail, head sizes, rows as long as
// real ones, row distances that are multiples of a page, and a fine net of arguments for each function.
func testSizes(t *testing.T, dev gpu.Device) {
	t.Run("linear", func(t *testing.T) {
		for m := 1; m <= 40; m++ {
			for _, nk := range [][2]int{{1, 1}, {15, 3}, {16, 16}, {17, 4}, {33, 35}, {53, 21}, {69, 6}, {128, 64}} {
				product(t, dev, m, nk[0], nk[1], m%4)
			}
		}
	})
	for _, c := range [][3]int{{40, 1536, 384}, {40, 384, 1536}, {201, 384, 384}, {14, 768, 768}, {13, 40, 3072}, {13, 24, 1024}, {12, 16, 2048}} {
		t.Run(fmt.Sprintf("linear %v", c), func(t *testing.T) { product(t, dev, c[0], c[1], c[2], 0) })
	}
	for _, size := range []int{8, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128} {
		t.Run(fmt.Sprintf("attention of %d", size), func(t *testing.T) {
			for _, mask := range []string{"", "every fifth", "half of one"} {
				starts := []int{0, 1, 17, 50, 51, 83}
				attend(t, dev, 2, size, starts, mask)
			}
		})
	}
	t.Run("attention of 207 positions", func(t *testing.T) {
		attend(t, dev, 12, 32, []int{0, 207, 240}, "")
		attend(t, dev, 3, 64, []int{0, 12, 219}, "every fifth")
	})
	for _, cols := range []int{1, 15, 16, 17, 31, 33, 203, 384, 768, 1000, 1024} {
		t.Run(fmt.Sprintf("rows of %d", cols), func(t *testing.T) { rowOps(t, dev, 5, cols) })
	}
	t.Run("functions", func(t *testing.T) { net(t, dev) })
}

// product is one linear with all that an epilogue can have, checked.
func product(t *testing.T, dev gpu.Device, m, n, k, pad int) {
	t.Helper()
	b := newBench(t, dev)
	x, w, bias, res := b.random(m, k, 1), b.random(n, k, 1/math.Sqrt(float64(k))), b.random(1, n, 1), b.random(m, n, 1)
	group, err := gpu.NewGroup([]*gpu.Weight{b.weight(&w, tensor.F32, tensor.Linear)}, []*gpu.Weight{b.weight(&bias, tensor.F32, tensor.Other)})
	if err != nil {
		t.Fatal(err)
	}
	xm, dst := b.put(x, pad), b.room(m, n, pad)
	b.s.Linear(dst, xm, group, gpu.Epilogue{Residual: b.put(res, 1)})
	b.check(dst, linearRef(x, []grid{w}, []grid{bias}, gpu.None, &res))
}

func attend(t *testing.T, dev gpu.Device, heads, size int, starts []int, how string) {
	t.Helper()
	b := newBench(t, dev)
	n, h := starts[len(starts)-1], heads*size
	q, k, v := b.random(n, h, 1.5), b.random(n, h, 1), b.random(n, h, 1)
	var mask []int32
	if how != "" {
		mask = make([]int32, n)
		for i := range mask {
			mask[i] = int32(boolInt(i%5 != 2))
			if how == "half of one" {
				mask[i] = int32(boolInt(i < starts[2]/2 || i >= starts[2]))
			}
			if mask[i] == 0 {
				v.set(i, 0, math.NaN())
				k.set(i, 0, math.Inf(1))
			}
		}
	}
	dst := b.room(n, h, 1)
	b.s.Attention(dst, b.put(q, 2), b.put(k, 0), b.put(v, 3), gpu.Attention{Heads: heads, Seqs: b.s.Ragged(starts, mask)})
	b.check(dst, attentionRef(q, k, v, heads, 0, starts, mask, false, nil))
}

// rowOps are the ops that reduce rows, in place and not, and with a row that is not finite between others that are.
func rowOps(t *testing.T, dev gpu.Device, rows, cols int) {
	t.Helper()
	b := newBench(t, dev)
	x, res, g, h := b.random(rows, cols, 2), b.random(rows, cols, 1), b.random(1, cols, 1), b.random(1, cols, 1)
	gamma, beta := b.weight(&g, tensor.F32, tensor.Other), b.weight(&h, tensor.F32, tensor.Other)
	const eps = 1e-5
	e := float64(float32(eps))
	m, r := b.put(x, 1), b.put(res, 2)
	dst := b.room(rows, cols, 3)
	b.s.LayerNorm(dst, m, gpu.Matrix{}, nil, nil, eps)
	b.check(dst, normRef(x, nil, nil, nil, e, true))
	b.s.LayerNorm(dst, m, r, gamma, beta, eps)
	b.check(dst, normRef(x, &res, g.v, h.v, e, true))
	b.s.RMSNorm(r, m, r, gamma, eps) // over the residual
	b.check(r, normRef(x, &res, g.v, nil, e, false))
	b.s.Softmax(dst, m)
	b.check(dst, softmaxRef(x))
	low := newGrid(rows, cols) // so low that exp of any is 0: the largest must be one of the row
	for i, v := range x.v {
		low.v[i] = float64(float32(v - 300))
	}
	b.s.Softmax(dst, b.put(low, 0))
	b.check(dst, softmaxRef(low))
	b.s.LayerNorm(m, m, gpu.Matrix{}, gamma, beta, eps) // in place
	b.check(m, normRef(x, nil, g.v, h.v, e, true))

	x.set(1, cols/2, math.NaN())
	x.set(3, cols-1, math.Inf(1))
	m = b.put(x, 0)
	softmax, norm := softmaxRef(x), normRef(x, nil, nil, nil, e, true)
	for j := range cols {
		for _, a := range []answer{softmax, norm} {
			a.want.set(1, j, math.NaN())
			a.want.set(3, j, math.NaN())
		}
	}
	b.s.Softmax(dst, m)
	b.check(dst, softmax)
	b.s.LayerNorm(dst, m, gpu.Matrix{}, nil, nil, eps)
	b.check(dst, norm)
}

// net takes each activation over arguments that are close together where functions bend, and over all sizes.
func net(t *testing.T, dev gpu.Device) {
	t.Helper()
	var xs []float64
	for i := -6000; i <= 6000; i++ {
		xs = append(xs, float64(i)/400) // -15 to 15
	}
	for e := -149.0; e < 128; e++ {
		for _, f := range []float64{1, 1.37, 1.99} {
			xs = append(xs, f*math.Pow(2, e), -f*math.Pow(2, e))
		}
	}
	x := newGrid(1, len(xs))
	for i, v := range xs {
		x.v[i] = float64(float32(v))
	}
	for a := gpu.ReLU; a <= gpu.Sigmoid; a++ {
		t.Run(a.String(), func(t *testing.T) {
			b := newBench(t, dev)
			dst := b.room(1, len(xs), 0)
			b.s.Act(dst, b.put(x, 0), a)
			b.check(dst, actRef(a, x))
		})
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
