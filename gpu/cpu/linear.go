package cpu

import (
	"math"

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
	forms := &q.rounded.forms
	var made [pack.Int8 + 1]bool
	for i := range g.Len() {
		w, _ := g.At(i)
		tiles += tilesOf(w, x.Rows)
		if f := w.Data().(*weight).form; f > pack.F32 && !made[f] {
			q.operands(&tileSet{lineBytes: 4 * f.Inputs()}, f, x) // 4 bytes for each value
			made[f] = true
		}
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
			rows, depth := panel(w, n0, n1, s)
			o := operands{f: xs, ld: x.Stride}
			c := w.Data().(*weight)
			if c.form > pack.F32 {
				o = forms[c.form]
			}
			b := vector(bias, &s.bias)
			s.sums = grow(s.sums, tileM*tileN)
			for ; i0 < i1; i0 += tileM {
				top := min(i0+tileM, i1)
				if c.form == pack.Int8 {
					productInt8(s.sums, c, n0, n1, o, i0, top, b)
				} else {
					product(s.sums, n1-n0, o.f[i0*o.ld:], top-i0, o.ld, rows, n1-n0, depth, depth)
				}
				for r := i0; r < top; r++ {
					out := ds[r*dst.Stride+col+n0 : r*dst.Stride+col+n1]
					acc := s.sums[(r-i0)*(n1-n0):][:n1-n0]
					if b != nil && c.form != pack.Int8 {
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

// panel is the rows n0 to n1 of a weight, depth elements each, one behind the other: in place, or widened or turned. In
// BF16 each two change places, for that is the order in which they are added.
func panel(w *gpu.Weight, n0, n1 int, s *scratch) (rows []float32, depth int) {
	c := w.Data().(*weight)
	depth = w.K
	switch c.form {
	case 0:
		if w.Role != tensor.LinearT && c.half == nil {
			return c.f32[n0*w.K : n1*w.K], depth
		}
	case pack.BF16:
		depth += w.PadK
	case pack.Int8:
		return nil, 0
	}
	s.pack = grow(s.pack, (n1-n0)*depth)
	for n := n0; n < n1; n++ {
		row := s.pack[(n-n0)*depth : (n-n0+1)*depth]
		switch {
		case c.form == pack.BF16:
			lines := c.panel(n)
			for k := 0; k < depth; k += 2 {
				two := math.Float32bits(lines[k/2*pack.Lanes])
				row[k], row[k+1] = math.Float32frombits(two&0xffff0000), math.Float32frombits(two<<16)
			}
		case c.form == pack.F32:
			lines := c.panel(n)
			for k := range row {
				row[k] = lines[k*pack.Lanes]
			}
		case w.Role != tensor.LinearT:
			c.row(n, row)
		default:
			for k := range row {
				row[k] = c.at(k*w.N + n)
			}
		}
	}
	return s.pack, depth
}

// productInt8 is product for panels of 8 bits: the outputs n0 to n1 of the rows from one to another, with bias. The sums are
// exact, and what makes F32 of them rounds as the kernels do.
func productInt8(out []float32, c *weight, n0, n1 int, x operands, from, to int, bias []float32) {
	for i := from; i < to; i++ {
		row, scale := int32s(x.f[i*x.ld:]), x.scales[i]
		for n := n0; n < n1; n++ {
			lines := c.panel(n)
			behind := lines[c.size.Lines()*pack.Lanes:]
			sum := scale.less * int32(math.Float32bits(behind[pack.Lanes]))
			for k := range c.cols {
				four := math.Float32bits(lines[k/4*pack.Lanes])
				sum += row[k] * int32(int8(four>>(k%4*8)))
			}
			var b float32
			if bias != nil {
				b = bias[n]
			}
			out[(i-from)*(n1-n0)+n-n0] = fma(float32(float32(sum)*behind[0]), scale.scale, b)
		}
	}
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
