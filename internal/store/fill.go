package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"runtime"
	"sync"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const chunkBytes = 1 << 20

// chunk is a piece of one row on its way to a hashing goroutine.
type chunk struct {
	row   int
	first bool // of its row
	last  bool
	off   int64 // in the segment
	buf   *[]byte
	n     int
}

// Fill reads the bytes of the wanted rows from r, in order and without framing, writes them into the segment and hashes
// them while they are hot. It reads exactly WantedBytes. Errors: Corrupt when a row's bytes do not have its SHA-256, Invalid
// when r ends early.
func (p *Put) Fill(ctx context.Context, r io.Reader) error {
	if p.existed || p.filled {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	workers := max(1, runtime.GOMAXPROCS(0))
	bufs := sync.Pool{New: func() any { b := make([]byte, chunkBytes); return &b }}
	queues := make([]chan chunk, workers)
	var wg sync.WaitGroup
	for i := range queues {
		queues[i] = make(chan chunk, 4)
		wg.Add(1)
		go func() {
			defer wg.Done()
			p.drain(queues[i], &bufs, cancel)
		}()
	}
	err := p.readRows(ctx, bufio.NewReaderSize(r, chunkBytes), queues, &bufs)
	for _, q := range queues {
		close(q)
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		return err
	}
	p.filled = true
	return nil
}

// readRows deals the rows to the queues in turn, so that several are hashed at a time.
func (p *Put) readRows(ctx context.Context, r io.Reader, queues []chan chunk, bufs *sync.Pool) error {
	for i, row := range p.wanted {
		size := int64(p.man.Tensors[row].Bytes())
		q := queues[i%len(queues)]
		for done := int64(0); ; {
			n := int(min(chunkBytes, size-done))
			buf := bufs.Get().(*[]byte)
			if _, err := io.ReadFull(r, (*buf)[:n]); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					return zcerr.New(zcerr.Invalid, "the bytes end inside tensor %q: %w", p.man.Tensors[row].Names[0], err)
				}
				return err
			}
			c := chunk{row: row, first: done == 0, last: done+int64(n) == size, off: p.lay.offset[row] + done, buf: buf, n: n}
			select {
			case q <- c:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if done += int64(n); done == size {
				break
			}
		}
	}
	return nil
}

// drain writes and hashes the chunks of one queue.
func (p *Put) drain(q <-chan chunk, bufs *sync.Pool, fail context.CancelCauseFunc) {
	var h hash.Hash
	for c := range q {
		if c.first {
			h = sha256.New()
		}
		b := (*c.buf)[:c.n]
		if _, err := p.w.WriteAt(b, c.off); err != nil {
			fail(err)
		}
		h.Write(b)
		bufs.Put(c.buf)
		if !c.last {
			continue
		}
		t := &p.man.Tensors[c.row]
		var sum manifest.Digest
		h.Sum(sum[:0])
		if sum != t.SHA256 {
			fail(zcerr.New(zcerr.Corrupt, "tensor %q arrived with %s, the manifest says %s", t.Names[0], sum.Short(), t.SHA256.Short()).
				WithHint("the source changed while it was read; put it again"))
		}
	}
}
