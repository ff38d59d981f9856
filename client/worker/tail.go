package worker

import (
	"io"
	"strings"
	"sync"
)

// tail passes a worker's stderr on and remembers the end of it, for the error when the worker dies.
type tail struct {
	to *shared

	mu  sync.Mutex
	end []byte // guarded by mu; the last tailBytes at least
}

const (
	tailBytes = 16 << 10
	tailLines = 12
)

// Write never fails: a reader of stderr that has gone must not end the worker.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	t.end = append(t.end, b...)
	if len(t.end) > 2*tailBytes {
		t.end = append([]byte(nil), t.end[len(t.end)-tailBytes:]...)
	}
	t.mu.Unlock()
	return t.to.Write(b)
}

// String is what is worth quoting: a Go crash from its first line on, otherwise the last lines.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimRight(string(t.end), "\n"), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") {
			lines = lines[i:]
			return strings.Join(lines[:min(len(lines), tailLines)], "\n")
		}
	}
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// shared lets several workers write to one writer.
type shared struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

// Write reports success even when the writer fails, as for tail.
func (s *shared) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.w.Write(b)
	return len(b), nil
}
