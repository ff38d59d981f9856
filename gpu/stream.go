package gpu

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Stream runs ops in order for one goroutine at a time. See the package documentation for what asynchronous means.
//
// It owns scratch memory: [Stream.F32] and [Stream.I32] cut matrices from it, [Stream.Release] gives back all that was
// cut after a [Stream.Mark]. Memory grows to what the largest run so far needed and is then used again and again.
type Stream struct {
	dev  Device
	q    Queue
	pool *Pool
	err  error

	chunks []Buf
	at     mark
	high   int     // largest number of bytes in use so far
	ints   []int32 // host side of what Ragged uploads, until Sync

	held []*region.Gate // of the mapped weights in use since the last Sync, seldom more than one
}

// Mark is a state of a stream's scratch.
type Mark struct{ m mark }

type mark struct {
	chunk, off int // next free element
	used       int // bytes in use over all chunks
}

// minChunk is the size of the first piece of scratch, in bytes.
const minChunk = 64 << 10

// Device is the device that the stream runs on.
func (s *Stream) Device() Device { return s.dev }

// Err is the error that Sync will return, if it is known already.
func (s *Stream) Err() error { return s.err }

// Fail makes err the stream's error unless there is one: later ops do nothing and Sync returns it.
func (s *Stream) Fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

// Sync waits until all ops have run and returns the first error since the last Sync. When a file under weights was cut
// meanwhile, the error's kind is zcerr.Fault. Sync also lets go of the weights: a model that is being closed waits for it.
func (s *Stream) Sync() error {
	err := s.q.Sync()
	for i, g := range s.held {
		g.Leave()
		s.held[i] = nil
	}
	s.held = s.held[:0]
	if err == nil { // after a refusal nothing is launched, so an error of the queue came before it
		err = s.err
	}
	s.err = nil
	s.ints = s.ints[:0]
	if s.at.used == 0 && len(s.chunks) > 1 {
		s.drop() // next time one piece of the size that was needed
	}
	return err
}

// hold keeps the mapping of a weight open until Sync; false when it is closed, which is then the stream's error.
func (s *Stream) hold(g *region.Gate) bool {
	if g == nil || slices.Contains(s.held, g) {
		return true
	}
	if err := g.Enter(); err != nil {
		s.Fail(err)
		return false
	}
	s.held = append(s.held, g)
	return true
}

// holdAll is hold for the weights of one op, which may be nil.
func (s *Stream) holdAll(ws ...*Weight) bool {
	for _, w := range ws {
		if w != nil && !s.hold(w.gate) {
			return false
		}
	}
	return true
}

// Close waits for what is queued, releases the scratch and gives the stream back. Errors not asked for by Sync are lost.
func (s *Stream) Close() {
	s.Release(Mark{})
	s.Sync()
	if !s.pool.put(s) {
		s.shut()
	}
}

func (s *Stream) shut() error {
	s.drop()
	return s.q.Close()
}

func (s *Stream) drop() {
	for i, b := range s.chunks {
		b.Free()
		s.chunks[i] = nil
	}
	s.chunks = s.chunks[:0]
	s.at = mark{}
}

// HighWater is the largest amount of scratch that was in use at once, in bytes.
func (s *Stream) HighWater() int { return s.high }

// Mark notes how much scratch is in use.
func (s *Stream) Mark() Mark { return Mark{s.at} }

// Release gives back the scratch that was cut since the mark; ops queued before still find it whole. The zero Mark
// gives back everything.
func (s *Stream) Release(m Mark) {
	if o, ok := s.q.(ReleaseObserver); ok {
		for c := m.m.chunk; c <= s.at.chunk && c < len(s.chunks); c++ {
			from, to := 0, s.chunks[c].Len()/elemSize
			if c == m.m.chunk {
				from = m.m.off
			}
			if c == s.at.chunk {
				to = s.at.off
			}
			if to > from {
				o.Released(s.chunks[c], from, to-from)
			}
		}
	}
	s.at = m.m
}

// F32 cuts a matrix of activations from the scratch. What it holds is undefined. Rows of a multiple of 4096 bytes lie a
// little further apart than they are long: else they would share the same few sets of a processor's cache.
func (s *Stream) F32(rows, cols int) Matrix {
	const page, gap = 4096 / elemSize, 64 / elemSize
	if rows < 2 || cols == 0 || cols%page != 0 || cols > math.MaxInt32-gap {
		return s.cut(tensor.F32, rows, cols)
	}
	m := s.cut(tensor.F32, rows, cols+gap)
	if m.Cols > 0 { // else it was refused
		m.Cols = cols
	}
	return m
}

// I32 cuts a vector of indices from the scratch.
func (s *Stream) I32(n int) Matrix { return s.cut(tensor.I32, 1, n) }

func (s *Stream) cut(d tensor.DType, rows, cols int) Matrix {
	m := Matrix{Rows: rows, Cols: cols, Stride: cols, DType: d}
	if rows < 0 || cols < 0 || (cols > 0 && rows > math.MaxInt32*64/cols) {
		s.Fail(&OpError{Op: "scratch", Kind: ErrShape, Reason: "no such matrix", Operands: []Operand{{"", m.Shape(), d}}})
		m.Rows, m.Cols, m.Stride = 0, 0, 0
		rows, cols = 0, 0
	}
	const align = 64 / elemSize
	n := (rows*cols + align - 1) / align * align
	for {
		if s.at.chunk < len(s.chunks) {
			if b := s.chunks[s.at.chunk]; s.at.off+n <= b.Len()/elemSize {
				m.Buf, m.Off = b, s.at.off
				s.at.off += n
				s.at.used += n * elemSize
				s.high = max(s.high, s.at.used)
				return m
			}
			s.at.chunk++
			s.at.off = 0
			continue
		}
		alloc := s.dev.Alloc
		if d, ok := s.dev.(Scratcher); ok {
			alloc = d.AllocScratch
		}
		b, err := alloc(max(n*elemSize, minChunk, s.high-s.at.used, s.at.used))
		if err != nil {
			s.Fail(err)
			if m.Rows*m.Cols == 0 {
				return m
			}
			return Matrix{DType: d}
		}
		s.chunks = append(s.chunks, b)
	}
}

// Pool keeps the idle streams of a device. Backends embed one in their device.
type Pool struct {
	mu     sync.Mutex
	idle   []*Stream // guarded by mu
	closed bool      // guarded by mu
}

// Get lends an idle stream, or makes one on the queue that open returns.
func (p *Pool) Get(dev Device, open func() (Queue, error)) (*Stream, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, fmt.Errorf("device %s is closed", dev.Info().Backend)
	}
	if n := len(p.idle); n > 0 {
		s := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return s, nil
	}
	p.mu.Unlock()
	q, err := open()
	if err != nil {
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	return &Stream{dev: dev, q: q, pool: p}, nil
}

func (p *Pool) put(s *Stream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= runtime.GOMAXPROCS(0) {
		return false
	}
	p.idle = append(p.idle, s)
	return true
}

// Close ends the idle streams; those in use end when they are closed.
func (p *Pool) Close() error {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	p.mu.Unlock()
	var first error
	for _, s := range idle {
		if err := s.shut(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
