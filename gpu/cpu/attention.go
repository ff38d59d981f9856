package cpu

import (
	"math"

	"github.com/zcstore/zcstore/gpu"
)

// queryBlock is how many queries of a head share one block of scores.
const queryBlock = 16

// Attention implements gpu.Queue.
func (q *queue) Attention(dst, qm, km, vm gpu.Matrix, a gpu.Attention) {
	switch k := q.d.k; {
	case a.Relative.IDs.Buf != nil, (a.Window > 0 || a.Bias.Buf != nil) && (k == nil || a.Causal || a.Seqs.Mask.Buf != nil):
		q.attentionNear(dst, qm, km, vm, a)
	case k != nil:
		q.attentionTiles(k, dst, qm, km, vm, a)
	default:
		q.attentionGo(dst, qm, km, vm, a)
	}
}

// attentionGo is Attention in plain Go. A piece is one head of one sequence: V is turned once, so that both products are the
// same loop over rows, then come blocks of queries with all their keys.
func (q *queue) attentionGo(dst, qm, km, vm gpu.Matrix, a gpu.Attention) {
	qs, ks, vs, ds := floats(qm), floats(km), floats(vm), floats(dst)
	offsets := int32s(floats(a.Seqs.Offsets))
	var mask []int32
	if a.Seqs.Mask.Buf != nil {
		mask = int32s(floats(a.Seqs.Mask))
	}
	size := qm.Cols / a.Heads
	work := 2 * a.Seqs.Tokens * a.Seqs.MaxLen * qm.Cols
	block := queryBlock
	if a.Causal {
		block = 1 // each query has keys of its own
	}
	q.parallel(a.Heads*a.Seqs.Seqs, work, each(func(t int, s *scratch) {
		seq, head := t/a.Heads, t%a.Heads
		shared := head / (a.Heads / a.KVHeads) // keys and values
		from, to := int(offsets[seq]), int(offsets[seq+1])
		n := to - from
		if n == 0 || size == 0 {
			return
		}
		seen := func(j int) bool { return mask == nil || mask[from+j] != 0 }

		s.pack = grow(s.pack, size*n)
		for j := range n {
			v := vs[(from+j)*vm.Stride+shared*size:][:size]
			for d := range size {
				if seen(j) {
					s.pack[d*n+j] = v[d]
				} else {
					s.pack[d*n+j] = 0 // even NaN is hidden
				}
			}
		}
		s.sums = grow(s.sums, block*(n+size))
		scores, out := s.sums[:block*n], s.sums[block*n:]
		for i := 0; i < n; i += block {
			m, keys := min(block, n-i), n
			if a.Causal {
				keys = i + 1
			}
			product(scores, n, qs[(from+i)*qm.Stride+head*size:], m, qm.Stride, ks[from*km.Stride+shared*size:], keys, km.Stride, size)
			for r := range m {
				weigh(scores[r*n:][:keys], a.Scale, mask, from)
			}
			product(out, size, scores, m, n, s.pack, size, n, keys)
			for r := range m {
				copy(ds[(from+i+r)*dst.Stride+head*size:][:size], out[r*size:(r+1)*size])
			}
		}
	}))
}

// weigh is softmax(scale*row) over the elements that are seen, and 0 for the others.
func weigh(row []float32, scale float32, mask []int32, from int) {
	top, bad := float32(math.Inf(-1)), false
	for j, x := range row {
		x *= scale
		row[j] = x
		if mask != nil && mask[from+j] == 0 {
			continue
		}
		if x > top {
			top = x
		}
		bad = bad || x != x
	}
	if bad {
		top = float32(math.NaN())
	}
	var sum float64
	any := false
	for j, x := range row {
		if mask != nil && mask[from+j] == 0 {
			row[j] = 0
			continue
		}
		any = true
		e := exp32(x - top) // NaN for a row of -Inf
		row[j] = e
		sum += float64(e)
	}
	if !any {
		return
	}
	inv := float32(1 / sum)
	for j := range row {
		if mask == nil || mask[from+j] != 0 {
			row[j] *= inv
		}
	}
}
