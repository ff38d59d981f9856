package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
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
	s, err := raw.Next()
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
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("silent callers closed after %v", d)
	}
	gone := call(t, addr, "")
	gone.Close()
	waits := call(t, addr, MagicRaw) // until the listener closes
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	for _, l := range []*Listener{g, raw} {
		if c, err := l.Accept(); c != nil || !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept after close: %v, %v", c, err)
		}
	}
	if len(raw.s.silent) != 0 || raw.s.total != 0 || raw.s.waiting != 0 {
		t.Errorf("left behind: %v, %d, %d", raw.s.silent, raw.s.total, raw.s.waiting)
	}
	closed(t, waits)
	if _, err := net.DialUnix("unix", nil, addr); err == nil {
		t.Error("the socket still listens")
	}
}

// 500 callers of one uid are served beside 100 silent ones of it, of which the oldest go.
func TestSplitBurst(t *testing.T) {
	g, raw, addr := split(t, SplitOptions{PeekTimeout: time.Minute, Grace: 2 * time.Second, MaxSilentTotal: 1000})
	var silent []*net.UnixConn
	for range 100 {
		silent = append(silent, call(t, addr, ""))
	}
	const burst = 500
	fail := make(chan error, burst)
	var wrote sync.WaitGroup
	for i := range burst {
		wrote.Add(1)
		go func() {
			first := []string{MagicRaw, MagicFramed, "PRI * HTTP/2.0"}[i%3]
			c, err := net.DialUnix("unix", nil, addr)
			if err == nil {
				defer c.Close()
				_, err = c.Write([]byte(first))
			}
			wrote.Done()
			if err == nil {
				c.SetReadDeadline(time.Now().Add(30 * time.Second))
				_, err = io.ReadFull(c, make([]byte, 2))
			}
			fail <- err
		}()
	}
	wrote.Wait() // nobody accepts before: they wait and none is dropped
	for _, l := range []*Listener{g, raw} {
		go func() {
			for {
				c, err := l.Next()
				if err != nil {
					return
				}
				c.Write([]byte("ok"))
				c.Close()
			}
		}()
	}
	for range burst {
		if err := <-fail; err != nil {
			t.Error(err)
		}
	}
	for i, c := range silent {
		if i < 68 {
			closed(t, c)
		}
	}
	counts(t, raw, 32, 0)
	raw.Close()
	for _, c := range silent[68:] {
		closed(t, c)
	}
}

func counts(t *testing.T, l *Listener, silent, waiting int) {
	t.Helper()
	eventually(t, fmt.Sprint(silent, " silent, ", waiting, " waiting"), func() bool {
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		return l.s.total == silent && l.s.waiting == waiting
	})
}

// While as many wait as may, further callers stay in the kernel.
func TestSplitWaiting(t *testing.T) {
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	ln, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 { // before Split, so that none is silent when it is let in: such a one would join those that wait
		call(t, addr, MagicRaw)
	}
	_, raw := Split(ln, SplitOptions{MaxWaiting: 3})
	defer raw.Close()
	for i := range 10 {
		counts(t, raw, 0, min(3, 10-i))
		c, err := raw.Next()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// Over a limit, of one uid or of all, the oldest silent ones go; the others are served when they speak.
func TestSplitEvicts(t *testing.T) {
	for name, o := range map[string]SplitOptions{
		"one uid": {MaxSilent: 4},
		"total":   {MaxSilent: 100, MaxSilentTotal: 4},
	} {
		t.Run(name, func(t *testing.T) {
			o.PeekTimeout, o.Grace = time.Minute, time.Millisecond
			_, raw, addr := split(t, o)
			var cs []*net.UnixConn
			for range 10 {
				cs = append(cs, call(t, addr, ""))
			}
			for _, c := range cs[:6] {
				closed(t, c)
			}
			for i, c := range cs[6:] {
				if _, err := c.Write([]byte(MagicRaw)); err != nil {
					t.Fatal(i, err)
				}
				s, err := raw.Next()
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
				counts(t, raw, 3-i, 0)
			}
		})
	}
}

// Nobody goes within its grace, and a doomed one stays if its uid is not over the limit any more at the end of it.
func TestSplitGrace(t *testing.T) {
	_, raw, addr := split(t, SplitOptions{PeekTimeout: time.Minute, Grace: time.Minute - time.Second, MaxSilent: 2})
	var cs []*net.UnixConn
	for i := range 4 {
		cs = append(cs, call(t, addr, ""))
		counts(t, raw, i+1, 0)
	}
	speak := func(c *net.UnixConn) {
		t.Helper()
		if _, err := c.Write([]byte(MagicRaw)); err != nil {
			t.Fatal(err)
		}
		s, err := raw.Next()
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	raw.s.mu.Lock()
	list := slices.Clone(raw.s.silent[uint32(os.Getuid())])
	for i, k := range list {
		if k.doomed != (i < 2) {
			t.Errorf("%d of 4 is doomed: %v", i, k.doomed)
		}
	}
	raw.s.mu.Unlock()
	speak(cs[3])
	speak(cs[2])
	counts(t, raw, 2, 0)
	list[0].c.SetReadDeadline(time.Now()) // the end of its grace
	eventually(t, "pardoned", func() bool {
		raw.s.mu.Lock()
		defer raw.s.mu.Unlock()
		return !list[0].doomed
	})
	counts(t, raw, 2, 0)
	speak(cs[0])
	speak(cs[1])
}

// The total limit falls on the uid with most silent connections.
func TestSplitHeaviest(t *testing.T) {
	now := time.Now()
	at := func(sec int) *caller { return &caller{since: now.Add(time.Duration(sec) * time.Second)} }
	s := &splitter{silent: map[uint32][]*caller{1: {at(0)}, 2: {at(5), at(6)}, 3: {at(3), at(9)}}}
	if uid := s.heaviest(); uid != 3 {
		t.Errorf("uid %d, want 3", uid)
	}
}
