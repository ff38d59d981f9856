package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// serve runs a server with these limits and gives it with its socket.
func serve(t *testing.T, l limits.Limits, change ...func(*Server)) (*Server, string) {
	t.Helper()
	l, err := l.Complete()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(store.Options{Dir: dir, MaxBytesPerUID: l.BytesPerUID})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewWith(st, nil, "test", l, Access{})
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		// What was taken out of the ledger is back.
		await(t, "an empty ledger", s.ledger.Idle)
		st.Close()
		os.RemoveAll(dir)
	})
	return s, path
}

// A put whose ticket is not taken is told so at once, whether its bytes fit the socket or not.
func TestRefusedTicketEndsThePut(t *testing.T) {
	for _, size := range []int{100, 8 << 20} {
		s, path := serve(t, limits.Limits{}, func(s *Server) {
			check := s.decide
			s.decide = func(c *net.UnixConn, cred peercred.Cred) error {
				s.mu.Lock()
				clear(s.tickets) // as if somebody had used it
				s.mu.Unlock()
				return check(c, cred)
			}
		})
		c, err := client.Dial(context.Background(), client.Options{Socket: path})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		begin := time.Now()
		_, err = c.Put(context.Background(), "m", oneTensor(bytes.NewReader(make([]byte, size)), size), client.PutOptions{})
		if zcerr.KindOf(err) != zcerr.Denied || !strings.Contains(err.Error(), "no put waits") || zcerr.HintOf(err) == "" {
			t.Errorf("%d bytes: %v (%s)", size, err, zcerr.HintOf(err))
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%d bytes: told after %v", size, took)
		}
		await(t, "end of the put", func() bool { return s.ledger.OpenPuts() == 0 })
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s", what)
		}
	}
}

func sdk(t *testing.T, path string) *client.Client {
	t.Helper()
	c, err := client.Dial(context.Background(), client.Options{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func plainConn(t *testing.T, path string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// line sends on a connection of its own and reads what comes until it is closed.
func line(t *testing.T, path, send string) string {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%v after %q", err, b)
	}
	return string(b)
}

// A connection over a limit is told which, whatever it speaks, within a second; the ones below it do not notice; and when one
// of those goes there is room again.
func TestRefusedConnectionIsToldWhy(t *testing.T) {
	_, path := serve(t, limits.Limits{ConnsPerUID: 2})
	ctx := bounded(t)
	first, second := sdk(t, path), sdk(t, path)
	for _, c := range []*client.Client{first, second} {
		if _, err := c.Status(ctx); err != nil {
			t.Fatal(err)
		}
	}
	const says = "has 2 connections, the limit of one user is 2"
	third := sdk(t, path)
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{"status", func() error { _, err := third.Status(ctx); return err }},
		{"attach", func() error { _, err := third.Attach(ctx, "m"); return err }},
		{"ls", func() error { _, err := third.List(ctx, "", false); return err }},
	} {
		begin := time.Now()
		err := call.do()
		if zcerr.KindOf(err) != zcerr.Limit || !strings.Contains(err.Error(), says) || !strings.Contains(zcerr.HintOf(err), "--max-conns-per-uid") {
			t.Errorf("SDK, %s: %v (%s)", call.name, err, zcerr.HintOf(err))
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("SDK, %s: refused after %v", call.name, took)
		}
	}
	for _, send := range []string{"ZCR1 attach m\n", "", "GET / HTTP/1.1\r\n"} {
		begin := time.Now()
		var r struct{ Error rawError }
		if err := json.Unmarshal([]byte(line(t, path, send)), &r); err != nil || r.Error.Kind != "limit" || !strings.Contains(r.Error.Message, says) {
			t.Errorf("%q: %+v, %v", send, r, err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%q: refused after %v", send, took)
		}
	}
	plain := zcstorev1.NewStoreClient(plainConn(t, path, insecure.NewCredentials()))
	if _, err := plain.Status(ctx, &zcstorev1.StatusRequest{}); zcerr.KindOf(zcerr.FromStatus(err)) != zcerr.Limit || !strings.Contains(err.Error(), says) {
		t.Errorf("plain gRPC: %v", err)
	}
	var burst []net.Conn
	for range 50 { // more than are told at once: nobody hangs, and all of it ends
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		burst = append(burst, c)
	}
	begin := time.Now()
	for _, c := range burst {
		c.SetReadDeadline(begin.Add(2 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a refused connection stays open")
		}
	}
	if _, err := first.Status(ctx); err != nil {
		t.Errorf("one below the limit: %v", err)
	}
	second.Close()
	await(t, "room", func() bool { _, err := third.Status(ctx); return err == nil })
}

func TestCase56StrangerIsDeniedEverything(t *testing.T) {
	// Only the decision is replaced: the test need not be root, and its own uid is the stranger's.
	denied := zcerr.New(zcerr.Denied, "uid 7 may not use this daemon").WithHint("start the daemon with --allow-uid 7")
	s, path := serve(t, limits.Limits{}, func(s *Server) {
		s.decide = func(*net.UnixConn, peercred.Cred) error { return denied }
	})
	g, _ := s.grpc()
	cc := plainConn(t, path, fdpass.ClientCredentials(fdpass.ClientOptions{}))
	bare := plainConn(t, path, insecure.NewCredentials())
	methods := 0
	for service, info := range g.GetServiceInfo() {
		for _, m := range info.Methods {
			methods++
			full := "/" + service + "/" + m.Name
			if rules[full] == nil {
				t.Errorf("%s has no rule", full)
			}
			for name, conn := range map[string]*grpc.ClientConn{"with descriptors": cc, "plain": bare} {
				stream, err := conn.NewStream(bounded(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, full)
				if err != nil {
					t.Fatal(err)
				}
				_ = stream.SendMsg(&zcstorev1.StatusRequest{}) // empty: any message
				_ = stream.CloseSend()
				err = zcerr.FromStatus(stream.RecvMsg(&zcstorev1.StatusReply{}))
				if zcerr.KindOf(err) != zcerr.Denied || !strings.Contains(err.Error(), "uid 7") || !strings.Contains(zcerr.HintOf(err), "--allow-uid") {
					t.Errorf("%s, %s: %v", full, name, err)
				}
			}
		}
	}
	if methods < 13 || methods != len(rules) {
		t.Errorf("%d methods, %d rules", methods, len(rules))
	}
	for _, verb := range []string{"attach m", "put 00112233445566778899aabbccddeeff", "sources x", "nonsense"} {
		if got := line(t, path, "ZCR1 "+verb+"\n"); !strings.Contains(got, `"kind":"denied"`) || !strings.Contains(got, "uid 7") {
			t.Errorf("raw, %s: %q", verb, got)
		}
	}
	// Beyond a few, strangers are told at the door.
	for range 40 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := sdk(t, path).Status(bounded(t)); zcerr.KindOf(err) != zcerr.Denied || !strings.Contains(err.Error(), "uid 7") {
		t.Errorf("one stranger of many: %v", err)
	}
}

// A method that is registered and has no rule serves nobody.
func TestMethodWithoutARuleIsRefused(t *testing.T) {
	if err := allow(context.Background(), "/zcstore.v1.Store/Nothing"); !errors.Is(err, zcerr.Denied) {
		t.Errorf("no rule: %v", err)
	}
	if err := allow(context.Background(), "/zcstore.v1.Store/Status"); !errors.Is(err, zcerr.Denied) {
		t.Errorf("not over the socket: %v", err)
	}
}

func TestAccess(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	other := uint32(os.Geteuid()) + 4711
	a, _ := pair(t) // of this process: its groups are those of the peer
	gid := uint32(os.Getegid())
	for _, tt := range []struct {
		name   string
		mode   os.FileMode
		access Access
		cred   peercred.Cred
		ok     bool
	}{
		{"root", 0o600, Access{}, peercred.Cred{UID: 0, GID: 99999}, true},
		{"the daemon's own", 0o600, Access{}, peercred.Cred{UID: uint32(os.Geteuid()), GID: 99999}, true},
		{"the socket's group", 0o660, Access{}, peercred.Cred{UID: other, GID: gid}, true},
		{"the socket's group, which may not connect", 0o600, Access{}, peercred.Cred{UID: other, GID: gid}, false},
		{"named by uid", 0o600, Access{UIDs: []uint32{other}}, peercred.Cred{UID: other, GID: 99999}, true},
		{"named by gid", 0o600, Access{GIDs: []uint32{99999}}, peercred.Cred{UID: other, GID: 99999}, true},
		{"nobody", 0o600, Access{UIDs: []uint32{other + 1}, GIDs: []uint32{99998}}, peercred.Cred{UID: other, GID: 99999}, false},
	} {
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		tt.access.socket = path
		err := tt.access.check(a, tt.cred)
		if (err == nil) != tt.ok || err != nil && (!errors.Is(err, zcerr.Denied) || !strings.Contains(zcerr.HintOf(err), "--allow-uid")) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
