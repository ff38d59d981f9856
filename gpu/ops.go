package gpu

import (
	"fmt"
	"math"
	"slices"

	"github.com/zcstore/zcstore/shm/tensor"
)

// refuse makes the stream's error. It is called on the failing path only, so that ops allocate nothing.
func (s *Stream) refuse(op string, kind error, reason string, operands ...Operand) {
	s.Fail(&OpError{Op: op, Kind: kind, Reason: reason, Operands: operands})
}

// matrix checks that m is usable on this stream and of the dtype.
func (s *Stream) matrix(op, name string, m Matrix, d tensor.DType) bool {
	switch {
	case s.err != nil:
	case m.DType != d:
		s.refuse(op, ErrUnsupported, fmt.Sprintf("%s is to be %v", name, d), m.operand(name))
	case !m.valid():
		s.refuse(op, ErrShape, name+" does not lie inside its buffer", m.operand(name))
	case m.Buf.Device() != s.dev:
		s.refuse(op, ErrDevice, name+" is on another device", m.operand(name))
	}
	return s.err == nil
}

func (s *Stream) float(op, name string, m Matrix) bool { return s.matrix(op, name, m, tensor.F32) }

// shaped checks that m is F32 [rows,cols], as like is.
func (s *Stream) shaped(op, name string, m, like Matrix, rows, cols int) bool {
	if !s.float(op, name, m) {
		return false
	}
	if m.Rows != rows || m.Cols != cols {
		s.refuse(op, ErrShape, fmt.Sprintf("%s is to be %v", name, tensor.Shape{rows, cols}), m.operand(name), like.operand("x"))
		return false
	}
	return true
}

// vector checks that m is I32 [1,n].
func (s *Stream) vector(op, name string, m Matrix, n int) bool {
	if !s.matrix(op, name, m, tensor.I32) {
		return false
	}
	if m.Rows != 1 || m.Cols != n {
		s.refuse(op, ErrShape, fmt.Sprintf("%s is to be %v", name, tensor.Shape{1, n}), m.operand(name))
		return false
	}
	return true
}

// apart checks that dst shares no element with x, or is x where that is allowed.
func (s *Stream) apart(op string, dst, x Matrix, same bool) bool {
	if dst.overlaps(x) && !(same && dst.same(x)) {
		s.refuse(op, ErrAlias, "dst shares memory with an operand", dst.operand("dst"), x.operand("x"))
		return false
	}
	return true
}

// gain checks a vector weight of n elements.
func (s *Stream) gain(op, name string, w *Weight, n int) bool {
	if w == nil || w.Role != tensor.Other || w.N != 1 || w.K != n {
		s.refuse(op, ErrShape, fmt.Sprintf("%s is to have %d elements", name, n), w.operand(name))
		return false
	}
	if w.dev != s.dev {
		s.refuse(op, ErrDevice, name+" is on another device", w.operand(name))
		return false
	}
	return true
}

// Upload copies host values, row by row, into dst. src has to stay as it is until Sync.
func (s *Stream) Upload(dst Matrix, src []float32) {
	if s.float("upload", "dst", dst) && s.count("upload", dst, len(src)) {
		s.q.Upload(dst, src)
	}
}

// UploadInts is Upload for indices.
func (s *Stream) UploadInts(dst Matrix, src []int32) {
	if s.matrix("upload", "dst", dst, tensor.I32) && s.count("upload", dst, len(src)) {
		s.q.UploadInts(dst, src)
	}
}

// Download copies src, row by row, to the host. dst has its values after Sync.
func (s *Stream) Download(dst []float32, src Matrix) {
	if s.float("download", "src", src) && s.count("download", src, len(dst)) {
		s.q.Download(dst, src)
	}
}

func (s *Stream) count(op string, m Matrix, n int) bool {
	if m.Rows*m.Cols != n {
		s.refuse(op, ErrShape, fmt.Sprintf("%d values on the host", n), m.operand("matrix"))
		return false
	}
	return true
}

// Copy copies src to dst of the same shape. They may be the same, not overlap.
func (s *Stream) Copy(dst, src Matrix) {
	if s.float("copy", "src", src) && s.shaped("copy", "dst", dst, src, src.Rows, src.Cols) && s.apart("copy", dst, src, true) {
		s.q.Copy(dst, src)
	}
}

// Zero writes zeros.
func (s *Stream) Zero(dst Matrix) {
	if s.float("zero", "dst", dst) {
		s.q.Zero(dst)
	}
}

// Linear writes act(x W^T + bias) + residual, for all weights of the group side by side: x [rows, K], dst and residual
// [rows, N]. dst may be the residual, and shares no memory with x. F16 and BF16 weights are widened, sums are F32.
func (s *Stream) Linear(dst, x Matrix, g *Group, e Epilogue) {
	const op = "linear"
	if !s.float(op, "x", x) {
		return
	}
	switch {
	case g == nil || len(g.weights) == 0:
		s.refuse(op, ErrShape, "no weights", x.operand("x"))
		return
	case g.weights[0].dev != s.dev:
		s.refuse(op, ErrDevice, "the weights are on another device", x.operand("x"), g.weights[0].operand("weight"))
		return
	case x.Cols != g.k:
		s.refuse(op, ErrShape, fmt.Sprintf("x has %d columns, the weights take %d", x.Cols, g.k), x.operand("x"), g.weights[0].operand("weight"))
		return
	case e.Act >= acts:
		s.refuse(op, ErrUnsupported, e.Act.String(), x.operand("x"))
		return
	}
	if !s.shaped(op, "dst", dst, x, x.Rows, g.n) || !s.apart(op, dst, x, false) {
		return
	}
	if e.Residual != (Matrix{}) && (!s.shaped(op, "residual", e.Residual, x, x.Rows, g.n) || !s.apart(op, dst, e.Residual, true)) {
		return
	}
	for _, gate := range g.gates {
		if !s.hold(gate) {
			return
		}
	}
	s.q.Linear(dst, x, g, e)
}

// Add writes a+b. Shapes and aliasing as in [Stream.Binary].
func (s *Stream) Add(dst, a, b Matrix) { s.Binary(Add, dst, a, b) }

// Mul writes a*b, element by element. Shapes and aliasing as in [Stream.Binary].
func (s *Stream) Mul(dst, a, b Matrix) { s.Binary(Mul, dst, a, b) }

// Scale writes a*f. dst may be a.
func (s *Stream) Scale(dst, a Matrix, f float32) { s.Scalar(Mul, dst, a, f) }

// Binary writes op(a, b), element by element: a and dst [rows, cols]; b the same, or one row or one column or both,
// which then meets every row or column of a. dst may be a, or b of the same shape.
func (s *Stream) Binary(op Binary, dst, a, b Matrix) {
	name := op.String()
	if op >= binaries {
		s.refuse("binary", ErrUnsupported, name)
		return
	}
	if !s.float(name, "a", a) || !s.float(name, "b", b) {
		return
	}
	if (b.Rows != a.Rows && b.Rows != 1) || (b.Cols != a.Cols && b.Cols != 1) {
		s.refuse(name, ErrShape, "b has neither the shape of a, nor one row, nor one column", a.operand("a"), b.operand("b"))
		return
	}
	if s.shaped(name, "dst", dst, a, a.Rows, a.Cols) && s.apart(name, dst, a, true) && s.apart(name, dst, b, true) {
		s.q.Binary(op, dst, a, b)
	}
}

// Scalar writes op(a, f), element by element. dst may be a.
func (s *Stream) Scalar(op Binary, dst, a Matrix, f float32) {
	name := op.String()
	if op >= binaries {
		s.refuse("scalar", ErrUnsupported, name)
		return
	}
	if s.unary(name, dst, a) {
		s.q.Scalar(op, dst, a, f)
	}
}

// Act writes the activation of x. dst may be x.
func (s *Stream) Act(dst, x Matrix, a Act) {
	if a >= acts {
		s.refuse("act", ErrUnsupported, a.String())
		return
	}
	if s.unary(a.String(), dst, x) {
		s.q.Act(dst, x, a)
	}
}

func (s *Stream) unary(op string, dst, x Matrix) bool {
	return s.float(op, "x", x) && s.shaped(op, "dst", dst, x, x.Rows, x.Cols) && s.apart(op, dst, x, true)
}

// LayerNorm writes (t-mean)/sqrt(var+eps)*gamma+beta for each row of t = x+residual: x, residual, dst [rows, cols];
// gamma, beta [cols]. The variance is the biased one. The zero Matrix is no residual, nil is no gamma or beta; dst may
// be x or the residual. Source: arXiv 1607.06450; as torch.nn.LayerNorm.
func (s *Stream) LayerNorm(dst, x, residual Matrix, gamma, beta *Weight, eps float32) {
	if s.norm("layernorm", dst, x, residual, gamma) && (beta == nil || s.gain("layernorm", "beta", beta, x.Cols)) && s.holdAll(gamma, beta) {
		s.q.LayerNorm(dst, x, residual, gamma, beta, eps)
	}
}

// RMSNorm writes t/sqrt(mean(t*t)+eps)*gamma for each row of t = x+residual. Operands as in [Stream.LayerNorm].
func (s *Stream) RMSNorm(dst, x, residual Matrix, gamma *Weight, eps float32) {
	if s.norm("rmsnorm", dst, x, residual, gamma) && s.holdAll(gamma) {
		s.q.RMSNorm(dst, x, residual, gamma, eps)
	}
}

func (s *Stream) norm(op string, dst, x, residual Matrix, gamma *Weight) bool {
	if !s.unary(op, dst, x) {
		return false
	}
	if residual != (Matrix{}) && (!s.shaped(op, "residual", residual, x, x.Rows, x.Cols) || !s.apart(op, dst, residual, true)) {
		return false
	}
	return gamma == nil || s.gain(op, "gamma", gamma, x.Cols)
}

// Softmax writes exp(x-max)/sum of each row. A row with NaN or +Inf, or of -Inf alone, becomes NaN. dst may be x.
func (s *Stream) Softmax(dst, x Matrix) {
	if s.unary("softmax", dst, x) {
		s.q.Softmax(dst, x)
	}
}

// Ragged puts the boundaries of sequences on the device: starts has one entry more than there are sequences, begins
// with 0, never falls, and ends with the number of tokens. mask is nil or has one entry for each token; 0 hides it.
// Both stay as they are until Sync.
func (s *Stream) Ragged(starts []int, mask []int32) Ragged {
	const op = "ragged"
	if s.err != nil {
		return Ragged{}
	}
	if len(starts) == 0 || starts[0] != 0 {
		s.refuse(op, ErrShape, "the starts begin with 0")
		return Ragged{}
	}
	r := Ragged{Seqs: len(starts) - 1, Tokens: starts[len(starts)-1]}
	if r.Tokens > math.MaxInt32 {
		s.refuse(op, ErrShape, fmt.Sprintf("%d tokens", r.Tokens))
		return Ragged{}
	}
	at := len(s.ints)
	for i, p := range starts {
		if i > 0 {
			if p < starts[i-1] {
				s.refuse(op, ErrShape, fmt.Sprintf("sequence %d starts at %d and ends at %d", i-1, starts[i-1], p))
				return Ragged{}
			}
			r.MaxLen = max(r.MaxLen, p-starts[i-1])
		}
		s.ints = append(s.ints, int32(p))
	}
	if mask != nil && len(mask) != r.Tokens {
		s.refuse(op, ErrShape, fmt.Sprintf("%d entries of mask for %d tokens", len(mask), r.Tokens))
		return Ragged{}
	}
	r.Offsets = s.I32(len(starts))
	s.UploadInts(r.Offsets, s.ints[at:])
	if mask != nil {
		r.Mask = s.I32(r.Tokens)
		s.UploadInts(r.Mask, mask)
	}
	return r
}

// ragged checks the boundaries against a matrix of tokens.
func (s *Stream) ragged(op string, r Ragged, x Matrix) bool {
	if r.Tokens != x.Rows {
		s.refuse(op, ErrShape, fmt.Sprintf("the sequences have %d tokens, x has %d rows", r.Tokens, x.Rows), x.operand("x"))
		return false
	}
	return s.vector(op, "offsets", r.Offsets, r.Seqs+1) && (r.Mask == Matrix{} || s.vector(op, "mask", r.Mask, r.Tokens))
}

// Attention writes softmax(scale q k^T) v for each head and sequence: q, dst [tokens, heads*size], k, v [tokens,
// kvheads*size]. A query whose keys are all hidden gets zeros. dst shares no memory with the others. The scores of a whole
// sequence are not kept. A distance whose number is no row of a.Relative is an error of kind ErrIndex at Sync. Source: arXiv
// 1706.03762; grouped heads arXiv 2305.13245.
func (s *Stream) Attention(dst, q, k, v Matrix, a Attention) {
	const op = "attention"
	if !s.float(op, "q", q) {
		return
	}
	if a.Heads <= 0 || q.Cols%a.Heads != 0 {
		s.refuse(op, ErrShape, fmt.Sprintf("%d columns are not divided among %d heads", q.Cols, a.Heads), q.operand("q"))
		return
	}
	if a.KVHeads == 0 {
		a.KVHeads = a.Heads
	}
	if a.KVHeads < 0 || a.Heads%a.KVHeads != 0 {
		s.refuse(op, ErrShape, fmt.Sprintf("%d heads are not divided among %d of keys and values", a.Heads, a.KVHeads), q.operand("q"), k.operand("k"))
		return
	}
	if a.Scale == 0 {
		a.Scale = float32(1 / math.Sqrt(float64(q.Cols/a.Heads)))
	}
	cols := q.Cols / a.Heads * a.KVHeads
	if s.shaped(op, "k", k, q, q.Rows, cols) && s.shaped(op, "v", v, q, q.Rows, cols) && s.shaped(op, "dst", dst, q, q.Rows, q.Cols) &&
		s.apart(op, dst, q, false) && s.apart(op, dst, k, false) && s.apart(op, dst, v, false) && s.ragged(op, a.Seqs, q) && s.distances(dst, q, a) {
		s.q.Attention(dst, q, k, v, a)
	}
}

// distances checks what an attention has for the distance of query and key.
func (s *Stream) distances(dst, q Matrix, a Attention) bool {
	const op = "attention"
	if a.Window < 0 {
		s.refuse(op, ErrShape, fmt.Sprintf("a window of %d", a.Window))
		return false
	}
	n := max(2*a.Seqs.MaxLen-1, 0)
	if a.Bias != (Matrix{}) && (!s.shaped(op, "bias", a.Bias, q, n, a.Heads) || !s.apart(op, dst, a.Bias, false)) {
		return false
	}
	r := a.Relative
	if r.IDs == (Matrix{}) {
		if r.Keys != (Matrix{}) || r.Queries != (Matrix{}) {
			s.refuse(op, ErrShape, "relative keys or queries, and no numbers of distances", q.operand("q"))
		}
		return s.err == nil
	}
	if a.KVHeads != a.Heads {
		s.refuse(op, ErrUnsupported, "relative keys with grouped heads", q.operand("q"))
		return false
	}
	if !s.vector(op, "distances", r.IDs, n) {
		return false
	}
	for name, m := range map[string]Matrix{"relative keys": r.Keys, "relative queries": r.Queries} {
		if m != (Matrix{}) && (!s.shaped(op, name, m, q, m.Rows, q.Cols) || !s.apart(op, dst, m, false)) {
			return false
		}
	}
	return true
}

// Rotate turns pairs of elements of each head by an angle: columns i and i+size/2 of a head are a point, which row r turns
// by the angle whose cosine and sine are in column i of row r: x, dst [rows, heads*size], cos, sin [rows, size/2]. dst may be
// x. Source: arXiv 2104.09864, with the halves of a head as GPT-NeoX pairs them.
func (s *Stream) Rotate(dst, x, cos, sin Matrix, heads int) {
	const op = "rotate"
	if !s.unary(op, dst, x) {
		return
	}
	if heads <= 0 || x.Cols%heads != 0 || x.Cols/heads%2 != 0 {
		s.refuse(op, ErrShape, fmt.Sprintf("%d columns are not divided among %d heads of even size", x.Cols, heads), x.operand("x"))
		return
	}
	half := x.Cols / heads / 2
	if s.shaped(op, "cos", cos, x, x.Rows, half) && s.shaped(op, "sin", sin, x, x.Rows, half) && s.apart(op, dst, cos, false) && s.apart(op, dst, sin, false) {
		s.q.Rotate(dst, x, cos, sin, heads)
	}
}

// Unfold writes beside each token its neighbours, for a convolution: x [tokens, cols], dst [tokens, cols*kernel], column
// c*kernel+j of a token being column c of the one that is j-kernel/2 places behind it. It is zero where the sequence has no
// such token or the mask hides it. kernel is odd; dst shares no memory with x.
func (s *Stream) Unfold(dst, x Matrix, kernel int, seqs Ragged) {
	const op = "unfold"
	if !s.float(op, "x", x) {
		return
	}
	if kernel <= 0 || kernel%2 == 0 || kernel > math.MaxInt32/max(x.Cols, 1) {
		s.refuse(op, ErrShape, fmt.Sprintf("a kernel of %d", kernel), x.operand("x"))
		return
	}
	if s.shaped(op, "dst", dst, x, x.Rows, x.Cols*kernel) && s.apart(op, dst, x, false) && s.ragged(op, seqs, x) {
		s.q.Unfold(dst, x, kernel, seqs)
	}
}

// Gather writes the sum, over the tables and in their order, of the rows that the ids name: dst [rows, K]. An id that
// is no row is an error of kind ErrIndex at Sync; callers who know better say so before.
func (s *Stream) Gather(dst Matrix, tables []Lookup) {
	const op = "gather"
	if !s.float(op, "dst", dst) {
		return
	}
	if len(tables) == 0 {
		s.refuse(op, ErrShape, "no tables", dst.operand("dst"))
		return
	}
	for _, t := range tables {
		switch {
		case t.Table == nil || (t.Table.Role != tensor.Lookup && t.Table.Role != tensor.LookupLinear):
			s.refuse(op, ErrUnsupported, "a table has the role lookup", t.Table.operand("table"))
			return
		case t.Table.dev != s.dev:
			s.refuse(op, ErrDevice, "the table is on another device", t.Table.operand("table"))
			return
		case t.Table.K != dst.Cols:
			s.refuse(op, ErrShape, "rows of the table are not as long as those of dst", dst.operand("dst"), t.Table.operand("table"))
			return
		}
		if !s.vector(op, "ids", t.IDs, dst.Rows) || !s.hold(t.Table.gate) {
			return
		}
	}
	for i, t := range tables {
		if t.Table.rows != nil {
			tables = slices.Clone(tables)
			for ; i < len(tables); i++ {
				if rows := tables[i].Table.rows; rows != nil {
					tables[i].Table = rows
				}
			}
			break
		}
	}
	s.q.Gather(dst, tables)
}

// Pick writes the rows of x that an index names: dst [n, cols], rows I32 [1, n]. A row that is not there is an error of
// kind ErrIndex at Sync. dst shares no memory with x.
func (s *Stream) Pick(dst, x, rows Matrix) {
	const op = "pick"
	if s.float(op, "x", x) && s.shaped(op, "dst", dst, x, dst.Rows, x.Cols) && s.vector(op, "rows", rows, dst.Rows) && s.apart(op, dst, x, false) {
		s.q.Pick(dst, x, rows)
	}
}

// MeanPool writes the mean of the tokens of each sequence that the mask does not hide: x [tokens, cols], dst
// [sequences, cols]. A sequence without such tokens gives zeros. dst shares no memory with x.
func (s *Stream) MeanPool(dst, x Matrix, seqs Ragged) {
	const op = "meanpool"
	if s.float(op, "x", x) && s.shaped(op, "dst", dst, x, seqs.Seqs, x.Cols) && s.apart(op, dst, x, false) && s.ragged(op, seqs, x) {
		s.q.MeanPool(dst, x, seqs)
	}
}

// L2Normalize writes x/max(|x|, eps) of each row, |x| being the square root of the sum of squares. dst may be x.
func (s *Stream) L2Normalize(dst, x Matrix, eps float32) {
	if s.unary("l2normalize", dst, x) {
		s.q.L2Normalize(dst, x, eps)
	}
}
