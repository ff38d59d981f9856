package gputest

import (
	"fmt"
	"math"
	"sync/atomic"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Async is a device that does to a program what a graphics card may do, and worse. It computes with inner, but
//   - runs no op before Sync, and reads the host memory of an upload only then;
//   - has its own copy of every weight, so that the host's may be overwritten after Import;
//   - gives out buffers that are not those of inner, so that nothing can look into them;
//   - fills new buffers, and scratch as it is released, with NaN.
//
// A model that gives the same answers on it as on inner respects the seam.
func Async(inner gpu.Device) gpu.Device { return &async{inner: inner} }

type async struct {
	inner   gpu.Device
	pool    gpu.Pool
	pending atomic.Int64 // ops queued and not yet run, on all streams
}

func (d *async) Info() gpu.Info {
	i := d.inner.Info()
	i.Backend, i.Name = "async", "late and poisoned: "+i.Name
	return i
}

func (d *async) Alloc(bytes int) (gpu.Buf, error) {
	b, err := d.inner.Alloc(bytes)
	if err != nil {
		return nil, err
	}
	a := &asyncBuf{d: d, inner: b}
	return a, a.poison()
}

func (d *async) Import(v tensor.View, role tensor.Role) (*gpu.Weight, error) {
	if _, err := gpu.Describe(v, role); err != nil {
		return nil, err
	}
	v.Data = append(make([]byte, 0, len(v.Data)+8), v.Data...)
	if v.Packed != nil {
		p := *v.Packed
		p.Data = append(make([]byte, 0, len(p.Data)+8), p.Data...)
		v.Packed = &p
	}
	w, err := d.inner.Import(v, role)
	if err != nil {
		return nil, err
	}
	info := w.WeightInfo
	info.Mode = gpu.Staged
	return gpu.NewWeight(d, info, w), nil
}

func (d *async) NewStream() (*gpu.Stream, error) {
	return d.pool.Get(d, func() (gpu.Queue, error) {
		s, err := d.inner.NewStream()
		if err != nil {
			return nil, err
		}
		return &asyncQueue{d: d, s: s}, nil
	})
}

func (d *async) Close() error { return d.pool.Close() }

type asyncBuf struct {
	d     *async
	inner gpu.Buf
}

func (b *asyncBuf) Device() gpu.Device { return b.d }
func (b *asyncBuf) Len() int           { return b.inner.Len() }

// Free poisons at once when nothing is queued that might still use the buffer.
func (b *asyncBuf) Free() {
	if b.inner.Len() == 0 || b.d.pending.Load() > 0 {
		return
	}
	if err := b.poison(); err != nil {
		panic(fmt.Sprintf("gputest: poison a buffer of our own: %v", err))
	}
}

func (b *asyncBuf) poison() error {
	s, err := b.d.inner.NewStream()
	if err != nil {
		return err
	}
	defer s.Close()
	poison(s, b.inner, 0, b.inner.Len()/4)
	return s.Sync()
}

func poison(s *gpu.Stream, b gpu.Buf, off, n int) {
	bad := make([]float32, n)
	for i := range bad {
		bad[i] = float32(math.NaN())
	}
	s.Upload(gpu.Matrix{Buf: b, Off: off, Rows: 1, Cols: n, Stride: n, DType: tensor.F32}, bad)
}

// asyncQueue keeps ops as closures over the inner stream.
type asyncQueue struct {
	d   *async
	s   *gpu.Stream
	ops []func()
}

func (q *asyncQueue) later(op func()) {
	q.ops = append(q.ops, op)
	q.d.pending.Add(1)
}

func (q *asyncQueue) Sync() error {
	for _, op := range q.ops {
		op()
	}
	q.d.pending.Add(-int64(len(q.ops)))
	q.ops = q.ops[:0]
	return q.s.Sync()
}

func (q *asyncQueue) Close() error {
	q.s.Close()
	return nil
}

func (q *asyncQueue) Released(b gpu.Buf, off, elems int) {
	q.later(func() { poison(q.s, b.(*asyncBuf).inner, off, elems) })
}

func in(m gpu.Matrix) gpu.Matrix {
	if m.Buf != nil {
		m.Buf = m.Buf.(*asyncBuf).inner
	}
	return m
}

func inSeqs(r gpu.Ragged) gpu.Ragged {
	r.Offsets, r.Mask = in(r.Offsets), in(r.Mask)
	return r
}

func inWeight(w *gpu.Weight) *gpu.Weight {
	if w == nil {
		return nil
	}
	return w.Data().(*gpu.Weight)
}

func (q *asyncQueue) Upload(dst gpu.Matrix, src []float32) {
	q.later(func() { q.s.Upload(in(dst), src) })
}

func (q *asyncQueue) UploadInts(dst gpu.Matrix, src []int32) {
	q.later(func() { q.s.UploadInts(in(dst), src) })
}

func (q *asyncQueue) Download(dst []float32, src gpu.Matrix) {
	for i := range dst {
		dst[i] = float32(math.NaN()) // not before Sync
	}
	q.later(func() { q.s.Download(dst, in(src)) })
}

func (q *asyncQueue) Copy(dst, src gpu.Matrix) { q.later(func() { q.s.Copy(in(dst), in(src)) }) }
func (q *asyncQueue) Zero(dst gpu.Matrix)      { q.later(func() { q.s.Zero(in(dst)) }) }

func (q *asyncQueue) Linear(dst, x gpu.Matrix, g *gpu.Group, e gpu.Epilogue) {
	q.later(func() {
		var ws, bs []*gpu.Weight
		for i := range g.Len() {
			w, b := g.At(i)
			ws, bs = append(ws, inWeight(w)), append(bs, inWeight(b))
		}
		g, err := gpu.NewGroup(ws, bs)
		if err != nil {
			q.s.Fail(err)
			return
		}
		e.Residual = in(e.Residual)
		q.s.Linear(in(dst), in(x), g, e)
	})
}

func (q *asyncQueue) Binary(op gpu.Binary, dst, a, b gpu.Matrix) {
	q.later(func() { q.s.Binary(op, in(dst), in(a), in(b)) })
}

func (q *asyncQueue) Scalar(op gpu.Binary, dst, a gpu.Matrix, f float32) {
	q.later(func() { q.s.Scalar(op, in(dst), in(a), f) })
}

func (q *asyncQueue) Act(dst, x gpu.Matrix, a gpu.Act) {
	q.later(func() { q.s.Act(in(dst), in(x), a) })
}

func (q *asyncQueue) LayerNorm(dst, x, residual gpu.Matrix, gamma, beta *gpu.Weight, eps float32) {
	q.later(func() { q.s.LayerNorm(in(dst), in(x), in(residual), inWeight(gamma), inWeight(beta), eps) })
}

func (q *asyncQueue) RMSNorm(dst, x, residual gpu.Matrix, gamma *gpu.Weight, eps float32) {
	q.later(func() { q.s.RMSNorm(in(dst), in(x), in(residual), inWeight(gamma), eps) })
}

func (q *asyncQueue) Softmax(dst, x gpu.Matrix) { q.later(func() { q.s.Softmax(in(dst), in(x)) }) }

func (q *asyncQueue) Attention(dst, qm, k, v gpu.Matrix, a gpu.Attention) {
	q.later(func() {
		a.Seqs, a.Bias = inSeqs(a.Seqs), in(a.Bias)
		a.Relative = gpu.Relative{IDs: in(a.Relative.IDs), Keys: in(a.Relative.Keys), Queries: in(a.Relative.Queries)}
		q.s.Attention(in(dst), in(qm), in(k), in(v), a)
	})
}

func (q *asyncQueue) Rotate(dst, x, cos, sin gpu.Matrix, heads int) {
	q.later(func() { q.s.Rotate(in(dst), in(x), in(cos), in(sin), heads) })
}

func (q *asyncQueue) Unfold(dst, x gpu.Matrix, kernel int, seqs gpu.Ragged) {
	q.later(func() { q.s.Unfold(in(dst), in(x), kernel, inSeqs(seqs)) })
}

func (q *asyncQueue) Gather(dst gpu.Matrix, tables []gpu.Lookup) {
	tables = append([]gpu.Lookup(nil), tables...)
	q.later(func() {
		for i, t := range tables {
			tables[i] = gpu.Lookup{Table: inWeight(t.Table), IDs: in(t.IDs)}
		}
		q.s.Gather(in(dst), tables)
	})
}

func (q *asyncQueue) Pick(dst, x, rows gpu.Matrix) {
	q.later(func() { q.s.Pick(in(dst), in(x), in(rows)) })
}

func (q *asyncQueue) MeanPool(dst, x gpu.Matrix, seqs gpu.Ragged) {
	q.later(func() { q.s.MeanPool(in(dst), in(x), inSeqs(seqs)) })
}

func (q *asyncQueue) L2Normalize(dst, x gpu.Matrix, eps float32) {
	q.later(func() { q.s.L2Normalize(in(dst), in(x), eps) })
}
