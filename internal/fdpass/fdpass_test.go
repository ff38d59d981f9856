package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	if f := children[os.Getenv("FDPASS_CHILD")]; f != nil {
		if err := f(); err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testleak.Run(m))
}

// inChild runs one of the functions below in a process of its own, since it lowers limits.
func inChild(t *testing.T, name string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FDPASS_CHILD="+name, "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// Every file is the right one: 32 goroutines on one connection and on four.
func TestRightFile(t *testing.T) {
	for _, conns := range []int{1, 4} {
		t.Run(fmt.Sprint(conns, " connections"), func(t *testing.T) {
			files := marked(t, 64)
			base := memfds(t)
			target, _ := serve(t, ServerOptions{}, &service{files: files})
			var ccs []*grpc.ClientConn
			for range conns {
				ccs = append(ccs, dial(t, target))
			}
			settled := make([]atomic.Pointer[Conn], conns)
			var wg sync.WaitGroup
			for g := range 32 {
				wg.Go(func() {
					for i := range 60 {
						var said uint64
						if c := settled[g%conns].Load(); c != nil {
							said = c.Settled()
						}
						index, count := g*7+i, 1+i%2
						conn, first, err := get(context.Background(), ccs[g%conns], index, count, said)
						if status.Code(err) == codes.ResourceExhausted {
							continue // up to 64 in flight plus what was settled and not yet said: the cap at work
						}
						if err != nil {
							t.Error(err)
							return
						}
						settled[g%conns].Store(conn)
						for k := range count {
							f, err := conn.Take(first + uint64(k))
							if err == nil {
								err = check(f, files, index+k)
							}
							if err != nil {
								t.Error(err)
								return
							}
						}
					}
				})
			}
			wg.Wait()
			backTo(t, base)
		})
	}
}

// Bytes queued before a batch are glued in front of it, and records are cut by short reads: the ordinals do not care.
func TestGluedBytes(t *testing.T) {
	for _, size := range []int{1, 3, 7, 9, 64, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			files := marked(t, 6)
			base := memfds(t)
			server, raw := pairOf(t, ServerOptions{})
			client := over(raw)
			var want strings.Builder
			for i, write := range []struct {
				text  string
				files []*os.File
			}{{"AA", nil}, {"BB", files[:1]}, {"CC", nil}, {"", nil}, {"DDDDDDDD", files[1:3]}, {"E", files[3:5]}, {"FF", files[5:]}} {
				if len(write.files) > 0 {
					if _, err := server.Queue(write.files...); err != nil {
						t.Fatal(i, err)
					}
				}
				if n, err := server.Write([]byte(write.text)); n != len(write.text) || err != nil {
					t.Fatal(i, n, err)
				}
				want.WriteString(write.text)
			}
			got := make([]byte, 0, 64)
			for p := make([]byte, size); len(got) < want.Len(); {
				n, err := client.Read(p)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, p[:n]...)
			}
			if string(got) != want.String() {
				t.Errorf("got bytes %q, want %q", got, want.String())
			}
			for i := range files {
				f, err := client.Take(uint64(i + 1))
				if err == nil {
					err = check(f, files, i)
				}
				if err != nil {
					t.Error(err)
				}
			}
			if _, err := client.Take(1); !errors.Is(err, ErrNoFile) {
				t.Errorf("taking twice: %v", err)
			}
			if _, err := client.Take(7); !errors.Is(err, ErrNoFile) {
				t.Errorf("taking what was not sent: %v", err)
			}
			backTo(t, base)
		})
	}
}

// A client that knows nothing of files gets its reply and no file, on both kinds of call.
func TestUnawareClient(t *testing.T) {
	files := marked(t, 2)
	base := memfds(t)
	target, _ := serve(t, ServerOptions{}, &service{files: files})
	cc := dialPlain(t, target)
	for range 100 {
		conn, first, err := get(context.Background(), cc, 0, 1, 0)
		if conn != nil || first != 0 || err != nil {
			t.Fatalf("got %v, %d, %v", conn, first, err)
		}
	}
	backTo(t, base)
}

// What such a client would do to files that are sent all the same: a plain read drops them.
func TestCase11PlainReadDropsFiles(t *testing.T) {
	files := marked(t, 1)
	base := memfds(t)
	server, client := pairOf(t, ServerOptions{})
	if _, err := client.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	if err := SendFDs(client, []byte("cd"), int(files[0].Fd())); err != nil { // a hostile client stuffs one in
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(server, got); err != nil || string(got) != "abcd" {
		t.Fatal(string(got), err)
	}
	backTo(t, base)
}

// At RLIMIT_NOFILE a batch is cut: its calls fail with ErrTruncated, later ones on the connection work.
func TestCase10CutBatch(t *testing.T) { inChild(t, "truncated") }

func TestTooManyRefs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another uid that has no other files in flight")
	}
	inChild(t, "refs")
}

func TestFullTable(t *testing.T) { inChild(t, "full") }

var children = map[string]func() error{
	"truncated": func() error {
		t := &testing.T{} // for the kit; its failures surface as panics or errors below
		files := marked(t, 4)
		server, raw := pairOf(t, ServerOptions{})
		client := over(raw)
		roundtrip := func(f ...*os.File) (uint64, error) {
			first, err := server.Queue(f...)
			if err == nil {
				_, err = server.Write([]byte("reply"))
			}
			return first, err
		}
		read := func() error {
			_, err := io.ReadFull(client, make([]byte, 5))
			return err
		}
		for _, room := range []int{0, 2} { // none of the batch arrives, or a part
			first, err := roundtrip(files...)
			if err != nil {
				return err
			}
			base := memfds(t)
			var old unix.Rlimit
			if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
				return err
			}
			// Descriptors are given lowest first: with the table filled up to the limit there is room for that many.
			probe, err := unix.Dup(0)
			if err != nil {
				return err
			}
			unix.Close(probe)
			limit := unix.Rlimit{Cur: uint64(probe + room), Max: old.Max}
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
				return err
			}
			rerr := read()
			if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
				return err
			}
			if rerr != nil {
				return fmt.Errorf("read at the limit: %w", rerr)
			}
			if n := memfds(t); n != base {
				return fmt.Errorf("room for %d: %d files open after the cut, want %d", room, n, base)
			}
			for i := range files {
				if _, err := client.Take(first + uint64(i)); !errors.Is(err, ErrTruncated) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
					return fmt.Errorf("room for %d: ordinal %d gave %v", room, first+uint64(i), err)
				}
			}
			if first, err = roundtrip(files[2]); err != nil {
				return err
			}
			if err := read(); err != nil {
				return err
			}
			f, err := client.Take(first)
			if err != nil {
				return fmt.Errorf("after the cut: %w", err)
			}
			if err := check(f, files, 2); err != nil {
				return err
			}
		}
		return nil
	},

	// The in-flight limit is per user: one client that does not read brings it on, another waits and is told.
	"refs": func() error {
		t := &testing.T{}
		files := marked(t, 1)
		stalled, unread := sockets(t)
		_ = unread
		server, raw := pairOf(t, ServerOptions{SendWait: 20 * time.Millisecond})
		client := over(raw)
		limit := unix.Rlimit{Cur: 64, Max: 64}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return err
		}
		if err := unix.Setresuid(54321, 54321, 54321); err != nil {
			return err
		}
		var err error
		n := 0
		for ; err == nil && n < 100; n++ {
			err = SendFDs(stalled, []byte{0}, int(files[0].Fd()))
		}
		if !errors.Is(err, unix.ETOOMANYREFS) {
			return fmt.Errorf("after %d sends: %v, want ETOOMANYREFS", n, err)
		}
		handOut := func() error {
			first, err := server.Queue(files[0])
			if err == nil {
				_, err = server.Write([]byte("reply"))
			}
			if err == nil {
				_, err = io.ReadFull(client, make([]byte, 5))
			}
			if err != nil {
				return err
			}
			f, err := client.Take(first)
			if err == nil {
				err = check(f, files, 0)
			}
			return err
		}
		if err := handOut(); !errors.Is(err, ErrNotSent) {
			return fmt.Errorf("with the limit reached: %v, want ErrNotSent", err)
		}
		unread.Close() // the stalled client goes
		err = handOut()
		for end := time.Now().Add(5 * time.Second); errors.Is(err, ErrNotSent) && time.Now().Before(end); {
			err = handOut() // the kernel frees what was in flight in the background
		}
		return err
	},

	// With no descriptor left, a caller is refused soon and accepting goes on afterwards.
	"full": func() error {
		dir, err := os.MkdirTemp("", "fdpass")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		addr := &net.UnixAddr{Name: dir + "/s", Net: "unix"}
		ln, err := net.ListenUnix("unix", addr)
		if err != nil {
			return err
		}
		g, raw := Split(ln, SplitOptions{})
		defer g.Close()
		call, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			return err
		}
		probe, err := unix.Dup(0)
		if err != nil {
			return err
		}
		unix.Close(probe)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(probe), Max: old.Max}); err != nil {
			return err
		}
		if err := unix.Connect(call, &unix.SockaddrUnix{Name: addr.Name}); err != nil {
			return err
		}
		unix.SetsockoptTimeval(call, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
		if n, err := unix.Read(call, make([]byte, 1)); n > 0 || errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("the caller was left hanging: %d, %v", n, err)
		}
		unix.Close(call)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			return err
		}
		c, err := net.DialUnix("unix", nil, addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte(MagicRaw)); err != nil {
			return err
		}
		got, err := raw.Next()
		if err != nil {
			return err
		}
		return got.Close()
	},
}

// More files than one message carries, with a reply of few bytes.
func TestManyFiles(t *testing.T) {
	files := marked(t, 3)
	target, _ := serve(t, ServerOptions{MaxInFlight: 1000}, &service{files: files})
	for _, count := range []int{253, 254, 600} {
		base := memfds(t)
		conn, first, err := get(context.Background(), dial(t, target), 0, count, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range count {
			f, err := conn.Take(first + uint64(i))
			if err == nil {
				err = check(f, files, i)
			}
			if err != nil {
				t.Fatalf("%d of %d: %v", i, count, err)
			}
		}
		backTo(t, base)
	}
}

// The cap holds until the client says what it settled, and fits one attach of a table and 8 segments by far.
func TestInFlightCap(t *testing.T) {
	files := marked(t, 9)
	base := memfds(t)
	target, _ := serve(t, ServerOptions{}, &service{files: files})
	cc := dial(t, target)
	var conn *Conn
	for i := range 7 { // 63 of 64
		var err error
		if conn, _, err = get(context.Background(), cc, 0, 9, 0); err != nil {
			t.Fatal(i, err)
		}
	}
	if _, _, err := get(context.Background(), cc, 0, 2, 0); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "limit 64") {
		t.Fatalf("over the cap: %v", err)
	}
	if got := conn.Settled(); got != 0 {
		t.Errorf("settled %d before any was taken", got)
	}
	for i := range uint64(9) { // out of order: it is the number that counts
		f, err := conn.Take(20 + i)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if got := conn.Settled(); got != 9 {
		t.Errorf("settled %d, want 9", got)
	}
	if _, _, err := get(context.Background(), cc, 0, 9, conn.Settled()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := get(context.Background(), cc, 0, 2, 1<<40); err != nil { // a lie gives back no more than there was
		t.Fatal(err)
	}
	conn.Discard(conn.Settled() + 1000)
	eventually(t, "all closed", func() bool { return memfds(t) == base })
}

func TestServerClaimedNeverPast(t *testing.T) {
	files := marked(t, 1)
	server, _ := pairOf(t, ServerOptions{MaxInFlight: 2})
	server.Claimed(1 << 60)
	for range 2 {
		if _, err := server.Queue(files[0]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := server.Queue(files[0]); !errors.Is(err, ErrTooManyInFlight) {
		t.Errorf("got %v", err)
	}
	server.Claimed(1)
	server.Claimed(0)
	if _, err := server.Queue(files[0]); err != nil {
		t.Error(err)
	}
}

// Cancelled calls: plainly made they leave orphans, which Discard frees; through Detached they leave none.
func TestCancelledCalls(t *testing.T) {
	files := marked(t, 8)
	base := memfds(t)
	call := func(ctx context.Context, cc *grpc.ClientConn, i int, settled uint64) (*os.File, *Conn, error) {
		conn, ordinal, err := get(ctx, cc, i, 1, settled)
		if err != nil {
			return nil, conn, err
		}
		f, err := conn.Take(ordinal)
		return f, conn, err
	}
	t.Run("plain", func(t *testing.T) {
		s := &service{files: files, held: make(chan struct{}), queued: make(chan struct{}, 8)}
		target, _ := serve(t, ServerOptions{}, s)
		cc := dial(t, target)
		cc.Connect()
		for i := range 5 {
			ctx, cancel := context.WithCancel(context.Background())
			go func() {
				<-s.queued
				cancel()
			}()
			if _, _, err := call(ctx, cc, i, 0); status.Code(err) != codes.Canceled {
				t.Fatal(err)
			}
		}
		close(s.held)
		f, conn, err := call(context.Background(), cc, 5, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		backTo(t, base+5) // the orphans; the server may be about to close its duplicates
		if got := conn.Settled(); got != 1 {
			t.Errorf("settled %d, want 1", got)
		}
		conn.Discard(5)
		if n, got := memfds(t), conn.Settled(); n != base || got != 6 {
			t.Errorf("after Discard %d orphans and %d settled, want 0 and 6", n-base, got)
		}
	})
	t.Run("detached", func(t *testing.T) {
		target, _ := serve(t, ServerOptions{}, &service{files: files})
		cc := dial(t, target)
		var last atomic.Pointer[Conn]
		var gaveUp atomic.Int64
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 250 {
					ctx, cancel := context.WithCancel(context.Background())
					if (g+i)%10 == 0 {
						go cancel()
					}
					f, err := Detached(ctx, 5*time.Second, func(ctx context.Context) (*os.File, error) {
						var settled uint64
						if c := last.Load(); c != nil {
							settled = c.Settled()
						}
						f, conn, err := call(ctx, cc, i, settled)
						if conn != nil {
							last.Store(conn)
						}
						return f, err
					}, func(f *os.File) { f.Close() })
					cancel()
					switch {
					case errors.Is(err, context.Canceled):
						gaveUp.Add(1)
					case err != nil:
						t.Error(err)
					default:
						if err := check(f, files, i); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Wait()
		backTo(t, base)
		t.Logf("%d of 2000 calls gave up", gaveUp.Load())
	})
	t.Run("expired", func(t *testing.T) {
		target, _ := serve(t, ServerOptions{}, &service{files: files})
		cc := dialWith(t, target, grpc.WithTransportCredentials(ClientCredentials(ClientOptions{OrphanTTL: time.Millisecond})))
		conn, ordinal, err := get(context.Background(), cc, 0, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the orphan expired", func() bool { return conn.Settled() == 1 })
		if _, err := conn.Take(ordinal); !errors.Is(err, ErrNoFile) {
			t.Errorf("taking it: %v", err)
		}
		backTo(t, base)
	})
}

// A stream that ends with replies unread leaves their files; Discard frees those here and those to come.
func TestCancelledStream(t *testing.T) {
	files := marked(t, 4)
	base := memfds(t)
	target, _ := serve(t, ServerOptions{}, &service{files: files})
	cc := dial(t, target)
	ctx, cancel := context.WithCancel(context.Background())
	st, conn := attach(t, ctx, cc)
	for i := range 10 {
		ordinal, err := next(st, i, 1, conn.Settled())
		if err != nil {
			t.Fatal(err)
		}
		f, err := conn.Take(ordinal)
		if err == nil {
			err = check(f, files, i)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		if err := st.SendMsg(&ask{Value: "0 1 10"}); err != nil {
			t.Fatal(err)
		}
	}
	conn.Discard(12) // 11 and 12 are on their way
	eventually(t, "13, 14 and 15 arrived", func() bool { return conn.Settled() == 12 && memfds(t) == base+3 })
	cancel()
	cc.Close()
	backTo(t, base)
}

func TestCloseLeavesNothing(t *testing.T) {
	files := marked(t, 4)
	base := memfds(t)
	target, _ := serve(t, ServerOptions{}, &service{files: files})
	cc := dial(t, target)
	conn, first, err := get(context.Background(), cc, 0, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	backTo(t, base+4)
	cc.Close()
	backTo(t, base)
	if _, err := conn.Take(first); !errors.Is(err, net.ErrClosed) {
		t.Errorf("taking after close: %v", err)
	}
	server, _ := pairOf(t, ServerOptions{}) // queued and never sent
	if _, err := server.Queue(files...); err != nil {
		t.Fatal(err)
	}
	server.Close()
	server.Close()
	backTo(t, base)
	if _, err := server.Queue(files[0]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("queueing after close: %v", err)
	}
}

// A client that never reads is cut after the write deadline, and others go on meanwhile.
func TestCase17SlowReader(t *testing.T) {
	server, client := pairOf(t, ServerOptions{WriteTimeout: 50 * time.Millisecond})
	start := time.Now()
	var err error
	for err == nil {
		_, err = server.Write(make([]byte, 32<<10))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) > 3*time.Second {
		t.Errorf("cut after %v with %v", time.Since(start), err)
	}
	if _, err := io.Copy(io.Discard, client); err != nil { // ends, so the socket was closed
		t.Error(err)
	}
}

func TestSlowReaderOfServer(t *testing.T) {
	target, _ := serve(t, ServerOptions{WriteTimeout: 50 * time.Millisecond}, &service{files: marked(t, 1)})
	stalled := make(chan struct{})
	cc := dialWith(t, target, grpc.WithTransportCredentials(ClientCredentials(ClientOptions{})), grpc.WithInitialWindowSize(1<<30), grpc.WithInitialConnWindowSize(1<<30),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(addr, "unix:"))
		}))
	st, err := cc.NewStream(context.Background(), &desc.Streams[1], "/fdpass.Test/Flood")
	if err != nil {
		t.Fatal(err)
	}
	conn, _, _ := FromContext(st.Context())
	conn.rmu.Lock() // this client reads no more
	go func() { <-stalled; conn.rmu.Unlock() }()
	if err := st.SendMsg(&ask{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := get(context.Background(), dial(t, target), 0, 1, 0); err != nil {
		t.Errorf("another client: %v", err)
	}
	eventually(t, "the server closed the connection", func() bool {
		raw, _ := conn.u.SyscallConn()
		up := false
		raw.Control(func(fd uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			unix.Poll(p, 0)
			up = p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP) != 0
		})
		return up
	})
	close(stalled)
}

// The trap of grpc-go 1.85: a conn that is a *net.UnixConn, or has ReadOnReady, is read past its Read.
func TestCase11ConnIsReadByItself(t *testing.T) {
	server, raw := pairOf(t, ServerOptions{})
	client, _ := clientOf(t, ClientOptions{})
	for name, c := range map[string]net.Conn{"server": server, "client": client} {
		typ := reflect.TypeOf(c)
		if typ == reflect.TypeOf(raw) {
			t.Errorf("%s: a bare %v", name, typ)
		}
		for _, m := range []string{"ReadOnReady", "SyscallConn", "ReadMsgUnix", "File", "ReadFrom", "WriteTo"} {
			if _, ok := typ.MethodByName(m); ok {
				t.Errorf("%s: %v has %s", name, typ, m)
			}
		}
		for i := range typ.Elem().NumField() {
			if f := typ.Elem().Field(i); f.Anonymous {
				t.Errorf("%s: %v embeds %s", name, typ, f.Name)
			}
		}
	}
}

func TestCase14UnexpectedFiles(t *testing.T) {
	files := marked(t, 2)
	base := memfds(t)
	fd := int(files[0].Fd())
	for name, record := range map[string][]byte{
		"none announced":  {0, 0, 0, 1, 0, 0, 0, 0, 'x'},
		"one announced":   {0, 0, 0, 1, 0, 1, 0, 0, 'x'},
		"over the kernel": {0, 0, 0, 1, 1, 0, 0, 0, 'x'},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := clientOf(t, ClientOptions{})
			if err := SendFDs(server, record, fd, fd); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 16)); !errors.Is(err, ErrUnexpected) {
				t.Errorf("got %v", err)
			}
			if _, err := client.Read(make([]byte, 16)); err == nil {
				t.Error("the connection goes on")
			}
			backTo(t, base)
		})
	}
}

// A short sendmsg: the rest goes by plain writes, the files once.
func TestShortSend(t *testing.T) {
	files := marked(t, 1)
	base := memfds(t)
	server, raw := pairOf(t, ServerOptions{})
	client := over(raw)
	full := server.sendmsg
	sends := 0
	server.sendmsg = func(b, oob []byte) (int, error) { sends++; return full(b[:3], oob) }
	if _, err := server.Queue(files[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("hello")); err != nil { // fits into the socket buffer
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" || sends != 1 {
		t.Fatalf("got %q, %v in %d sends", got, err, sends)
	}
	f, err := client.Take(1)
	if err == nil {
		err = check(f, files, 0)
	}
	if err != nil {
		t.Error(err)
	}
	backTo(t, base)
}

func TestTooManyRefsRetried(t *testing.T) {
	files := marked(t, 1)
	server, raw := pairOf(t, ServerOptions{})
	client := over(raw)
	full, sends := server.sendmsg, 0
	server.sendmsg = func(b, oob []byte) (int, error) {
		if sends++; sends < 4 {
			return -1, os.NewSyscallError("sendmsg", unix.ETOOMANYREFS)
		}
		return full(b, oob)
	}
	server.Queue(files[0])
	server.Write([]byte("x"))
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f, err := client.Take(1)
	if err != nil || sends != 4 {
		t.Fatalf("%v after %d sends", err, sends)
	}
	f.Close()
}

func TestHandshakeRefuses(t *testing.T) {
	no := errors.New("not that one")
	_, c := sockets(t)
	_, _, err := ClientCredentials(ClientOptions{AllowServerUID: func(uid uint32) error {
		if uid != uint32(os.Getuid()) {
			t.Errorf("asked about uid %d", uid)
		}
		return no
	}}).ClientHandshake(context.Background(), "", c)
	if !errors.Is(err, no) {
		t.Errorf("server of the wrong uid: %v", err)
	}
	if ClientCredentials(ClientOptions{}).(creds).co.AllowServerUID(4242) == nil {
		t.Error("the default takes uid 4242")
	}
	s, c := sockets(t)
	c.Write([]byte("GET / HTTP/1.1"))
	if _, _, err := ServerCredentials(ServerOptions{}).ServerHandshake(s); err == nil || !strings.Contains(err.Error(), `"GET "`) {
		t.Errorf("HTTP/1: %v", err)
	}
	p1, p2 := net.Pipe()
	defer p1.Close()
	defer p2.Close()
	if _, _, err := ServerCredentials(ServerOptions{}).ServerHandshake(p1); err == nil {
		t.Error("took a pipe")
	}
	for _, tc := range []credentials.TransportCredentials{ServerCredentials(ServerOptions{}), ClientCredentials(ClientOptions{})} {
		if tc.Info().SecurityProtocol != "zcstore-unix" || tc.Clone() == nil {
			t.Error("info or clone")
		}
	}
	if c, _, ok := FromContext(context.Background()); c != nil || ok {
		t.Error("a connection out of nowhere")
	}
}

func TestRawChannel(t *testing.T) {
	files := marked(t, 2)
	base := memfds(t)
	a, b := sockets(t)
	buf := make([]byte, 16)
	fds := []int{int(files[0].Fd()), int(files[1].Fd())}
	if err := SendFDs(a, []byte("two"), fds...); err != nil {
		t.Fatal(err)
	}
	n, got, err := RecvFDs(b, buf, 2)
	if err != nil || string(buf[:n]) != "two" || len(got) != 2 {
		t.Fatal(n, got, err)
	}
	for i, f := range got {
		if err := check(f, files, i); err != nil {
			t.Error(err)
		}
	}
	for _, max := range []int{0, 1} {
		if err := SendFDs(a, []byte("two"), fds...); err != nil {
			t.Fatal(err)
		}
		if _, got, err := RecvFDs(b, buf, max); !errors.Is(err, ErrUnexpected) || got != nil {
			t.Errorf("max %d: %v, %v", max, got, err)
		}
	}
	if err := SendFDs(a, nil, fds...); err == nil {
		t.Error("files without bytes")
	}
	if err := SendFDs(a, []byte("x"), make([]int, 254)...); err == nil {
		t.Error("254 files")
	}
	if err := SendFDs(a, []byte("x")); err != nil {
		t.Error(err)
	}
	if n, got, err := RecvFDs(b, buf, 1); n != 1 || got != nil || err != nil {
		t.Error(n, got, err)
	}
	a.Close()
	if _, _, err := RecvFDs(b, buf, 1); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	b.Close()
	if n, _, err := RecvFDs(b, buf, 1); n != 0 || err == nil { // recvmsg's -1
		t.Errorf("after close: %d, %v", n, err)
	}
	backTo(t, base)
}

// A batch of which nothing came still stands in line, when its header is read in pieces and the next batch overtakes.
func TestCutBatchKeepsItsPlace(t *testing.T) {
	files := marked(t, 1)
	base := memfds(t)
	client, _ := clientOf(t, ClientOptions{})
	fd, err := dup(files[0])
	if err != nil {
		t.Fatal(err)
	}
	record := []byte{0, 0, 0, 1, 0, 1, 0, 0, 'x'}
	if n, err := client.arrive(append([]byte(nil), record[:3]...), nil, true); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	rest := append(append([]byte(nil), record[3:]...), record...)
	if n, err := client.arrive(rest, []int{fd}, false); n != 2 || err != nil || string(rest[:2]) != "xx" {
		t.Fatal(n, err)
	}
	if _, err := client.Take(1); !errors.Is(err, ErrTruncated) {
		t.Errorf("the cut one: %v", err)
	}
	f, err := client.Take(2)
	if err == nil {
		err = check(f, files, 0)
	}
	if err != nil {
		t.Error(err)
	}
	backTo(t, base)
}

// As many files as the kernel takes in one message, where none belong: all are closed. One more the sender's kernel refuses.
func TestCase14AsManyFilesAsTheKernelTakes(t *testing.T) {
	files := marked(t, 1)
	base := memfds(t)
	a, b := sockets(t)
	fds := make([]int, maxRights)
	for i := range fds {
		fds[i] = int(files[0].Fd())
	}
	if err := SendFDs(a, []byte("x"), fds...); err != nil {
		t.Fatal(err)
	}
	if _, got, err := RecvFDs(b, make([]byte, 8), 1); !errors.Is(err, ErrUnexpected) || got != nil {
		t.Errorf("%d files where one belongs: %v", maxRights, err)
	}
	backTo(t, base)
	if _, _, err := a.WriteMsgUnix([]byte("x"), unix.UnixRights(append(fds, fds[0])...), nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("one more than the kernel takes: %v", err)
	}
	// To a server, as gRPC bytes: dropped, and the connection is ended, since they are no HTTP/2.
	server, client := pairOf(t, ServerOptions{})
	if err := SendFDs(client, []byte("none of this is HTTP/2"), fds...); err != nil {
		t.Fatal(err)
	}
	if n, err := server.Read(make([]byte, 64)); n == 0 || err != nil {
		t.Error(n, err)
	}
	backTo(t, base)
}

// A client that reads nothing is cut although the socket has room, and takes the files that wait for it along; one that reads, or
// to which nothing was sent, stays.
func TestCase17UnreadRepliesAreCut(t *testing.T) {
	const unread = 80 * time.Millisecond
	files := marked(t, 1)
	base := memfds(t)
	idle, _ := pairOf(t, ServerOptions{Unread: unread})
	reads, reader := pairOf(t, ServerOptions{Unread: unread})
	stuck, other := pairOf(t, ServerOptions{Unread: unread})
	for _, c := range []*Conn{reads, stuck} {
		c.framed = true
		if _, err := c.Queue(files[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("reply")); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 64)
	if _, got, err := RecvFDs(reader, buf, 1); err != nil || len(got) != 1 {
		t.Fatal(got, err)
	} else {
		got[0].Close()
	}
	select {
	case <-stuck.done:
	case <-time.After(10 * time.Second):
		t.Fatal("a client that reads nothing is not cut")
	}
	for name, c := range map[string]*Conn{"idle": idle, "reading": reads} {
		select {
		case <-c.done:
			t.Errorf("the %s client was cut", name)
		default:
		}
		if _, err := c.Write([]byte("more")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	other.Close()
	backTo(t, base) // what was on its way went with the socket
}

// What gRPC writes by itself is no reply: a client that was stopped just after its reply is not cut for it.
func TestCase03ControlFramesAreOwedByNobody(t *testing.T) {
	const unread = 80 * time.Millisecond
	stopped, reader := pairOf(t, ServerOptions{Unread: unread})
	ping := append([]byte{0, 0, 8, 6, 1, 0, 0, 0, 0}, "12345678"...)
	reply := append([]byte{0, 0, 5, 0, 0, 0, 0, 0, 1}, "reply"...)
	for _, b := range [][]byte{ping, reply} {
		if _, err := stopped.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 64)
	if n, err := reader.Read(buf); err != nil || n < len(ping)+len(reply) { // with the headers of records
		t.Fatal(n, err)
	}
	if _, err := stopped.Write(ping); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stopped.done:
		t.Fatal("a client was cut that has read every reply")
	case <-time.After(3 * unread):
	}
	if _, err := stopped.Write(reply); err != nil { // now it owes
		t.Fatal(err)
	}
	select {
	case <-stopped.done:
	case <-time.After(10 * time.Second):
		t.Fatal("a client that reads nothing is not cut")
	}
}

// A descriptor of a stranger is read as it is, and is never in the runtime's poller, whatever the stranger does to its flags.
func TestStrangersFileIsNotPolled(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	f, err := strangersFile(p[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(time.Second)); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("the poller has it: %v", err)
	}
	if _, err := unix.Write(p[1], []byte("x")); err != nil {
		t.Fatal(err)
	}
	var b [2]byte
	if n, err := f.Read(b[:]); n != 1 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}
