package cpu

import "github.com/zcstore/zcstore/gpu"

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
	seq, at := piece/t.a.Heads, piece%t.a.Heads*t.size
	from, to := int(t.offsets[seq]), int(t.offsets[seq+1])
	n := to - from
	if n == 0 || t.size == 0 {
		return
	}
	h := head{k: t.k, s: s, size: t.size, scale: t.a.Scale,
		dst: t.dst.Slice(from, n).Columns(at, t.size), q: t.q.Slice(from, n).Columns(at, t.size)}
	keys, values := t.kk.Slice(from, n).Columns(at, t.size), t.vv.Slice(from, n).Columns(at, t.size)
	if t.mask != nil {
		h.gather(keys, values, t.mask[from:to])
	} else {
		h.n = n
		h.keys(floats(keys), keys.Stride)
		h.values(floats(values), values.Stride)
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
}

// gather copies the keys and values that are seen, and makes of them what keys and values do.
func (h *head) gather(keys, values gpu.Matrix, mask []int32) {
	ks, vs := floats(keys), floats(values)
	wide := roundUp(h.size, lanes)
	h.s.seenK = grow(h.s.seenK, len(mask)*h.size)
	h.s.seenV = grow(h.s.seenV, len(mask)*wide)
	n := &h.n
	for j, see := range mask {
		if see != 0 {
			copy(h.s.seenK[*n*h.size:][:h.size], ks[j*keys.Stride:])
			copy(h.s.seenV[*n*wide:][:h.size], vs[j*values.Stride:])
			*n++
		}
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

// values takes the values where they lie, or copies them when a panel would read past their columns.
func (h *head) values(rows []float32, ld int) {
	h.v, h.ldv = rows, ld
	if h.size%lanes == 0 {
		return
	}
	h.ldv = roundUp(h.size, lanes)
	h.s.seenV = grow(h.s.seenV, h.n*h.ldv)
	h.v = h.s.seenV
	for j := range h.n {
		copy(h.v[j*h.ldv:][:h.size], rows[j*ld:])
	}
}

func (h *head) run() {
	qs, ds := floats(h.q), floats(h.dst)
	if h.n == 0 {
		for i := range h.dst.Rows {
			clear(row(ds, h.dst, i))
		}
		return
	}
	s, t, b := h.s, &h.s.tile, &h.s.block
	ld := roundUp(h.n, lanes) + lanes // of the scores, no multiple of 4096 bytes for long
	s.scores = grow(s.scores, h.k.maxRows*ld)
	s.inv = grow(s.inv, h.k.maxRows)
	h.k.down(h.q.Rows, 2*lanes, func(i, m int) {
		*t = tile{a: &qs[i*h.q.Stride], lda: 4 * h.q.Stride, step: 4 * lanes, k: h.size, ldc: 4 * ld,
			panel: 4 * lanes * roundUp(h.size, lanes)}
		h.k.across(h.n, m, func(col, width, panels int) {
			t.b = &h.packed[col*roundUp(h.size, lanes)]
			t.c = &s.scores[col]
			t.lanes = width - (panels-1)*lanes
			h.k.gemm[m][panels](t)
		})
		*b = block{dst: &s.scores[0], src: &s.scores[0], lddst: 4 * ld, ldsrc: 4 * ld, rows: m, cols: h.n, inv: &s.inv[0], scale: h.scale}
		h.k.expRows(b)
		*t = tile{a: &s.scores[0], lda: 4 * ld, step: 4 * h.ldv, panel: 4 * lanes, k: h.n, ldc: 4 * h.dst.Stride}
		h.k.across(h.size, m, func(col, width, panels int) {
			t.b = &h.v[col]
			t.c = &ds[i*h.dst.Stride+col]
			t.lanes = width - (panels-1)*lanes
			h.k.gemm[m][panels](t)
		})
		*b = block{dst: &ds[i*h.dst.Stride], src: &ds[i*h.dst.Stride], lddst: 4 * h.dst.Stride, ldsrc: 4 * h.dst.Stride,
			rows: m, cols: h.size, inv: &s.inv[0]}
		h.k.scaleRows(b)
	})
}
