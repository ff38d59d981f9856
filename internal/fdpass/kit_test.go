package fdpass

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The test service hands out files. A request is "index count settled"; the reply is the first ordinal.
type (
	ask    = wrapperspb.StringValue
	answer = wrapperspb.UInt64Value
)

type service struct {
	files []*os.File
	held  chan struct{} // not nil: after it queued, Get sends to queued and waits for held

	queued chan struct{}
}

func (s *service) handOut(ctx context.Context, in *ask) (*answer, error) {
	var index, count int
	var settled uint64
	if _, err := fmt.Sscan(in.Value, &index, &count, &settled); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	conn, _, ok := FromContext(ctx)
	if count == 0 || !ok {
		return &answer{}, nil
	}
	conn.Claimed(settled)
	files := make([]*os.File, count)
	for i := range files {
		files[i] = s.files[(index+i)%len(s.files)]
	}
	first, err := conn.Queue(files...)
	switch {
	case errors.Is(err, ErrUnaware): // such a client still gets its reply
	case errors.Is(err, ErrTooManyInFlight):
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	}
	if s.held != nil {
		s.queued <- struct{}{}
		<-s.held
	}
	return &answer{Value: first}, nil
}

var desc = grpc.ServiceDesc{
	ServiceName: "fdpass.Test",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Get", Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(ask)
		if err := dec(in); err != nil {
			return nil, err
		}
		return srv.(*service).handOut(ctx, in)
	}}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Attach", ServerStreams: true, ClientStreams: true, Handler: func(srv any, st grpc.ServerStream) error {
			for {
				in := new(ask)
				if err := st.RecvMsg(in); err != nil {
					return nil
				}
				out, err := srv.(*service).handOut(st.Context(), in)
				if err != nil {
					return err
				}
				if err := st.SendMsg(out); err != nil {
					return err
				}
			}
		}},
		{StreamName: "Flood", ServerStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
			big := &ask{Value: strings.Repeat("x", 32<<10)}
			for {
				if err := st.SendMsg(big); err != nil {
					return err
				}
			}
		}},
	},
}

// serve starts the service on a socket and returns its target. Everything ends with the test.
func serve(t testing.TB, o ServerOptions, s *service) (target string, srv *grpc.Server) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return "unix:" + path, serveOn(t, ln, o, s)
}

func serveOn(t testing.TB, ln net.Listener, o ServerOptions, s *service) *grpc.Server {
	srv := grpc.NewServer(grpc.Creds(ServerCredentials(o)), grpc.ConnectionTimeout(2*time.Second))
	srv.RegisterService(&desc, s)
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ln) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	return srv
}

func dial(t testing.TB, target string) *grpc.ClientConn {
	t.Helper()
	return dialWith(t, target, grpc.WithTransportCredentials(ClientCredentials(ClientOptions{})))
}

func dialWith(t testing.TB, target string, o ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(target, o...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func dialPlain(t testing.TB, target string) *grpc.ClientConn {
	return dialWith(t, target, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// get is one unary hand-out: the connection and the first ordinal.
func get(ctx context.Context, cc *grpc.ClientConn, index, count int, settled uint64) (*Conn, uint64, error) {
	var p peer.Peer
	out := new(answer)
	err := cc.Invoke(ctx, "/fdpass.Test/Get", &ask{Value: fmt.Sprint(index, " ", count, " ", settled)}, out, grpc.Peer(&p))
	return PeerConn(&p), out.Value, err
}

func attach(t testing.TB, ctx context.Context, cc *grpc.ClientConn) (grpc.ClientStream, *Conn) {
	t.Helper()
	st, err := cc.NewStream(ctx, &desc.Streams[0], "/fdpass.Test/Attach")
	if err != nil {
		t.Fatal(err)
	}
	conn, _, ok := FromContext(st.Context())
	if !ok {
		t.Fatal("the stream has no connection")
	}
	return st, conn
}

func next(st grpc.ClientStream, index, count int, settled uint64) (uint64, error) {
	if err := st.SendMsg(&ask{Value: fmt.Sprint(index, " ", count, " ", settled)}); err != nil {
		return 0, err
	}
	out := new(answer)
	err := st.RecvMsg(out)
	return out.Value, err
}

// marked makes n files, each with its index as content.
func marked(t testing.TB, n int) []*os.File {
	t.Helper()
	var files []*os.File
	for i := range n {
		fd, err := unix.MemfdCreate("fdpass-test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		t.Cleanup(func() { f.Close() })
		if _, err := fmt.Fprintf(f, "%06d", i); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// check says whether f is files[index] by mark, by inode and in being close-on-exec, and closes it.
func check(f *os.File, files []*os.File, index int) error {
	defer f.Close()
	want := files[index%len(files)]
	mark := make([]byte, 6)
	if _, err := f.ReadAt(mark, 0); err != nil || string(mark) != fmt.Sprintf("%06d", index%len(files)) {
		return fmt.Errorf("file %d has mark %q, %v", index, mark, err)
	}
	a, err := f.Stat()
	if err != nil {
		return err
	}
	b, err := want.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("file %d has inode %d, want %d", index, a.Sys().(*syscall.Stat_t).Ino, b.Sys().(*syscall.Stat_t).Ino)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		return fmt.Errorf("file %d has flags %#x, %v; want close-on-exec", index, flags, err)
	}
	return nil
}

// memfds counts this process's descriptors of the files that marked made; unlike a count of all it is not disturbed by
// sockets that gRPC still closes.
func memfds(t testing.TB) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range dir {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "/memfd:fdpass-test") {
			n++
		}
	}
	return n
}

// eventually polls: for what another goroutine does without telling.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(5 * time.Second); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func backTo(t testing.TB, baseline int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d files open; now %d", baseline, memfds(t)), func() bool { return memfds(t) == baseline })
}

// pairOf is a connected pair: the server's end as a *Conn, and the client's as its socket.
func pairOf(t testing.TB, o ServerOptions) (server *Conn, client *net.UnixConn) {
	t.Helper()
	s, client := sockets(t)
	if _, err := client.Write([]byte(MagicFramed)); err != nil {
		t.Fatal(err)
	}
	conn, _, err := ServerCredentials(o).ServerHandshake(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*Conn), client
}

// clientOf makes the client's end of such a pair, with the magic read from the other.
func clientOf(t testing.TB, o ClientOptions) (client *Conn, server *net.UnixConn) {
	t.Helper()
	s, c := sockets(t)
	conn, _, err := ClientCredentials(o).ClientHandshake(context.Background(), "", c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if n, err := s.Read(make([]byte, 16)); n != len(MagicFramed) || err != nil {
		t.Fatalf("magic: %d bytes, %v", n, err)
	}
	return conn.(*Conn), s
}

func sockets(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// over makes a client's end of a socket whose handshake is done.
func over(u *net.UnixConn) *Conn {
	return &Conn{u: u, held: map[uint64]entry{}, oob: make([]byte, unix.CmsgSpace(4*maxRights)), done: make(chan struct{}), co: ClientOptions{OrphanTTL: time.Minute}}
}
