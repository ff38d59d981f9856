package cpu

import (
	"fmt"
	"math"
	"runtime/debug"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// queue runs each op before the call returns.
type queue struct {
	d   *Device
	err error
}

func (q *queue) Sync() error {
	err := q.err
	q.err = nil
	return err
}

func (q *queue) Close() error { return nil }

// fail keeps the first error for Sync.
func (q *queue) fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

// caught is deferred, with region.On, by whatever reads memory that may be a mapping on the calling goroutine: a file that was
// cut is an error of Sync. Pieces of an op that run in parallel are guarded there.
func (q *queue) caught(before bool) {
	debug.SetPanicOnFault(before)
	if p := recover(); p != nil {
		q.fail(region.FaultOf(p))
	}
}

// floats is the memory of a matrix from its first element on.
func floats(m gpu.Matrix) []float32 { return m.Buf.(*buf).f[m.Off:] }

func row(f []float32, m gpu.Matrix, i int) []float32 { return f[i*m.Stride : i*m.Stride+m.Cols] }

// Upload implements gpu.Queue.
func (q *queue) Upload(dst gpu.Matrix, src []float32) {
	defer q.caught(region.On())
	f := floats(dst)
	for i := range dst.Rows {
		copy(row(f, dst, i), src[i*dst.Cols:])
	}
}

// UploadInts implements gpu.Queue.
func (q *queue) UploadInts(dst gpu.Matrix, src []int32) {
	defer q.caught(region.On())
	f := int32s(floats(dst))
	for i := range dst.Rows {
		copy(f[i*dst.Stride:i*dst.Stride+dst.Cols], src[i*dst.Cols:])
	}
}

// Download implements gpu.Queue.
func (q *queue) Download(dst []float32, src gpu.Matrix) {
	f := floats(src)
	for i := range src.Rows {
		copy(dst[i*src.Cols:(i+1)*src.Cols], row(f, src, i))
	}
}

// Copy implements gpu.Queue.
func (q *queue) Copy(dst, src gpu.Matrix) {
	d, f := floats(dst), floats(src)
	for i := range src.Rows {
		copy(row(d, dst, i), row(f, src, i))
	}
}

// Zero implements gpu.Queue.
func (q *queue) Zero(dst gpu.Matrix) {
	f := floats(dst)
	for i := range dst.Rows {
		clear(row(f, dst, i))
	}
}

// rows calls f for every row, each costing about work multiplications.
func (q *queue) rows(m gpu.Matrix, work int, f func(i int, s *scratch)) {
	q.fail(q.d.parallel(m.Rows, m.Rows*m.Cols*work, f))
}

// Binary implements gpu.Queue.
func (q *queue) Binary(op gpu.Binary, dst, a, b gpu.Matrix) {
	ds, as, bs := floats(dst), floats(a), floats(b)
	q.rows(dst, 1, func(i int, _ *scratch) {
		d, x := row(ds, dst, i), row(as, a, i)
		y := row(bs, b, i*boolInt(b.Rows != 1))
		if b.Cols == 1 && a.Cols != 1 {
			scalar(op, d, x, y[0])
			return
		}
		switch op {
		case gpu.Add:
			for j := range d {
				d[j] = x[j] + y[j]
			}
		case gpu.Mul:
			for j := range d {
				d[j] = x[j] * y[j]
			}
		default:
			for j := range d {
				d[j] = binary(op, x[j], y[j])
			}
		}
	})
}

// Scalar implements gpu.Queue.
func (q *queue) Scalar(op gpu.Binary, dst, a gpu.Matrix, f float32) {
	ds, as := floats(dst), floats(a)
	q.rows(dst, 1, func(i int, _ *scratch) { scalar(op, row(ds, dst, i), row(as, a, i), f) })
}

func scalar(op gpu.Binary, d, x []float32, f float32) {
	for j := range d {
		d[j] = binary(op, x[j], f)
	}
}

func binary(op gpu.Binary, x, y float32) float32 {
	switch op {
	case gpu.Add:
		return x + y
	case gpu.Sub:
		return x - y
	case gpu.Mul:
		return x * y
	case gpu.Div:
		return x / y
	case gpu.Min:
		return min(x, y)
	default:
		return max(x, y)
	}
}

// Act implements gpu.Queue.
func (q *queue) Act(dst, x gpu.Matrix, a gpu.Act) {
	ds, xs := floats(dst), floats(x)
	q.rows(x, 16, func(i int, s *scratch) {
		d := row(ds, dst, i)
		if k := q.d.k; k != nil && k.acts[a] != nil && len(d) > 0 {
			s.block = block{dst: &d[0], src: &row(xs, x, i)[0], rows: 1, cols: len(d)}
			k.acts[a](&s.block)
			return
		}
		copy(d, row(xs, x, i))
		activate(d, a)
	})
}

// LayerNorm implements gpu.Queue.
func (q *queue) LayerNorm(dst, x, residual gpu.Matrix, gamma, beta *gpu.Weight, eps float32) {
	q.norm(dst, x, residual, gamma, beta, eps, true)
}

// RMSNorm implements gpu.Queue.
func (q *queue) RMSNorm(dst, x, residual gpu.Matrix, gamma *gpu.Weight, eps float32) {
	q.norm(dst, x, residual, gamma, nil, eps, false)
}

func (q *queue) norm(dst, x, residual gpu.Matrix, gamma, beta *gpu.Weight, eps float32, center bool) {
	defer q.caught(region.On())
	ds, xs := floats(dst), floats(x)
	var rs []float32
	if residual.Buf != nil {
		rs = floats(residual)
	}
	var gs, bs []float32 // memory for 16-bit gains
	g, b := vector(gamma, &gs), vector(beta, &bs)
	q.rows(x, 4, func(i int, s *scratch) {
		d, v := row(ds, dst, i), row(xs, x, i)
		if k := q.d.k; k != nil && len(d) > 0 {
			s.norm = norm{dst: &d[0], src: &v[0], gamma: first(g), beta: first(b), n: len(d), center: boolInt(center),
				part: 1 / float32(len(d)), eps: eps}
			if rs != nil {
				s.norm.res = &row(rs, residual, i)[0]
			}
			k.normRow(&s.norm)
			return
		}
		if rs != nil {
			for j, r := range row(rs, residual, i) {
				d[j] = v[j] + r
			}
			v = d
		}
		var mean, square float64
		if center {
			for _, e := range v {
				mean += float64(e)
			}
			mean /= float64(len(v))
		}
		for _, e := range v {
			c := float64(e) - mean
			square += c * c
		}
		inv := 1 / math.Sqrt(square/float64(len(v))+float64(eps))
		for j, e := range v {
			y := (float64(e) - mean) * inv
			if g != nil {
				y *= float64(g[j])
			}
			if b != nil {
				y += float64(b[j])
			}
			d[j] = float32(y)
		}
	})
}

// Softmax implements gpu.Queue.
func (q *queue) Softmax(dst, x gpu.Matrix) {
	ds, xs := floats(dst), floats(x)
	q.rows(x, 8, func(i int, s *scratch) {
		d := row(ds, dst, i)
		if k := q.d.k; k != nil && len(d) > 0 {
			s.inv = grow(s.inv, 1)
			s.block = block{dst: &d[0], src: &row(xs, x, i)[0], rows: 1, cols: len(d), inv: &s.inv[0], scale: 1}
			k.expRows(&s.block)
			s.block.src = s.block.dst
			k.scaleRows(&s.block)
			return
		}
		copy(d, row(xs, x, i))
		weigh(d, 1, nil, 0)
	})
}

// Gather implements gpu.Queue.
func (q *queue) Gather(dst gpu.Matrix, tables []gpu.Lookup) {
	for _, t := range tables {
		if !q.indices("gather", t.IDs, t.Table.N) {
			return
		}
	}
	ds := floats(dst)
	q.rows(dst, len(tables), func(i int, s *scratch) {
		d := row(ds, dst, i)
		for n, t := range tables {
			w := t.Table.Data().(*weight)
			if w.half != nil {
				s.bias = grow(s.bias, w.cols)
			}
			r := w.row(int(int32s(floats(t.IDs))[i]), s.bias)
			if n == 0 {
				copy(d, r)
				continue
			}
			for j, v := range r {
				d[j] += v
			}
		}
	})
}

// Pick implements gpu.Queue.
func (q *queue) Pick(dst, x, rows gpu.Matrix) {
	if !q.indices("pick", rows, x.Rows) {
		return
	}
	ds, xs, ids := floats(dst), floats(x), int32s(floats(rows))
	for i := range dst.Rows {
		copy(row(ds, dst, i), row(xs, x, int(ids[i])))
	}
}

// indices checks that all are from 0 up to limit.
func (q *queue) indices(op string, ids gpu.Matrix, limit int) bool {
	if q.err != nil {
		return false
	}
	for i, id := range int32s(floats(ids))[:ids.Cols] {
		if id < 0 || int(id) >= limit {
			q.err = &gpu.OpError{Op: op, Kind: gpu.ErrIndex, Reason: fmt.Sprintf("index %d at %d, of %d rows", id, i, limit),
				Operands: []gpu.Operand{{Name: "ids", Shape: ids.Shape(), DType: tensor.I32}}}
			return false
		}
	}
	return true
}

// MeanPool implements gpu.Queue.
func (q *queue) MeanPool(dst, x gpu.Matrix, seqs gpu.Ragged) {
	ds, xs, offsets := floats(dst), floats(x), int32s(floats(seqs.Offsets))
	var mask []int32
	if seqs.Mask.Buf != nil {
		mask = int32s(floats(seqs.Mask))
	}
	q.fail(q.d.parallel(seqs.Seqs, x.Rows*x.Cols, func(i int, _ *scratch) {
		d := row(ds, dst, i)
		from, to := int(offsets[i]), int(offsets[i+1])
		for j := range d {
			var sum float64
			n := 0
			for t := from; t < to; t++ {
				if mask == nil || mask[t] != 0 {
					sum += float64(xs[t*x.Stride+j])
					n++
				}
			}
			d[j] = float32(sum / float64(max(n, 1)))
		}
	}))
}

// L2Normalize implements gpu.Queue.
func (q *queue) L2Normalize(dst, x gpu.Matrix, eps float32) {
	ds, xs := floats(dst), floats(x)
	q.rows(x, 2, func(i int, _ *scratch) {
		d, v := row(ds, dst, i), row(xs, x, i)
		var square float64
		for _, e := range v {
			square += float64(e) * float64(e)
		}
		inv := 1 / max(math.Sqrt(square), float64(eps))
		for j, e := range v {
			d[j] = float32(float64(e) * inv)
		}
	})
}

// first is a pointer to the first element, or nil.
func first(f []float32) *float32 {
	if len(f) == 0 {
		return nil
	}
	return &f[0]
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
