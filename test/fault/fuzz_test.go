package fault

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/manifest"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// target is a daemon in this process, whose log is watched for panics: its handlers survive them, and they are bugs all the
// same.
type target struct {
	socket string
	log    *watch
	other  storetest.Store // the client that must not notice anything
	api    zcstorev1.StoreClient
	sealed *manifest.Sealed
	turn   uint64
}

type watch struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.Contains(p, []byte("panic")) {
		w.buf.Write(p)
	}
	return len(p), nil
}

func (w *watch) panics() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// fuzzTarget starts a daemon for the length of a fuzz test.
func fuzzTarget(f *testing.F) *target {
	f.Helper()
	base, segments := testleak.FuzzDir(f, os.TempDir()), testleak.FuzzDir(f, "/dev/shm")
	g := &target{socket: filepath.Join(base, "s"), log: &watch{}}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- daemon.Run(ctx, daemon.Config{Socket: g.socket, Dir: segments, Log: g.log, LogLevel: "debug", Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		f.Fatalf("daemon: %v", err)
	}
	r, hangUp, err := dial(g.socket)
	if err != nil {
		f.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///fuzz", grpc.WithNoProxy(),
		grpc.WithTransportCredentials(credentials.TransportCredentials(fdpass.ClientCredentials(fdpass.ClientOptions{AllowServerUID: func(uint32) error { return nil }}))),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", g.socket)
		}))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		hangUp()
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			f.Errorf("daemon: %v", err)
		}
	})
	g.other, g.api = r, zcstorev1.NewStoreClient(conn)
	if _, err := r.Put("m", false, storetest.Draft(rowsA...)); err != nil {
		f.Fatal(err)
	}
	if g.sealed, err = storetest.Draft(rowsB...).Seal(context.Background(), nil); err != nil {
		f.Fatal(err)
	}
	return g
}

// unharmed fails the test unless another client's put and get work, what was stored is whole, and nothing is left over.
func (g *target) unharmed(t *testing.T) {
	t.Helper()
	if p := g.log.panics(); p != "" {
		t.Fatalf("a handler panicked: %s", p)
	}
	g.turn++
	row := storetest.Row{Name: "x", Size: 100, Seed: g.turn}
	if _, err := g.other.Put("bystander", false, storetest.Draft(row)); err != nil {
		t.Fatalf("another client's put: %v", err)
	}
	storetest.Whole(t, g.other, "bystander", row)
	if _, err := g.other.Remove("bystander", true); err != nil {
		t.Fatalf("another client's rm: %v", err)
	}
	if _, err := g.other.Put("m", false, storetest.Draft(rowsA...)); err != nil { // it may have been removed
		t.Fatal(err)
	}
	storetest.Whole(t, g.other, "m", rowsA...)
	storetest.Settled(t, g.other)
}

// Whatever comes on the socket as the first bytes of a connection: an answer or the end comes at once, and nobody is harmed.
func FuzzFirstBytes(f *testing.F) {
	g := fuzzTarget(f)
	for _, s := range []string{"ZCR1 attach m\n", "ZCR1 attach nothing\n", "ZCR1 put 0123\nbytes", "ZCR1 sources 0123\n\x00\x00\x00\x04", "ZCR1 \n", "ZCR1 x", "ZCF1PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := net.Dial("unix", g.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		begin := time.Now()
		if err := conn.SetDeadline(begin.Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(b) // it may be closed already
		if len(b) < 4 {      // too little to tell what it will be: the daemon waits, and looks only for more
			conn.Close()
			g.unharmed(t)
			return
		}
		_ = conn.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("10 s after %q the connection is still open", b)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("%q: open for %v", b, took)
		}
		g.unharmed(t)
	})
}

// A program of calls: each byte chooses the next one, and the bytes behind it are its arguments. Streams are opened, fed in
// any order and left; tickets are used well and badly.
func FuzzCalls(f *testing.F) {
	g := fuzzTarget(f)
	for _, s := range []string{
		"\x00\x00\x02\x06\x04",             // a put as it should be
		"\x00\x00\x04", "\x00\x02\x00\x04", // out of order
		"\x00\x00\x02\x07\x20garbage-garbage-garbage-garbage-\x04",
		"\x00\x01\xff\x03\x05abcde\x05", "\x09\x00\x0a\x01\x0b\xff\x09\x01",
		"\x0d\x00\x0d\x01\x0d\x02\x0d\x03\x0d\x04\x0d\x05\x0d\x06",
		"\x00\x00\x02\x08\x10aaaaaaaaaaaaaaaa", "\x0e\x06m:v1\xff\xfe",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 64 {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r := &runner{target: g, ctx: ctx, code: program}
		for r.next() {
		}
		cancel()
		r.wg.Wait()
		if ctx.Err() == context.DeadlineExceeded {
			t.Fatal("it hung")
		}
		g.unharmed(t)
	})
}

// runner runs one program.
type runner struct {
	*target
	ctx  context.Context
	code []byte
	wg   sync.WaitGroup

	put    zcstorev1.Store_PutClient
	ticket chan string // of put's plan
	attach zcstorev1.Store_AttachClient
}

func (r *runner) byte() byte {
	if len(r.code) == 0 {
		return 0
	}
	b := r.code[0]
	r.code = r.code[1:]
	return b
}

func (r *runner) take(n int) []byte {
	n = min(n, len(r.code))
	b := r.code[:n]
	r.code = r.code[n:]
	return b
}

var fuzzRefs = []string{"m", "m:v1", "n", "n:prod", "m@sha256:00", "../x", "", "m:\x00", strings.Repeat("x", 300), "bystander"}

func (r *runner) ref() string { return fuzzRefs[int(r.byte())%len(fuzzRefs)] }

func (r *runner) next() bool {
	if len(r.code) == 0 || r.ctx.Err() != nil {
		return false
	}
	switch op := r.byte() % 15; op {
	case 0: // a new put, begun well
		r.open()
		r.send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{
			Protocol: client.Protocol, Ref: "n:prod", Replace: true, ManifestBytes: uint64(len(r.sealed.Encoded))}}})
		r.byte()
	case 1: // begun badly
		r.open()
		r.send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{
			Protocol: uint32(r.byte()) % 3, Ref: r.ref(), ManifestBytes: uint64(r.byte()) << (r.byte() % 60)}}})
	case 2:
		r.send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Manifest{Manifest: r.sealed.Encoded}})
	case 3:
		r.send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Manifest{Manifest: r.take(int(r.byte()))}})
	case 4:
		r.send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Commit{Commit: &zcstorev1.PutCommit{}}})
	case 5:
		if r.put != nil {
			_ = r.put.CloseSend()
		}
	case 6: // every byte of every tensor, whether wanted or not
		var all []byte
		for i := range r.sealed.Data {
			b, _ := io.ReadAll(io.NewSectionReader(r.sealed.Data[i], 0, int64(r.sealed.Manifest.Tensors[i].Bytes())))
			all = append(all, b...)
		}
		r.raw("ZCR1 put "+r.waitTicket()+"\n", all)
	case 7:
		r.raw("ZCR1 put "+r.waitTicket()+"\n", r.take(int(r.byte())))
	case 8:
		r.raw("ZCR1 sources "+r.waitTicket()+"\n", r.take(int(r.byte())))
	case 9:
		r.lease(&zcstorev1.AttachRequest{Protocol: client.Protocol, Step: &zcstorev1.AttachRequest_Open{Open: r.ref()}})
	case 10:
		r.lease(&zcstorev1.AttachRequest{Protocol: client.Protocol, Step: &zcstorev1.AttachRequest_Release{Release: uint64(r.byte())}})
	case 11:
		r.lease(&zcstorev1.AttachRequest{Protocol: uint32(r.byte()), Claimed: uint64(r.byte()) << (r.byte() % 64)})
	case 12:
		r.raw("ZCR1 ", r.take(int(r.byte())))
	case 13:
		r.call(int(r.byte()), r.ref(), r.ref())
	case 14:
		r.call(int(r.byte()), string(r.take(int(r.byte()))), r.ref())
	}
	return true
}

func (r *runner) open() {
	put, err := r.api.Put(r.ctx)
	if err != nil {
		return
	}
	ticket := make(chan string, 1)
	r.put, r.ticket = put, ticket
	r.wg.Add(1)
	go func() {
		defer r.wg.Done()
		for {
			reply, err := put.Recv()
			if err != nil {
				close(ticket)
				return
			}
			if p := reply.GetPlan(); p != nil {
				select {
				case ticket <- p.Ticket:
				default:
				}
			}
		}
	}()
}

func (r *runner) send(m *zcstorev1.PutRequest) {
	if r.put != nil {
		_ = r.put.Send(m)
	}
}

// waitTicket is the ticket of the put, when it comes soon.
func (r *runner) waitTicket() string {
	select {
	case t := <-r.ticket:
		return t
	case <-time.After(5 * time.Millisecond):
	}
	return "00112233445566778899aabbccddeeff"
}

func (r *runner) raw(line string, b []byte) {
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = conn.Write(append([]byte(line), b...))
	_ = conn.(*net.UnixConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}

func (r *runner) lease(m *zcstorev1.AttachRequest) {
	if r.attach == nil {
		attach, err := r.api.Attach(r.ctx)
		if err != nil {
			return
		}
		r.attach = attach
	}
	if r.attach.Send(m) != nil {
		r.attach = nil
		return
	}
	if _, err := r.attach.Recv(); err != nil {
		r.attach = nil
	}
}

func (r *runner) call(which int, a, b string) {
	switch which % 7 {
	case 0:
		_, _ = r.api.Show(r.ctx, &zcstorev1.ShowRequest{Ref: a})
	case 1:
		_, _ = r.api.Tag(r.ctx, &zcstorev1.TagRequest{Source: a, Target: b, Replace: true})
	case 2:
		_, _ = r.api.Remove(r.ctx, &zcstorev1.RemoveRequest{Ref: a, All: len(b)%2 == 0})
	case 3:
		_, _ = r.api.Verify(r.ctx, &zcstorev1.VerifyRequest{Ref: a})
	case 4:
		_, _ = r.api.Status(r.ctx, &zcstorev1.StatusRequest{})
	case 5:
		if s, err := r.api.List(r.ctx, &zcstorev1.ListRequest{Name: a, All: true}); err == nil {
			for err == nil {
				_, err = s.Recv()
			}
		}
	case 6:
		if s, err := r.api.Holders(r.ctx, &zcstorev1.HoldersRequest{Name: a}); err == nil {
			for err == nil {
				_, err = s.Recv()
			}
		}
	}
}
