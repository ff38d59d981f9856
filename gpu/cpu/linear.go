package cpu

import (
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// A tile of a product is tileM rows of x by tileN rows of a weight: 3 goes into tileN and 2 into tileM, and both pieces
// stay in the second-level cache for the row lengths of the usual models.
const (
	tileM = 64
	tileN = 48
)

// Linear implements gpu.Queue.
func (q *queue) Linear(dst, x gpu.Matrix, g *gpu.Group, e gpu.Epilogue) {
	if dst.Rows == 0 || dst.Cols == 0 {
		return
	}
	if k := q.d.k; k != nil && g.K() > 0 {
		q.linearTiles(k, dst, x, g, e)
	} else {
		q.linearGo(dst, x, g, e)
	}
}

// linearGo is Linear in plain Go.
func (q *queue) linearGo(dst, x gpu.Matrix, g *gpu.Group, e gpu.Epilogue) {
	xs, ds := floats(x), floats(dst)
	var rs []float32
	if e.Residual.Buf != nil {
		rs = floats(e.Residual)
	}
	tiles := 0
	for i := range g.Len() {
		w, _ := g.At(i)
		tiles += tilesOf(w, x.Rows)
	}
	q.parallel(tiles, x.Rows*g.N()*max(g.K(), 1), each(func(t int, s *scratch) {
		col := 0 // of dst, where the weight begins
		for i := range g.Len() {
			w, bias := g.At(i)
			if n := tilesOf(w, x.Rows); t >= n {
				t -= n
				col += w.N
				continue
			}
			m, step := tilesDown(w, x.Rows)
			n0, i0 := t/m*tileN, t%m*step
			n1, i1 := min(n0+tileN, w.N), min(i0+step, x.Rows)
			rows := panel(w, n0, n1, s)
			b := vector(bias, &s.bias)
			s.sums = grow(s.sums, tileM*tileN)
			for ; i0 < i1; i0 += tileM {
				top := min(i0+tileM, i1)
				product(s.sums, n1-n0, xs[i0*x.Stride:], top-i0, x.Stride, rows, n1-n0, g.K(), g.K())
				for r := i0; r < top; r++ {
					out := ds[r*dst.Stride+col+n0 : r*dst.Stride+col+n1]
					acc := s.sums[(r-i0)*(n1-n0):][:n1-n0]
					if b != nil {
						for j, v := range b[n0:n1] {
							acc[j] += v
						}
					}
					activate(acc, e.Act)
					if rs != nil {
						for j, v := range rs[r*e.Residual.Stride+col+n0:][:n1-n0] {
							acc[j] += v
						}
					}
					copy(out, acc)
				}
			}
			return
		}
	}))
}

// tilesDown is into how many tasks the rows of x are divided and how many rows each has. A weight that has to be
// widened or turned first is so once, for all rows.
func tilesDown(w *gpu.Weight, rows int) (tasks, step int) {
	if w.DType != tensor.F32 || w.Role == tensor.LinearT || w.Layout != gpu.Plain {
		return 1, rows
	}
	return (rows + tileM - 1) / tileM, tileM
}

func tilesOf(w *gpu.Weight, rows int) int {
	m, _ := tilesDown(w, rows)
	return m * ((w.N + tileN - 1) / tileN)
}

// panel is the rows n0 to n1 of a weight, K elements each, one behind the other: in place, or widened or turned.
func panel(w *gpu.Weight, n0, n1 int, s *scratch) []float32 {
	c := w.Data().(*weight)
	if w.Role != tensor.LinearT && c.half == nil && !c.packed {
		return c.f32[n0*w.K : n1*w.K]
	}
	s.pack = grow(s.pack, (n1-n0)*w.K)
	for n := n0; n < n1; n++ {
		row := s.pack[(n-n0)*w.K : (n-n0+1)*w.K]
		if c.packed {
			for k := range row {
				row[k] = c.f32[(n/pack.Lanes*w.K+k)*pack.Lanes+n%pack.Lanes]
			}
			continue
		}
		if w.Role != tensor.LinearT {
			c.row(n, row)
			continue
		}
		for k := range row {
			row[k] = c.at(k*w.N + n)
		}
	}
	return s.pack
}

// product writes a b^T into c: a is m rows of k elements lda apart, b is n rows ldb apart, c has rows of ldc. Each
// element is one sum from the first k to the last, whichever of the loops below it falls to.
func product(c []float32, ldc int, a []float32, m, lda int, b []float32, n, ldb, k int) {
	var t [6]float32
	j := 0
	for ; j+3 <= n; j += 3 {
		b0, b1, b2 := b[j*ldb:j*ldb+k], b[(j+1)*ldb:(j+1)*ldb+k], b[(j+2)*ldb:(j+2)*ldb+k]
		i := 0
		for ; i+2 <= m; i += 2 {
			dot2x3(&t, a[i*lda:i*lda+k], a[(i+1)*lda:(i+1)*lda+k], b0, b1, b2)
			o := c[i*ldc+j : i*ldc+j+3]
			o[0], o[1], o[2] = t[0], t[1], t[2]
			o = c[(i+1)*ldc+j : (i+1)*ldc+j+3]
			o[0], o[1], o[2] = t[3], t[4], t[5]
		}
		if i < m {
			dot1x3(&t, a[i*lda:i*lda+k], b0, b1, b2)
			o := c[i*ldc+j : i*ldc+j+3]
			o[0], o[1], o[2] = t[0], t[1], t[2]
		}
	}
	for ; j < n; j++ {
		for i := range m {
			c[i*ldc+j] = dot(a[i*lda:i*lda+k], b[j*ldb:j*ldb+k])
		}
	}
}

// The conversions below forbid the compiler to fuse a product with its sum, which it might do in one loop and not in
// another. Two by three sums are what fits the registers: four by four takes three times as long.

func dot2x3(c *[6]float32, a0, a1, b0, b1, b2 []float32) {
	n := len(a0)
	a1, b0, b1, b2 = a1[:n], b0[:n], b1[:n], b2[:n]
	var c00, c01, c02, c10, c11, c12 float32
	for k := range n {
		x0, x1 := a0[k], a1[k]
		y0 := b0[k]
		c00 += float32(x0 * y0)
		c10 += float32(x1 * y0)
		y1 := b1[k]
		c01 += float32(x0 * y1)
		c11 += float32(x1 * y1)
		y2 := b2[k]
		c02 += float32(x0 * y2)
		c12 += float32(x1 * y2)
	}
	*c = [6]float32{c00, c01, c02, c10, c11, c12}
}

func dot1x3(c *[6]float32, a, b0, b1, b2 []float32) {
	n := len(a)
	b0, b1, b2 = b0[:n], b1[:n], b2[:n]
	var c0, c1, c2 float32
	for k := range n {
		x := a[k]
		c0 += float32(x * b0[k])
		c1 += float32(x * b1[k])
		c2 += float32(x * b2[k])
	}
	c[0], c[1], c[2] = c0, c1, c2
}

func dot(a, b []float32) float32 {
	b = b[:len(a)]
	var c float32
	for k, x := range a {
		c += float32(x * b[k])
	}
	return c
}
