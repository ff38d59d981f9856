package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const chunkBytes = 1 << 20

// fillBuffers is how many chunks of one put are on their way at a time, however many cores there are: a put over the socket
// takes 16 MiB beside its segment.
const fillBuffers = 16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// rowSum digests one row while its bytes are written into the segment.
type rowSum struct {
	p   *Put
	row int
	at  int64 // of the row, that was written
	sha hash.Hash
	crc uint32
}

func (p *Put) begin(row int) rowSum { return rowSum{p: p, row: row, sha: sha256.New()} }

// add writes the row's next bytes, and digests them while they are hot.
func (r *rowSum) add(b []byte) error {
	_, err := r.p.w.WriteAt(b, r.p.lay.offset[r.row]+r.at)
	r.at += int64(len(b))
	r.sha.Write(b)
	r.crc = crc32.Update(r.crc, castagnoli, b)
	return explain(err)
}

// end holds the row to its digest, or takes that of what arrived for a pending row.
func (r *rowSum) end() error {
	t := &r.p.man.Tensors[r.row]
	var sum manifest.Digest
	r.sha.Sum(sum[:0])
	r.p.crc[r.row] = r.crc
	if r.p.isPending(r.row) {
		t.SHA256 = sum
		return nil
	}
	if sum != t.SHA256 {
		return zcerr.New(zcerr.Corrupt, "tensor %q arrived with %s, the manifest says %s", t.Names[0], sum.Short(), t.SHA256.Short()).
			WithHint("the source changed while it was read; put it again")
	}
	return nil
}

func (p *Put) isPending(row int) bool {
	_, ok := slices.BinarySearch(p.pending, row)
	return ok
}

// claim notes that rows are being filled: each is wanted, and comes once.
func (p *Put) claim(rows []int) error {
	for _, row := range rows {
		if row < 0 || row >= len(p.filled) {
			return zcerr.New(zcerr.Invalid, "row %d of %d is not there", row, len(p.man.Tensors))
		}
		if _, wanted := slices.BinarySearch(p.wanted, row); !wanted {
			return zcerr.New(zcerr.Invalid, "the bytes of tensor %q came, and nobody asked for them", p.man.Tensors[row].Names[0])
		}
		if p.filled[row] {
			return zcerr.New(zcerr.Invalid, "the bytes of tensor %q came twice", p.man.Tensors[row].Names[0])
		}
		p.filled[row] = true
	}
	p.missing -= len(rows)
	return nil
}

// Fill reads the bytes of all wanted rows from r, in order and without framing. See FillRows.
func (p *Put) Fill(ctx context.Context, r io.Reader) error { return p.FillRows(ctx, p.wanted, r) }

// chunk is a piece of one row on its way to a hashing goroutine.
type chunk struct {
	row         int
	first, last bool // of its row
	bytes       []byte
}

// buffers are the chunks of one put that nobody uses; nil is one that was not needed yet.
type buffers chan []byte

func (b buffers) take(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-b:
		if buf == nil {
			buf = make([]byte, chunkBytes)
		}
		return buf, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// FillRows reads the bytes of some wanted rows from r, in the order of rows and without framing, writes them into the segment
// and hashes them while they are hot. It reads exactly as many bytes as the rows have. Errors: Corrupt when a row's bytes do
// not have its SHA-256, Invalid when r ends early or a row is not wanted. After an error the put can only be aborted.
func (p *Put) FillRows(ctx context.Context, rows []int, r io.Reader) error {
	if p.lay == nil && len(rows) == 0 {
		return nil
	}
	if err := p.claim(rows); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	bufs := make(buffers, fillBuffers)
	for range fillBuffers {
		bufs <- nil
	}
	queues := make([]chan chunk, min(runtime.GOMAXPROCS(0), fillBuffers))
	var wg sync.WaitGroup
	for i := range queues {
		queues[i] = make(chan chunk, 4)
		wg.Go(func() { p.drain(queues[i], bufs, cancel) })
	}
	err := p.readRows(ctx, rows, r, queues, bufs)
	for _, q := range queues {
		close(q)
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// readRows deals the rows to the queues in turn, so that several are hashed at a time.
func (p *Put) readRows(ctx context.Context, rows []int, r io.Reader, queues []chan chunk, bufs buffers) error {
	in := &exactReader{r: r}
	for _, row := range rows {
		in.left += int64(p.man.Tensors[row].Bytes())
	}
	small := bufio.NewReaderSize(in, 64<<10) // large reads go past it
	for i, row := range rows {
		size := int64(p.man.Tensors[row].Bytes())
		q := queues[i%len(queues)]
		for done := int64(0); ; {
			n := int(min(chunkBytes, size-done))
			buf, err := bufs.take(ctx)
			if err != nil {
				return err
			}
			if _, err := io.ReadFull(small, buf[:n]); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					return zcerr.New(zcerr.Invalid, "the bytes end inside tensor %q: %w", p.man.Tensors[row].Names[0], err)
				}
				return err
			}
			c := chunk{row: row, first: done == 0, last: done+int64(n) == size, bytes: buf[:n]}
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

// exactReader reads left bytes and not one more: what follows belongs to somebody else.
type exactReader struct {
	r    io.Reader
	left int64
}

func (e *exactReader) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.Read(b[:min(int64(len(b)), e.left)])
	e.left -= int64(n)
	return n, err
}

// drain writes and hashes the chunks of one queue.
func (p *Put) drain(q <-chan chunk, bufs buffers, fail context.CancelCauseFunc) {
	var sum rowSum
	for c := range q {
		if c.first {
			sum = p.begin(c.row)
		}
		err := sum.add(c.bytes)
		bufs <- c.bytes[:chunkBytes]
		if err == nil && c.last {
			err = sum.end()
		}
		if err != nil {
			fail(err)
		}
	}
}

// FillKept takes the bytes of all wanted rows from a put that Settle refused, by their digests.
func (p *Put) FillKept(ctx context.Context, old *Put) error {
	at := map[manifest.Digest]int64{}
	for _, row := range old.wanted {
		at[old.man.Tensors[row].SHA256] = old.lay.offset[row]
	}
	var parts []io.Reader
	for _, row := range p.wanted {
		t := &p.man.Tensors[row]
		off, ok := at[t.SHA256]
		if !ok && t.Bytes() > 0 {
			return zcerr.New(zcerr.Invalid, "tensor %q is not among what was sent before", t.Names[0])
		}
		parts = append(parts, io.NewSectionReader(old.w, off, int64(t.Bytes())))
	}
	return p.Fill(ctx, io.MultiReader(parts...))
}

// Settle ends the filling: it sets the digests of pending rows and the version's own, and writes the segment's header with the
// rows' checksums. When a pending row has the content of another row, or of a tensor that was stored meanwhile, the put would
// store it twice: then again has the digests of all pending rows, and the put can only be aborted, or kept for another one.
// Errors: Invalid when bytes are missing.
func (p *Put) Settle() (again []manifest.Digest, err error) {
	if p.existed || p.settled {
		return nil, nil
	}
	if p.missing > 0 {
		return nil, zcerr.New(zcerr.Invalid, "commit before all bytes were sent")
	}
	if len(p.pending) > 0 || p.form != nil {
		if p.form == nil && p.redundant() {
			for _, row := range p.pending {
				again = append(again, p.man.Tensors[row].SHA256)
			}
			return again, nil
		}
		if _, p.digest, err = p.man.Encode(); err != nil {
			return nil, err
		}
	}
	if p.lay != nil {
		if _, err := p.w.WriteAt(p.lay.headerWith(p.crc, p.digest), 0); err != nil {
			return nil, err
		}
	}
	p.settled = true
	return nil, nil
}

// redundant reports that a pending row turned out to be stored, or to be one with another row.
func (p *Put) redundant() bool {
	if p.man.Twins() {
		return true
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	for _, row := range p.pending {
		t := &p.man.Tensors[row]
		if _, stored := p.s.content[t.SHA256]; stored && t.Bytes() >= dedupBytes {
			return true
		}
	}
	return false
}

// headerWith is the header with the version's digest and the checksums of its entries, crc having those of the rows.
func (l *layout) headerWith(crc []uint32, d manifest.Digest) []byte {
	b := bytes.Clone(l.header)
	copy(b[l.nameAt:], d.Hex())
	if l.crcAt == 0 {
		return b
	}
	for i, row := range l.entries {
		var sum [4]byte
		if row >= 0 {
			binary.BigEndian.PutUint32(sum[:], crc[row])
		} else {
			binary.BigEndian.PutUint32(sum[:], crc32.Checksum(make([]byte, -1-row), castagnoli))
		}
		hex.Encode(b[l.crcAt+8*i:], sum[:])
	}
	return b
}
