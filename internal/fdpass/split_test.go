package fdpass

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func split(t *testing.T, o SplitOptions) (g, raw *Listener, addr *net.UnixAddr) {
	t.Helper()
	addr = &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	ln, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	g, raw = Split(ln, o)
	t.Cleanup(func() { raw.Close() })
	return g, raw, addr
}

func call(t *testing.T, addr *net.UnixAddr, first string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Write([]byte(first)) // fails when the caller is refused already
	return c
}

// closed waits for the other end to close c.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("still open: %d, %v", n, err)
	}
}

func TestSplit(t *testing.T) {
	g, raw, addr := split(t, SplitOptions{})
	files := marked(t, 3)
	base := memfds(t)
	serveOn(t, g, ServerOptions{}, &service{files: files})

	conn, first, err := get(context.Background(), dial(t, "unix:"+addr.Name), 0, 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		f, err := conn.Take(first + uint64(i))
		if err == nil {
			err = check(f, files, i)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if _, _, err := get(context.Background(), dialPlain(t, "unix:"+addr.Name), 0, 1, 0); err != nil {
		t.Errorf("a plain client: %v", err)
	}

	c := call(t, addr, "ZC")
	if _, err := c.Write([]byte("R1ticket")); err != nil { // the magic may come in pieces
		t.Fatal(err)
	}
	s, err := raw.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	buf := make([]byte, len("ZCR1ticket"))
	s.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "ZCR1ticket" {
		t.Fatalf("%q, %v", buf, err)
	}
	backTo(t, base)
}

func TestSplitRefuses(t *testing.T) {
	g, raw, addr := split(t, SplitOptions{PeekTimeout: 50 * time.Millisecond})
	closed(t, call(t, addr, "GET / HTTP/1.1"))
	start := time.Now()
	closed(t, call(t, addr, ""))
	closed(t, call(t, addr, "PR"))
	closed(t, call(t, addr, MagicRaw)) // and nobody accepts it
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("silent callers closed after %v", d)
	}
	gone := call(t, addr, "")
	gone.Close()
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	for _, l := range []*Listener{g, raw} {
		if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v, %v", c, err)
		}
	}
	if len(raw.s.open) != 0 || len(raw.s.perUID) != 0 {
		t.Errorf("left behind: %v, %v", raw.s.open, raw.s.perUID)
	}
	if _, err := net.DialUnix("unix", nil, addr); err == nil {
		t.Error("the socket still listens")
	}
}

// 32 callers that say nothing are let in, the next are closed at once, and the place of one that spoke is free again.
func TestSplitCapPerUID(t *testing.T) {
	_, raw, addr := split(t, SplitOptions{PeekTimeout: time.Minute})
	var silent []*net.UnixConn
	for range 32 {
		silent = append(silent, call(t, addr, ""))
	}
	unfinished := func() int {
		raw.s.mu.Lock()
		defer raw.s.mu.Unlock()
		return raw.s.perUID[uint32(os.Getuid())]
	}
	eventually(t, "32 unfinished", func() bool { return unfinished() == 32 })
	for range 10 {
		closed(t, call(t, addr, MagicRaw))
	}
	if _, err := silent[7].Write([]byte(MagicRaw)); err != nil {
		t.Fatal(err)
	}
	c, err := raw.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, "31 unfinished", func() bool { return unfinished() == 31 })
	call(t, addr, MagicRaw)
	if c, err = raw.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	raw.Close() // with 31 silent ones
	for i, c := range silent {
		if i != 7 {
			closed(t, c)
		}
	}
}
