package cpu

import (
	"fmt"
	"math"
	"runtime/debug"
	"slices"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// queue runs each op before the call returns.
type queue struct {
	d   *Device
	err error

	job       job // the op that runs, and below what it is: here, because an op on several goroutines is on no stack
	rows      rows
	linear    linearTask
	rounded   operandsTask
	attention attentionTask
	norms     normTask
	gather    gatherTask
	mean      meanTask
	l2        l2Task
}

func newQueue(d *Device) *queue {
	q := &queue{d: d}
	q.job.done = make(chan struct{}, 1)
	return q
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

// Binary implements gpu.Queue.
func (q *queue) Binary(op gpu.Binary, dst, a, b gpu.Matrix) {
	ds, as, bs := floats(dst), floats(a), floats(b)
	q.eachRow(dst, 1, eachRow(func(i int, _ *scratch) {
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
	}))
}

// Scalar implements gpu.Queue.
func (q *queue) Scalar(op gpu.Binary, dst, a gpu.Matrix, f float32) {
	ds, as := floats(dst), floats(a)
	q.eachRow(dst, 1, eachRow(func(i int, _ *scratch) { scalar(op, row(ds, dst, i), row(as, a, i), f) }))
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
	q.eachRow(x, 16, eachRow(func(i int, s *scratch) {
		d := row(ds, dst, i)
		if k := q.d.k; k != nil && k.acts[a] != nil && len(d) > 0 {
			s.block = block{dst: &d[0], src: &row(xs, x, i)[0], rows: 1, cols: len(d)}
			k.acts[a](&s.block)
			return
		}
		copy(d, row(xs, x, i))
		activate(d, a)
	}))
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
	t := &q.norms
	t.k, t.dst, t.x, t.res, t.eps, t.center = q.d.k, dst, x, residual, eps, center
	t.g, t.b = vector(gamma, &t.gamma), vector(beta, &t.beta)
	q.eachRow(x, 4, t)
	t.g, t.b = nil, nil
}

// normTask is a norm of rows.
type normTask struct {
	k           *kernels
	dst, x, res gpu.Matrix
	g, b        []float32 // gamma and beta, or nil
	eps         float32
	center      bool

	gamma, beta []float32 // memory for gains of 16 bits
}

func (t *normTask) row(i int, s *scratch) {
	d, v := row(floats(t.dst), t.dst, i), row(floats(t.x), t.x, i)
	var r []float32
	if t.res.Buf != nil {
		r = row(floats(t.res), t.res, i)
	}
	if t.k != nil && len(d) > 0 {
		s.norm = norm{dst: &d[0], src: &v[0], res: first(r), gamma: first(t.g), beta: first(t.b), n: len(d),
			center: boolInt(t.center), part: 1 / float32(len(d)), eps: t.eps}
		t.k.normRow(&s.norm)
		s.norm = norm{}
		return
	}
	if r != nil {
		for j := range d {
			d[j] = v[j] + r[j]
		}
		v = d
	}
	var mean, square float64
	if t.center {
		for _, e := range v {
			mean += float64(e)
		}
		mean /= float64(len(v))
	}
	for _, e := range v {
		c := float64(e) - mean
		square += c * c
	}
	inv := 1 / math.Sqrt(square/float64(len(v))+float64(t.eps))
	for j, e := range v {
		y := (float64(e) - mean) * inv
		if t.g != nil {
			y *= float64(t.g[j])
		}
		if t.b != nil {
			y += float64(t.b[j])
		}
		d[j] = float32(y)
	}
}

// Softmax implements gpu.Queue.
func (q *queue) Softmax(dst, x gpu.Matrix) {
	ds, xs := floats(dst), floats(x)
	q.eachRow(x, 8, eachRow(func(i int, s *scratch) {
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
	}))
}

// Gather implements gpu.Queue.
func (q *queue) Gather(dst gpu.Matrix, tables []gpu.Lookup) {
	for _, t := range tables {
		if !q.indices("gather", t.IDs, t.Table.N) {
			return
		}
	}
	q.gather = gatherTask{dst: dst, tables: append(q.gather.tables[:0], tables...)}
	q.eachRow(dst, len(tables), &q.gather)
	clear(q.gather.tables)
}

// gatherTask is a Gather.
type gatherTask struct {
	dst    gpu.Matrix
	tables []gpu.Lookup
}

func (t *gatherTask) row(i int, s *scratch) {
	d := row(floats(t.dst), t.dst, i)
	for n, t := range t.tables {
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
	q.mean = meanTask{dst: dst, x: x, offsets: int32s(floats(seqs.Offsets))}
	if seqs.Mask.Buf != nil {
		q.mean.mask = int32s(floats(seqs.Mask))
	}
	q.parallel(seqs.Seqs, x.Rows*x.Cols, &q.mean)
	q.mean = meanTask{}
}

// meanTask is a MeanPool, a piece being a sequence.
type meanTask struct {
	dst, x        gpu.Matrix
	offsets, mask []int32
}

func (t *meanTask) do(i int, s *scratch) {
	d, xs := row(floats(t.dst), t.dst, i), floats(t.x)
	s.mean = slices.Grow(s.mean[:0], len(d))[:len(d)]
	clear(s.mean)
	n := 0
	for j := int(t.offsets[i]); j < int(t.offsets[i+1]); j++ {
		if t.mask != nil && t.mask[j] == 0 {
			continue
		}
		n++
		for c, v := range row(xs, t.x, j) {
			s.mean[c] += float64(v)
		}
	}
	for c, sum := range s.mean {
		d[c] = float32(sum / float64(max(n, 1)))
	}
}

// L2Normalize implements gpu.Queue.
func (q *queue) L2Normalize(dst, x gpu.Matrix, eps float32) {
	q.l2 = l2Task{dst, x, eps}
	q.eachRow(x, 2, &q.l2)
}

// l2Task is an L2Normalize.
type l2Task struct {
	dst, x gpu.Matrix
	eps    float32
}

func (t *l2Task) row(i int, _ *scratch) {
	d, v := row(floats(t.dst), t.dst, i), row(floats(t.x), t.x, i)
	var square float64
	for _, e := range v {
		square += float64(e) * float64(e)
	}
	inv := 1 / max(math.Sqrt(square), float64(t.eps))
	for j, e := range v {
		d[j] = float32(float64(e) * inv)
	}
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
