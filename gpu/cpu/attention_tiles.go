package cpu

import (
	"slices"

	"github.com/zcstore/zcstore/gpu"
)

// attentionTask is Attention on kernels. A piece is one head of one sequence. Its keys become panels; then come queries, as
// many as a tile has rows: their scores with all keys, exp of them in place, and the product with the values, which lie as
// panels are: by key. So there are never more scores than a tile's rows have, and hidden tokens are left out before
// anything is computed.
type attentionTask struct {
	k              *kernels
	dst, q, kk, vv gpu.Matrix
	a              gpu.Attention
	size           int
	offsets, mask  []int32
}

func (q *queue) attentionTiles(k *kernels, dst, qm, km, vm gpu.Matrix, a gpu.Attention) {
	t := &q.attention
	*t = attentionTask{k: k, dst: dst, q: qm, kk: km, vv: vm, a: a, size: qm.Cols / a.Heads, offsets: int32s(floats(a.Seqs.Offsets))}
	if a.Seqs.Mask.Buf != nil {
		t.mask = int32s(floats(a.Seqs.Mask))
	}
	q.parallel(a.Heads*a.Seqs.Seqs, 2*a.Seqs.Tokens*a.Seqs.MaxLen*qm.Cols/8, t)
	*t = attentionTask{}
}

func (t *attentionTask) do(piece int, s *scratch) {
	seq, nth := piece/t.a.Heads, piece%t.a.Heads
	from, to := int(t.offsets[seq]), int(t.offsets[seq+1])
	n := to - from
	if n == 0 || t.size == 0 {
		return
	}
	at := nth * t.size
	h := head{k: t.k, s: s, size: t.size, scale: t.a.Scale, causal: t.a.Causal, window: t.a.Window,
		dst: t.dst.Slice(from, n).Columns(at, t.size), q: t.q.Slice(from, n).Columns(at, t.size)}
	at = nth / (t.a.Heads / t.a.KVHeads) * t.size
	keys, values := t.kk.Slice(from, n).Columns(at, t.size), t.vv.Slice(from, n).Columns(at, t.size)
	if t.mask != nil {
		h.gather(keys, values, t.mask[from:to])
	} else {
		h.n = n
		h.keys(floats(keys), keys.Stride)
		h.values(floats(values), values.Stride)
	}
	if t.a.Bias.Buf != nil {
		h.biases(t.a.Bias.Slice(t.a.Seqs.MaxLen-n, 2*n-1).Columns(nth, 1))
	}
	h.run()
	s.forget()
}

// head is one head of one sequence.
type head struct {
	k      *kernels
	s      *scratch
	dst, q gpu.Matrix
	size   int // columns of a head
	scale  float32
	n      int       // keys that are seen
	packed []float32 // their panels
	v      []float32 // their values, ldv apart, with whole panels of columns
	ldv    int

	causal bool
	seen   []int // of a mask: how many keys are seen up to each token
	window int   // keys are seen that are at most so far; 0: all

	bias []float32 // what scores get by n-1+key-query, before they are scaled; nil: nothing
}

// upTo is how many keys a query sees.
func (h *head) upTo(query int) int {
	switch {
	case !h.causal:
		return h.n
	case h.seen != nil:
		return h.seen[query]
	}
	return query + 1
}

// gather copies the keys and values that are seen, and makes of them what keys and values do.
func (h *head) gather(keys, values gpu.Matrix, mask []int32) {
	ks, vs := floats(keys), floats(values)
	wide := roundUp(h.size, lanes)
	h.s.seenK = grow(h.s.seenK, len(mask)*h.size)
	h.s.seenV = grow(h.s.seenV, len(mask)*wide)
	h.s.seen = slices.Grow(h.s.seen[:0], len(mask))[:len(mask)]
	h.seen = h.s.seen
	n := &h.n
	for j, see := range mask {
		if see != 0 {
			copy(h.s.seenK[*n*h.size:][:h.size], ks[j*keys.Stride:])
			copy(h.s.seenV[*n*wide:][:h.size], vs[j*values.Stride:])
			*n++
		}
		h.seen[j] = *n
	}
	if *n > 0 {
		h.keys(h.s.seenK, h.size)
		h.v, h.ldv = h.s.seenV, wide
	}
}

// keys makes panels of the keys.
func (h *head) keys(rows []float32, ld int) {
	depth := roundUp(h.size, lanes)
	h.s.pack = grow(h.s.pack, roundUp(h.n, lanes)*depth)
	for j := 0; j < h.n; j += lanes {
		h.k.turnRows(h.s.pack[j*depth:][:lanes*depth], rows[j*ld:], min(lanes, h.n-j), h.size, ld, h.s)
	}
	h.packed = h.s.pack
}

// values takes a few values where they lie, and copies more of them close together: rows of the model's length share a few sets
// of the cache. It also copies when a panel would read past their columns.
func (h *head) values(rows []float32, ld int) {
	const few = 64
	h.v, h.ldv = rows, ld
	if h.size%lanes == 0 && h.n <= few {
		return
	}
	h.ldv = roundUp(h.size, lanes)
	h.s.seenV = grow(h.s.seenV, h.n*h.ldv)
	h.v = h.s.seenV
	for j := range h.n {
		copy(h.v[j*h.ldv:][:h.size], rows[j*ld:])
	}
}

// biases puts what scores get in a row.
func (h *head) biases(m gpu.Matrix) {
	h.s.near = grow(h.s.near, m.Rows)
	h.bias = h.s.near
	for i, b := 0, floats(m); i < m.Rows; i++ {
		h.bias[i] = b[i*m.Stride] / h.scale
	}
}

// near is the keys that some of m queries from the i-th on see.
func (h *head) near(i, m int) (from, to int) {
	if h.window == 0 {
		return 0, h.upTo(i + m - 1)
	}
	return max(0, i-h.window), min(h.n, i+m+h.window)
}

func (h *head) run() {
	if h.n == 0 {
		for i := range h.dst.Rows {
			clear(row(floats(h.dst), h.dst, i))
		}
		return
	}
	ld := roundUp(h.n, lanes) + lanes // of the scores, no multiple of 4096 bytes for long
	h.s.scores = grow(h.s.scores, h.k.maxRows*ld)
	h.s.inv = grow(h.s.inv, h.k.maxRows)
	if (h.causal || h.window > 0) && !h.finite() {
		for i := range h.q.Rows {
			h.block(i, 1, ld)
		}
		return
	}
	h.k.down(h.q.Rows, 2*lanes, func(i, m int) { h.block(i, m, ld) })
}

// finite reports whether all values are. Queries of a block meet the keys that only others of it see with weight 0, which is
// nothing but for NaN and infinities.
func (h *head) finite() bool {
	h.s.zeros = grow(h.s.zeros, h.n)
	clear(h.s.zeros)
	t := &h.s.tile
	h.s.sums = grow(h.s.sums, h.size)
	sums := h.s.sums // zero times each value, added up
	*t = tile{a: &h.s.zeros[0], step: 4 * h.ldv, panel: 4 * lanes, k: h.n}
	h.k.across(h.size, 1, func(col, width, panels int) {
		t.b, t.c, t.lanes = &h.v[col], &sums[col], width-(panels-1)*lanes
		h.k.gemm[1][panels](t)
	})
	for _, x := range sums {
		if x != 0 {
			return false
		}
	}
	return true
}

// block is m queries from the i-th on, with all keys that they see. ld is the length of a row of scores.
func (h *head) block(i, m, ld int) {
	s, t, b := h.s, &h.s.tile, &h.s.block
	qs, ds := floats(h.q), floats(h.dst)
	first, end := h.near(i, m)
	panel := first / lanes * lanes // scores are from here on
	n := end - panel
	depth := roundUp(h.size, lanes)
	*t = tile{a: &qs[i*h.q.Stride], lda: 4 * h.q.Stride, step: 4 * lanes, k: h.size, ldc: 4 * ld, panel: 4 * lanes * depth}
	h.k.across(n, m, func(col, width, panels int) {
		t.b = &h.packed[(panel+col)*depth]
		t.c = &s.scores[col]
		t.lanes = width - (panels-1)*lanes
		h.k.gemm[m][panels](t)
	})
	h.weigh(i, m, panel, n, ld)
	*t = tile{a: &s.scores[first-panel], lda: 4 * ld, step: 4 * h.ldv, panel: 4 * lanes, k: end - first, ldc: 4 * h.dst.Stride}
	h.k.across(h.size, m, func(col, width, panels int) {
		t.b = &h.v[first*h.ldv+col]
		t.c = &ds[i*h.dst.Stride+col]
		t.lanes = width - (panels-1)*lanes
		h.k.gemm[m][panels](t)
	})
	*b = block{dst: &ds[i*h.dst.Stride], src: &ds[i*h.dst.Stride], lddst: 4 * h.dst.Stride, ldsrc: 4 * h.dst.Stride,
		rows: m, cols: h.size, inv: &s.inv[0]}
	h.k.scaleRows(b)
}

// weigh makes weights of the scores of a block, which are n from a key on, and of what they add up to its inverse: in each row
// for the keys that the query sees, and 0 for the others.
func (h *head) weigh(i, m, key, n, ld int) {
	s, b := h.s, &h.s.block
	if h.bias != nil {
		for r := range m {
			row := s.scores[r*ld:][:n]
			for j, x := range h.bias[h.n-1-(i+r)+key:][:n] {
				row[j] += x
			}
		}
	}
	*b = block{lddst: 4 * ld, ldsrc: 4 * ld, rows: m, cols: n, dst: &s.scores[0], src: &s.scores[0], inv: &s.inv[0], scale: h.scale}
	if !h.causal && h.window == 0 {
		h.k.expRows(b)
		return
	}
	b.rows = 1
	for r := range m {
		from, to := h.near(i+r, 1)
		row := s.scores[r*ld:][:n]
		s.inv[r] = 0
		if to > from {
			b.dst, b.src, b.inv, b.cols = &row[from-key], &row[from-key], &s.inv[r], to-from
			h.k.expRows(b)
		}
		clear(row[:from-key])
		clear(row[to-key:])
	}
}
