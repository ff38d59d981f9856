package store

import (
	"cmp"
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// RowAt says where in a source the bytes of a row begin.
type RowAt struct {
	Row    int
	Offset uint64
}

// importBytes is how much of a source a worker reads at a time: small enough for the bytes to be in the core's cache while they
// are hashed and written.
const importBytes = 256 << 10

// Import reads the bytes of rows from src, a foreign file of size bytes, on all cores. Every byte is read once, into memory of
// the daemon's own, and what is written is what was hashed: a source that changes meanwhile gives an error or the digest of
// that copy, never a mix.
//
// Import returns when the rows are filled, on the first error, when ctx ends, and when nothing was read for idle. A read that
// hangs in the kernel cannot be ended; it goes on by itself, and ended is called when the last one is over, exactly once. What it
// brings then is dropped: once Import has returned, progress is not called and the put is not written to.
// Errors: Invalid when a row does not lie in the source or is not wanted, Corrupt, Timeout.
func (p *Put) Import(ctx context.Context, src io.ReaderAt, size uint64, rows []RowAt, idle time.Duration, ended func(), progress func(n int)) error {
	if err := p.checkRows(size, rows); err != nil {
		ended()
		return err
	}
	// The large ones first, so that no core has the largest left when the others are done.
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b RowAt) int {
		return cmp.Compare(p.man.Tensors[b.Row].Bytes(), p.man.Tensors[a.Row].Bytes())
	})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, reads atomic.Int64
	var open tenure
	defer open.end()
	var wg sync.WaitGroup
	for range min(max(1, runtime.GOMAXPROCS(0)), len(rows)) {
		wg.Go(func() {
			buf := make([]byte, importBytes)
			for i := int(next.Add(1)) - 1; i < len(rows) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				if err := p.importRow(ctx, &open, src, rows[i], buf, func(n int) { reads.Add(1); progress(n) }); err != nil {
					cancel(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		ended()
		close(done)
	}()
	tick := time.NewTicker(idle)
	defer tick.Stop()
	for last := int64(-1); ; {
		select {
		case <-done:
			return context.Cause(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			now := reads.Load()
			if now == last {
				return zcerr.New(zcerr.Timeout, "nothing could be read from the source for %v", idle).WithHint("check the file system that the source is on")
			}
			last = now
		}
	}
}

// checkRows holds the rows to the size of the source.
func (p *Put) checkRows(size uint64, rows []RowAt) error {
	list := make([]int, len(rows))
	for i, r := range rows {
		list[i] = r.Row
	}
	if err := p.claim(list); err != nil {
		return err
	}
	for _, r := range rows {
		t := &p.man.Tensors[r.Row]
		if n := uint64(t.Bytes()); n > size || r.Offset > size-n {
			return zcerr.New(zcerr.Invalid, "tensor %q is said to be %d bytes at %d of a file that has %d", t.Names[0], n, r.Offset, size).WithHint("the source is cut or damaged; get it again")
		}
	}
	return nil
}

func (p *Put) importRow(ctx context.Context, open *tenure, src io.ReaderAt, r RowAt, buf []byte, read func(n int)) error {
	t := &p.man.Tensors[r.Row]
	sum := p.begin(r.Row)
	for size := int64(t.Bytes()); sum.at < size; {
		b := buf[:min(int64(len(buf)), size-sum.at)]
		n, err := src.ReadAt(b, int64(r.Offset)+sum.at)
		if n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				return zcerr.New(zcerr.Corrupt, "the source ends inside tensor %q: it was cut while it was read", t.Names[0]).WithHint("the source changed while it was read; put it again")
			}
			return zcerr.New(zcerr.Invalid, "read tensor %q: %w", t.Names[0], err)
		}
		err = open.while(func() error {
			read(n)
			return sum.add(b)
		})
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
	return open.while(sum.end)
}

// tenure is the time in which the workers of an import may touch what is the caller's again after it.
type tenure struct {
	mu    sync.RWMutex
	ended bool // guarded by mu
}

// while calls f, unless the time is over.
func (t *tenure) while(f func() error) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.ended {
		return context.Canceled
	}
	return f()
}

func (t *tenure) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
}
