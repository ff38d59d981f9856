package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/proto/zcerr"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envFuse); dir != "" {
		fuseMain(dir)
	}
	os.Exit(testleak.Run(m))
}

// pair is a connected Unix socket.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.DialUnix("unix", nil, ln.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestCase68TicketIsForOnePeerAndOneUse(t *testing.T) {
	s := New(nil, nil, "test")
	owner := peercred.Cred{UID: 1000, PID: 10, Process: 7}
	for _, thief := range []peercred.Cred{{UID: 1000, PID: 11, Process: 7}, {UID: 1001, PID: 10, Process: 7}, {UID: 1000, PID: 10, Process: 8}} {
		up := &upload{ctx: context.Background(), peer: owner, done: make(chan error, 1)}
		ticket := s.issue(up)
		if len(ticket) != 32 {
			t.Errorf("ticket %q", ticket)
		}
		_, conn := pair(t)
		if err := s.receive(conn, thief, ticket); !errors.Is(err, zcerr.Denied) || !strings.Contains(err.Error(), "another process") {
			t.Errorf("%+v: %v", thief, err)
		}
		if err := <-up.done; !errors.Is(err, zcerr.Denied) {
			t.Errorf("the put was told %v", err)
		}
		if err := s.receive(conn, owner, ticket); !errors.Is(err, zcerr.Denied) || !strings.Contains(err.Error(), "no put waits") {
			t.Errorf("a second use: %v", err)
		}
	}
	if len(s.tickets) != 0 {
		t.Errorf("%d tickets left", len(s.tickets))
	}
}

func TestPutThatNobodyFeedsIsCut(t *testing.T) {
	l := limits.Standard()
	l.Idle = 20 * time.Millisecond
	s := NewWith(nil, nil, "test", l, Access{})
	up := &upload{ctx: context.Background(), done: make(chan error, 1)}
	s.issue(up)
	select {
	case err := <-up.done:
		if !errors.Is(err, zcerr.Timeout) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a put without bytes stays open")
	}
}

// Whoever is connected and has not spoken must not hold up the end of the daemon.
func TestEndsAtOnceBesideHalfConnections(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	st, err := store.Open(store.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(st, nil, "test").Serve(ctx, ln) }()
	for _, hello := range []string{"", "ZCR1 ", "ZCR1 att", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "ZCF1"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(hello)); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(50 * time.Millisecond) // let the daemon begin to wait for them
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the daemon did not end within 5 s")
	}
}

func TestCase24ListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !errors.Is(err, zcerr.Conflict) || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120))); !errors.Is(err, zcerr.Invalid) {
		t.Errorf("a long path: %v", err)
	}
	for name, make := range map[string]func(path string) error{
		"a directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"a link":      func(p string) error { return os.Symlink(file, p) },
		"a dead link": func(p string) error { return os.Symlink(file+"-not", p) },
		"a fifo":      func(p string) error { return syscall.Mkfifo(p, 0o600) },
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", ""))
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); !errors.Is(err, zcerr.Conflict) || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("%s: %v", name, err)
		}
	}
	wide := filepath.Join(dir, "wide")
	if err := errors.Join(os.Mkdir(wide, 0o700), os.Chmod(wide, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(filepath.Join(wide, "s")); !errors.Is(err, zcerr.Denied) || !strings.Contains(zcerr.HintOf(err), "chmod o-w") {
		t.Errorf("a directory that everybody may write to: %v", err)
	}
	if err := os.Chmod(wide, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if ln, err := Listen(filepath.Join(wide, "s")); err != nil {
		t.Errorf("a directory like /tmp: %v", err)
	} else {
		ln.Close()
	}
	live := filepath.Join(dir, "live")
	ln, err := Listen(live)
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(live); st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := Listen(live); !errors.Is(err, zcerr.Conflict) || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a living daemon's: %v", err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	again, err := Listen(live)
	if err != nil {
		t.Fatalf("a dead daemon's: %v", err)
	}
	again.Close()
}
