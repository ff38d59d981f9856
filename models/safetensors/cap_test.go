package safetensors

import (
	"encoding/binary"
	"errors"
	"runtime"
	"testing"
	"time"
)

// endless is a file of any size whose header has a length; it counts what is read of it.
type endless struct {
	header uint64
	read   int
}

func (e *endless) ReadAt(p []byte, off int64) (int, error) {
	e.read += len(p)
	prefix := append(binary.LittleEndian.AppendUint64(nil, e.header), '{')
	for i := range p {
		p[i] = ' '
		if at := off + int64(i); at < int64(len(prefix)) {
			p[i] = prefix[at]
		}
	}
	return len(p), nil
}

// A million tensors need a header of about 129 MB: over the cap, so it is refused by its length, before any of it is read,
// parsed or allocated.
func TestCase50HeaderOverTheCap(t *testing.T) {
	for _, header := range []uint64{MaxHeaderBytes + 1, 129_000_000, 1 << 40, 1<<64 - 1} {
		f := &endless{header: header}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := time.Now()
		_, err := Read(f, 1<<50)
		took := time.Since(begin)
		runtime.ReadMemStats(&after)
		var bad *FormatError
		if !errors.As(err, &bad) {
			t.Errorf("%d: %v", header, err)
		}
		if f.read > 64 || after.TotalAlloc-before.TotalAlloc > 1<<20 || took > 100*time.Millisecond {
			t.Errorf("%d: read %d bytes, allocated %d, took %v", header, f.read, after.TotalAlloc-before.TotalAlloc, took)
		}
	}
}
