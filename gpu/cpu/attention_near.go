package cpu

import (
	"fmt"

	"github.com/zcstore/zcstore/gpu"
)

// near is Attention whose scores depend on how far a key is from its query.
type near struct {
	a             gpu.Attention
	offsets, mask []int32
	bias          []float32
	ids           []int32
	keys, queries []float32
	size          int
}

// attentionNear is Attention with keys by distance, in plain Go on every tier; and with a window or biases where tiles do not have
// them: with a mask, or causal. A piece is one head of one sequence, a query after the other with the keys that it sees.
func (q *queue) attentionNear(dst, qm, km, vm gpu.Matrix, a gpu.Attention) {
	n := near{a: a, offsets: int32s(floats(a.Seqs.Offsets)), size: qm.Cols / a.Heads}
	if a.Seqs.Mask.Buf != nil {
		n.mask = int32s(floats(a.Seqs.Mask))
	}
	if a.Bias.Buf != nil {
		n.bias = floats(a.Bias)
	}
	if r := a.Relative; r.IDs.Buf != nil {
		n.ids = int32s(floats(r.IDs))
		rows := max(r.Keys.Rows, r.Queries.Rows)
		if r.Keys.Buf != nil && r.Queries.Buf != nil {
			rows = min(r.Keys.Rows, r.Queries.Rows)
		}
		for i, id := range n.ids[:r.IDs.Cols] {
			if id < 0 || int(id) >= rows {
				q.fail(&gpu.OpError{Op: "attention", Kind: gpu.ErrIndex, Reason: fmt.Sprintf("distance %d has number %d, there are %d", i-a.Seqs.MaxLen+1, id, rows)})
				return
			}
		}
		if r.Keys.Buf != nil {
			n.keys = floats(r.Keys)
		}
		if r.Queries.Buf != nil {
			n.queries = floats(r.Queries)
		}
	}
	qs, ks, vs, ds := floats(qm), floats(km), floats(vm), floats(dst)
	work := 2 * a.Seqs.Tokens * a.Seqs.MaxLen * qm.Cols
	if a.Window > 0 {
		work = 2 * a.Seqs.Tokens * min(a.Seqs.MaxLen, 2*a.Window+1) * qm.Cols
	}
	q.parallel(a.Heads*a.Seqs.Seqs, work, each(func(t int, s *scratch) {
		seq, head := t/a.Heads, t%a.Heads
		from, to := int(n.offsets[seq]), int(n.offsets[seq+1])
		at, shared := head*n.size, head/(a.Heads/a.KVHeads)*n.size
		for i := from; i < to; i++ {
			lo, hi := n.seen(i, from, to)
			s.sums = grow(s.sums, hi-lo)
			scores, query := s.sums[:hi-lo], qs[i*qm.Stride+at:][:n.size]
			for j := lo; j < hi; j++ {
				key := ks[j*km.Stride+shared:][:n.size]
				scores[j-lo] = n.score(query, key, i-j, head)
			}
			weigh(scores, 1, n.mask, lo)
			out := ds[i*dst.Stride+at:][:n.size]
			clear(out)
			for j, p := range scores {
				if n.mask != nil && n.mask[lo+j] == 0 {
					continue // even NaN is hidden
				}
				for d, v := range vs[(lo+j)*vm.Stride+shared:][:n.size] {
					out[d] += p * v
				}
			}
		}
	}))
}

// seen is the keys that token i of the sequence from..to sees, but for the mask.
func (n *near) seen(i, from, to int) (lo, hi int) {
	lo, hi = from, to
	if w := n.a.Window; w > 0 {
		lo, hi = max(lo, i-w), min(hi, i+w+1)
	}
	if n.a.Causal {
		hi = i + 1
	}
	return lo, hi
}

// score is the scaled score of a query and a key that lies so many places before it.
func (n *near) score(query, key []float32, distance, head int) float32 {
	x := dot(query, key)
	if n.ids != nil {
		id, at := int(n.ids[n.a.Seqs.MaxLen-1+distance]), head*n.size
		if n.keys != nil {
			x += dot(query, n.keys[id*n.a.Relative.Keys.Stride+at:][:n.size])
		}
		if n.queries != nil {
			x += dot(key, n.queries[id*n.a.Relative.Queries.Stride+at:][:n.size])
		}
	}
	x *= n.a.Scale
	if n.bias != nil {
		x += n.bias[(n.a.Seqs.MaxLen-1-distance)*n.a.Bias.Stride+head]
	}
	return x
}

// Rotate implements gpu.Queue.
func (q *queue) Rotate(dst, x, cos, sin gpu.Matrix, heads int) {
	xs, ds, cs, ss := floats(x), floats(dst), floats(cos), floats(sin)
	half := x.Cols / heads / 2
	q.eachRow(x, 4, eachRow(func(r int, _ *scratch) {
		c, s := row(cs, cos, r), row(ss, sin, r)
		in, out := row(xs, x, r), row(ds, dst, r)
		for at := 0; at < len(in); at += 2 * half {
			for i := range half {
				a, b := in[at+i], in[at+half+i]
				out[at+i] = a*c[i] - b*s[i]
				out[at+half+i] = b*c[i] + a*s[i]
			}
		}
	}))
}

// Unfold implements gpu.Queue.
func (q *queue) Unfold(dst, x gpu.Matrix, kernel int, seqs gpu.Ragged) {
	ds, xs, offsets := floats(dst), floats(x), int32s(floats(seqs.Offsets))
	var mask []int32
	if seqs.Mask.Buf != nil {
		mask = int32s(floats(seqs.Mask))
	}
	q.parallel(seqs.Seqs, dst.Rows*dst.Cols, each(func(seq int, _ *scratch) {
		from, to := int(offsets[seq]), int(offsets[seq+1])
		for i := from; i < to; i++ {
			out := row(ds, dst, i)
			for j := range kernel {
				at := i + j - kernel/2
				if at < from || at >= to || mask != nil && mask[at] == 0 {
					for c := range x.Cols {
						out[c*kernel+j] = 0
					}
					continue
				}
				for c, v := range row(xs, x, at) {
					out[c*kernel+j] = v
				}
			}
		}
	}))
}
