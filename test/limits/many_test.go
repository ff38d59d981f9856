package limits

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

func init() { children["idle"] = idle }

// idle makes N connections as the SDK does, each with its lease stream and one version attached, and keeps them. It speaks
// HTTP/2 by hand: the connections of a real client would cost this process what they cost the daemon.
func idle(a args) error {
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/zcstore.v1.Store/Attach"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return err
		}
	}
	req, err := proto.Marshal(&zcstorev1.AttachRequest{Protocol: client.Protocol, Step: &zcstorev1.AttachRequest_Open{Open: a.Ref}})
	if err != nil {
		return err
	}
	var hello bytes.Buffer
	hello.WriteString("ZCF1" + http2.ClientPreface)
	f := http2.NewFramer(&hello, nil)
	if err := errors.Join(f.WriteSettings(), f.WriteSettingsAck(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		f.WriteData(1, false, append([]byte{0, 0, 0, 0, byte(len(req))}, req...))); err != nil {
		return err
	}
	conns := make([]net.Conn, a.N)
	errs := make(chan error, 16)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < a.N; i += 16 {
				c, err := net.Dial("unix", a.Socket)
				if err == nil {
					conns[i] = c
					_, err = c.Write(hello.Bytes())
				}
				if err == nil {
					err = attached(c, a.Ref)
				}
				if err != nil {
					errs <- fmt.Errorf("connection %d: %w", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	fmt.Println("ready")
	told()
	for _, c := range conns {
		c.Close()
	}
	return nil
}

// attached reads until the answer has the version's name in it. The descriptors beside it are dropped.
func attached(c net.Conn, ref string) error {
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	var got []byte
	b := make([]byte, 4<<10)
	for !bytes.Contains(got, []byte(ref+":")) {
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("%w after %q", err, got)
		}
		got = append(got, b[:n]...)
	}
	return nil
}

func TestCase07ManyIdleClients(t *testing.T) {
	n := size(1000, 10_000, 10_000)
	socket, p := start(t, testdaemon.Config{Limits: limits.Limits{Conns: n + 100, ConnsPerUID: n + 100}})
	var r unix.Rlimit
	want := uint64(n + 1000)
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, nil, &r); err != nil {
		t.Fatal(err)
	}
	if r.Cur < want {
		r.Cur, r.Max = want, max(want, r.Max)
		if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &r, nil); err != nil {
			t.Skipf("%d clients need %d open files, and the limit cannot be raised: %v", n, want, err)
		}
	}
	c := testdaemon.Client(t, socket)
	if err := put(c, "m", 64, 1); err != nil {
		t.Fatal(err)
	}
	before := field(t, p.PID(), "VmRSS")
	begin := time.Now()
	drivers := []*child{spawn(t, "idle", args{Socket: socket, Ref: "m", N: n / 2}, 0), spawn(t, "idle", args{Socket: socket, Ref: "m", N: n / 2}, 0)}
	for _, d := range drivers {
		if s := d.says(t, 90*time.Second); s != "ready" {
			t.Fatalf("a client process: %s", s)
		}
	}
	took := time.Since(begin)
	st, err := c.Status(ctx)
	if err != nil || int(st.Leases) != n {
		t.Errorf("%d leases, %v; want %d", st.GetLeases(), err, n)
	}
	rss, peak := field(t, p.PID(), "VmRSS"), field(t, p.PID(), "VmHWM")
	t.Logf("%d clients with a lease each, connected in %v; daemon: %d MB resident, %d MB at most, %.1f KB a client", n, took.Round(time.Millisecond), rss>>10, peak>>10, float64(rss-before)/float64(n))
	if limit := 400_000 * n / 10_000; !testrace.Enabled && (peak > limit+40_000 && n < 10_000 || n >= 10_000 && peak > 400_000) {
		t.Errorf("the daemon took %d kB for %d clients; 400 MB for 10,000 is the limit", peak, n)
	}
	call := time.Now()
	if err := put(c, "n", 64, 2); err != nil {
		t.Errorf("a put beside them: %v", err)
	}
	t.Logf("a put beside them: %v", time.Since(call).Round(time.Millisecond))
	for _, d := range drivers {
		d.tell(t)
	}
	await(t, "end of all leases", 30*time.Second, func() bool { st, err := c.Status(ctx); return err == nil && st.Leases == 0 })
}

// The daemon at its limit of open files: who comes too late is told so within a second, and the others go on.
func TestCase09DaemonAtItsLimitOfOpenFiles(t *testing.T) {
	socket, p := start(t, testdaemon.Config{})
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: 256}, nil); err != nil {
		t.Skipf("cannot lower the daemon's limit: %v", err)
	}
	first := testdaemon.Client(t, socket)
	if err := put(first, "m", 64, 1); err != nil {
		t.Fatal(err)
	}
	served, refused := 0, 0
	for range 300 {
		c := testdaemon.Client(t, socket)
		begin := time.Now()
		_, err := c.Status(ctx)
		switch {
		case err == nil:
			served++
			continue
		case zcerr.KindOf(err) != zcerr.Limit || !strings.Contains(err.Error(), "limit of open files") || !strings.Contains(zcerr.HintOf(err), "ulimit -n"):
			t.Fatalf("client %d: %v: %v (%s)", served+refused, zcerr.KindOf(err), err, zcerr.HintOf(err))
		case time.Since(begin) > time.Second:
			t.Errorf("refused after %v", time.Since(begin))
		}
		refused++
	}
	if want := 256 - 64 - 1; served != want {
		t.Errorf("%d clients were served beside the first, want %d", served, want)
	}
	t.Logf("%d served, %d refused", served, refused)
	if err := put(first, "n", 64, 2); err != nil {
		t.Errorf("a put: %v", err)
	}
	m, err := first.Attach(ctx, "n")
	if err != nil {
		t.Fatalf("a get: %v", err)
	}
	m.Close()
}

// 100 clients ask 20 times each for a long listing and never read: what the user may have at once costs a page and what gRPC
// holds of it, the others are refused, no lock is held, and another client is served.
func TestCase06ClientsThatNeverRead(t *testing.T) {
	socket, p := start(t, testdaemon.Config{})
	c := testdaemon.Client(t, socket)
	if err := put(c, "m", 64, 1); err != nil {
		t.Fatal(err)
	}
	// 300 models with tags of some length: a listing of about 1 MB.
	for i := range 300 {
		if _, err := c.Tag(ctx, "m", fmt.Sprintf("%s%03d:%s", strings.Repeat("n", 100), i, strings.Repeat("t", 60)), false); err != nil {
			t.Fatal(err)
		}
	}
	before := field(t, p.PID(), "VmRSS")
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/zcstore.v1.Store/List"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	const clients, calls = 100, 20
	var unread []net.Conn
	flood := func() { // a client with its calls
		u, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { u.Close() })
		unread = append(unread, u)
		var hello bytes.Buffer
		hello.WriteString(http2.ClientPreface)
		f := http2.NewFramer(&hello, nil)
		// The largest windows there are: nothing but the daemon itself holds back what it sends.
		_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
		_ = f.WriteWindowUpdate(0, 1<<31-1-65535)
		for i := range uint32(calls) {
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: block.Bytes(), EndHeaders: true})
			_ = f.WriteData(2*i+1, true, []byte{0, 0, 0, 0, 0})
		}
		if _, err := io.Copy(u, &hello); err != nil {
			t.Fatal(err)
		}
	}
	for range clients {
		flood()
	}
	refused := func(list func() error) func() bool {
		return func() bool {
			err := list()
			if err == nil { // a socket's buffer took a listing whole, and its place was free again
				flood()
			}
			return zcerr.KindOf(err) == zcerr.Limit && strings.Contains(zcerr.HintOf(err), "--max-lists-per-uid")
		}
	}
	await(t, "a refusal of one listing more", 20*time.Second, refused(func() error { _, err := c.List(ctx, "", false); return err }))
	await(t, "a refusal of a list of leases", 20*time.Second, refused(func() error { _, err := c.Holders(ctx, ""); return err }))
	var worst time.Duration
	for i := range 50 {
		begin := time.Now()
		if _, err := c.Status(ctx); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			if _, err := c.Tag(ctx, "m", fmt.Sprintf("x:y%d", i), false); err != nil { // takes every lock there is
				t.Fatal(err)
			}
		}
		worst = max(worst, time.Since(begin))
	}
	grown := field(t, p.PID(), "VmHWM") - before
	t.Logf("daemon grew by %d kB for %d clients with %d calls each; another client's slowest call %v", grown, clients, calls, worst.Round(time.Millisecond))
	if !testrace.Enabled && grown > 64<<10 {
		t.Errorf("%d kB for %d listings that nobody reads", grown, clients*calls)
	}
	for _, u := range unread {
		u.Close()
	}
	await(t, "a listing once they have gone", 20*time.Second, func() bool {
		list, err := c.List(ctx, "", false)
		return err == nil && len(list) > 300
	})
}
