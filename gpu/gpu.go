// Package gpu is the seam between models and what computes for them: a CPU, a graphics card, a fake in a test.
//
// # For models
//
// A [Device] takes weights ([Device.Import]) and hands out streams ([Device.NewStream]). A [Stream] runs ops in the
// order in which they are called, some time between the call and [Stream.Sync]: an op returns before it has run, and a
// model must not look at memory behind the seam. The first error sticks: later ops do nothing, Sync returns it.
//
//	s, err := dev.NewStream()
//	if err != nil { return err }
//	defer s.Close()
//	x := s.F32(rows, in)          // scratch, until s.Close or s.Release
//	y := s.F32(rows, out)
//	s.Upload(x, input)            // input stays untouched until Sync
//	s.Linear(y, x, weights, gpu.Epilogue{Act: gpu.ReLU})
//	s.Download(output, y)         // output is there after Sync
//	return s.Sync()
//
// Activations are F32 matrices of rows and columns with a row stride ([Matrix]). Weights are opaque ([Weight]): in
// which order and dtype their bytes lie is between the device and the store. Texts of different length lie one behind
// the other without padding ([Ragged]).
//
// # For backends
//
// A backend implements Device, [Queue] and [Buf]. Operands are checked here, once, before anything reaches a queue, so
// that all backends refuse the same inputs with the same [OpError]. Package gputest is the kit that each has to pass.
//
// # Promises
//
// A row of a result depends on that row of the inputs and on the weights alone, to the last bit: not on the batch, the
// neighbours, or the number of threads. Between backends results agree within the bounds of gputest.
package gpu

import (
	"fmt"

	"github.com/zcstore/zcstore/shm/tensor"
)

// Device is where weights lie and ops run. It is safe for concurrent use.
type Device interface {
	// Info describes the device.
	Info() Info
	// Alloc makes a buffer of at least this size. What it holds is undefined.
	Alloc(bytes int) (Buf, error)
	// Import makes a weight of a stored tensor. The role says how the tensor is used; the bytes must live and stay as
	// they are for as long as the weight is used. The error is an [*OpError] for what no backend computes with.
	Import(v tensor.View, role tensor.Role) (*Weight, error)
	// NewStream lends a stream to one goroutine, until Close.
	NewStream() (*Stream, error)
	// Close ends the device. No stream may be in use.
	Close() error
}

// Info describes a device.
type Info struct {
	Backend string // "cpu", "cuda"
	Name    string // for people: "go, 2 threads"
	Threads int    // 0 where that is no notion
}

// Buf is memory of a device, opaque to the host.
type Buf interface {
	Device() Device
	// Len is the size in bytes.
	Len() int
	// Free gives the memory back once the work that was queued before is done. Freeing twice is allowed.
	Free()
}

// Matrix is rows of a buffer that lie Stride elements apart. It is a value and owns nothing. A vector has one row.
type Matrix struct {
	Buf    Buf
	Off    int // of the first element, in elements
	Rows   int
	Cols   int
	Stride int // from row to row, in elements; at least Cols
	DType  tensor.DType
}

// Shape is [rows, cols].
func (m Matrix) Shape() tensor.Shape { return tensor.Shape{m.Rows, m.Cols} }

// Columns is the part of n columns from the given one on.
func (m Matrix) Columns(from, n int) Matrix {
	if m.Rows > 0 { // an empty matrix may lie at the very end of its buffer
		m.Off += from
	}
	m.Cols = n
	return m
}

// Slice is the part of n rows from the given one on.
func (m Matrix) Slice(from, n int) Matrix {
	if n > 0 {
		m.Off += from * m.Stride
	}
	m.Rows = n
	return m
}

// end is the index after the last element, in elements.
func (m Matrix) end() int {
	if m.Rows == 0 || m.Cols == 0 {
		return m.Off
	}
	return m.Off + (m.Rows-1)*m.Stride + m.Cols
}

// valid reports whether the matrix lies inside its buffer.
func (m Matrix) valid() bool {
	if m.Buf == nil || m.Off < 0 || m.Rows < 0 || m.Cols < 0 || m.Stride < m.Cols {
		return false
	}
	elems := m.Buf.Len() / elemSize
	if m.Rows > 1 && m.Stride > elems/(m.Rows-1) {
		return false
	}
	return m.end() <= elems
}

// overlaps reports whether the two share an element.
func (m Matrix) overlaps(o Matrix) bool {
	if m.Buf != o.Buf || m.Rows*m.Cols == 0 || o.Rows*o.Cols == 0 || m.end() <= o.Off || o.end() <= m.Off {
		return false
	}
	if m.Stride != o.Stride {
		return true
	}
	between := (o.Off - m.Off) % m.Stride // columns of one wider matrix, side by side, wherever that begins
	if between < 0 {
		between += m.Stride
	}
	return between < m.Cols || between+o.Cols > m.Stride
}

// same reports whether the two are the same elements in the same places.
func (m Matrix) same(o Matrix) bool { return m == o }

// elemSize is the size of an activation: F32, or I32 for indices.
const elemSize = 4

// Act is an element-wise function.
type Act uint8

// The activations. GELUErf is x*Phi(x), GELUTanh its tanh approximation, SiLU x*sigmoid(x).
const (
	None Act = iota
	ReLU
	GELUErf
	GELUTanh
	SiLU
	Tanh
	Sigmoid
	acts
)

var actNames = [acts]string{"none", "relu", "gelu-erf", "gelu-tanh", "silu", "tanh", "sigmoid"}

func (a Act) String() string {
	if a >= acts {
		return fmt.Sprintf("act(%d)", uint8(a))
	}
	return actNames[a]
}

// Binary is an element-wise function of two operands.
type Binary uint8

// The binary functions. Min and Max give NaN when either operand is NaN.
const (
	Add Binary = iota
	Sub
	Mul
	Div
	Min
	Max
	binaries
)

var binaryNames = [binaries]string{"add", "sub", "mul", "div", "min", "max"}

func (b Binary) String() string {
	if b >= binaries {
		return fmt.Sprintf("binary(%d)", uint8(b))
	}
	return binaryNames[b]
}

// Epilogue is what a Linear does to a result before it is written: bias (of the group), then Act, then Residual.
type Epilogue struct {
	Act      Act
	Residual Matrix // added last; the zero Matrix adds nothing. May be dst.
}

// Ragged is a batch of sequences of different lengths whose tokens lie one behind the other, without padding.
// [Stream.Ragged] makes it; it is valid as long as the scratch of that stream.
type Ragged struct {
	Offsets Matrix // I32 [1, sequences+1]: sequence i is the tokens from Offsets[i] to Offsets[i+1]
	Mask    Matrix // I32 [1, tokens]; 0 hides a token. The zero Matrix hides none.
	Seqs    int
	Tokens  int
	MaxLen  int // of the longest sequence
}

// Attention says how queries meet keys.
type Attention struct {
	Heads   int     // heads lie side by side in the columns
	KVHeads int     // of keys and values: head i uses number i/(Heads/KVHeads); 0 is Heads
	Scale   float32 // of the scores; 0 is 1/sqrt(head size)
	Seqs    Ragged  // a token sees the tokens of its own sequence that the mask does not hide
	Causal  bool    // and of those not the ones behind it
	Window  int     // and of those only the ones at most so many places away; 0 is any number

	// Bias is added to the scaled scores by how far a key is from its query: F32 [2*Seqs.MaxLen-1, Heads], row
	// Seqs.MaxLen-1+key-query. The zero Matrix adds nothing. As in T5 (arXiv 1910.10683) and MPNet.
	Bias Matrix
	// Relative has scores of its own for how far a query is from a key.
	Relative Relative
}

// Relative is disentangled attention: a query q and a key k, whose distance query-key has number id, get q·Keys[id] and
// k·Queries[id] added to the score before it is scaled. Source: arXiv 2006.03654, as DeBERTa-v2 has it.
type Relative struct {
	IDs     Matrix // I32 [1, 2*Seqs.MaxLen-1]: numbers by Seqs.MaxLen-1+query-key, rows of Keys and Queries. The zero Matrix: none
	Keys    Matrix // F32 [numbers, heads*size], or the zero Matrix
	Queries Matrix // F32 [numbers, heads*size], or the zero Matrix
}

// Lookup is one table of a Gather.
type Lookup struct {
	Table *Weight
	IDs   Matrix // I32 [1, rows]
}

// Queue runs ops for a stream, in order. Backends implement it; models use [Stream]. All operands have been checked.
// Calls come from one goroutine at a time. An op that fails keeps its error for Sync.
type Queue interface {
	Upload(dst Matrix, src []float32)
	UploadInts(dst Matrix, src []int32)
	Download(dst []float32, src Matrix)
	Copy(dst, src Matrix)
	Zero(dst Matrix)

	Linear(dst, x Matrix, g *Group, e Epilogue)
	Binary(op Binary, dst, a, b Matrix)
	Scalar(op Binary, dst, a Matrix, f float32)
	Act(dst, x Matrix, a Act)
	LayerNorm(dst, x, residual Matrix, gamma, beta *Weight, eps float32)
	RMSNorm(dst, x, residual Matrix, gamma *Weight, eps float32)
	Softmax(dst, x Matrix)
	Attention(dst, q, k, v Matrix, a Attention)
	Rotate(dst, x, cos, sin Matrix, heads int)
	Unfold(dst, x Matrix, kernel int, seqs Ragged)
	Gather(dst Matrix, tables []Lookup)
	Pick(dst, x, rows Matrix)
	MeanPool(dst, x Matrix, seqs Ragged)
	L2Normalize(dst, x Matrix, eps float32)

	// Sync waits for everything queued and returns, once, the first error since the last Sync.
	Sync() error
	Close() error
}

// Scratcher is a device with a kind of memory of its own for what a stream works in: the stream frees all of it, and nobody has
// a buffer of it otherwise.
type Scratcher interface {
	AllocScratch(bytes int) (Buf, error)
}

// ReleaseObserver is a queue that wants to know when scratch is released, to poison it.
type ReleaseObserver interface {
	Released(b Buf, off, elems int)
}
