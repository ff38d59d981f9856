package server

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// floodTime is how long each flood goes on.
func floodTime() time.Duration {
	if os.Getenv("ZCSTORE_SOAK") == "1" {
		return 30 * time.Second
	}
	return 400 * time.Millisecond
}

// frames is a client that writes HTTP/2 by hand, after a proper beginning.
type frames struct {
	net.Conn
	*http2.Framer
}

func handMade(t *testing.T, path string) *frames {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	f := &frames{c, http2.NewFramer(c, c)}
	f.AllowIllegalWrites = true
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.WriteSettings(), f.WriteSettingsAck()); err != nil {
		t.Fatal(err)
	}
	return f
}

func headers(fields ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

func callHeaders(path string, more ...string) []byte {
	return headers(append([]string{":method", "POST", ":scheme", "http", ":path", path, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}, more...)...)
}

// answer reads frames until one ends the stream, and gives its headers and what else ended it.
func (f *frames) answer(t *testing.T, id uint32) map[string]string {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	dec := hpack.NewDecoder(4096, func(h hpack.HeaderField) { got[h.Name] = h.Value })
	for {
		fr, err := f.ReadFrame()
		if err != nil {
			got["closed"] = err.Error()
			return got
		}
		switch fr := fr.(type) {
		case *http2.HeadersFrame:
			if _, err := dec.Write(fr.HeaderBlockFragment()); err != nil {
				t.Fatal(err)
			}
			if fr.StreamID == id && fr.StreamEnded() {
				return got
			}
		case *http2.RSTStreamFrame:
			if fr.StreamID == id {
				got["reset"] = fr.ErrCode.String()
				return got
			}
		case *http2.GoAwayFrame:
			got["goaway"] = fr.ErrCode.String()
		}
	}
}

// A path that is no method's name exactly is no method: what only looks like one must not pass by the rules.
func TestCase57PathsThatAreNoMethods(t *testing.T) {
	_, path := serve(t, limits.Limits{})
	for _, p := range []string{
		"zcstore.v1.Store/Status", "/zcstore.v1.store/Status", "/zcstore.v1.Store/status", "/ZCSTORE.V1.STORE/STATUS", "//zcstore.v1.Store/Status",
		"/zcstore.v1.Store//Status", "/zcstore.v1.Store/Status/", "/zcstore.v1.Store/%53tatus", "/zcstore.v1.Store/../Store/Status", "/", "", "*",
	} {
		f := handMade(t, path)
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: callHeaders(p), EndHeaders: true, EndStream: true}); err != nil {
			t.Fatal(err)
		}
		got := f.answer(t, 1)
		if s := got["grpc-status"]; s != "12" && got["reset"] == "" && got["closed"] == "" {
			t.Errorf("%q: %v, want status 12 (unimplemented) or the end of the stream", p, got)
		}
		if got["grpc-status"] == "0" {
			t.Errorf("%q was served", p)
		}
	}
}

func TestCase58Floods(t *testing.T) {
	_, path := serve(t, limits.Limits{})
	other := sdk(t, path)
	status := func() time.Duration {
		t.Helper()
		begin := time.Now()
		if _, err := other.Status(bounded(t)); err != nil {
			t.Fatalf("another client, during the flood: %v", err)
		}
		return time.Since(begin)
	}
	p99 := func(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)*99/100] }
	var quiet []time.Duration
	for range 100 {
		quiet = append(quiet, status())
	}
	for _, flood := range []struct {
		name string
		send func(f *frames, n uint32) error
	}{
		{"rapid reset", func(f *frames, n uint32) error {
			id := 2*n + 1
			return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: callHeaders("/zcstore.v1.Store/Status"), EndHeaders: true}),
				f.WriteRSTStream(id, http2.ErrCodeCancel))
		}},
		{"PING", func(f *frames, n uint32) error { return f.WritePing(false, [8]byte{byte(n)}) }},
		{"SETTINGS", func(f *frames, n uint32) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n % 65535})
		}},
		{"CONTINUATION", func(f *frames, n uint32) error {
			if n == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: callHeaders("/zcstore.v1.Store/Status")})
			}
			return f.WriteContinuation(1, false, headers("x-filler", strings.Repeat("x", 1000)))
		}},
	} {
		t.Run(flood.name, func(t *testing.T) {
			end := time.Now().Add(floodTime())
			done := make(chan int)
			go func() {
				sent := 0
				for time.Now().Before(end) {
					f := handMade(t, path)
					go io.Copy(io.Discard, f.Conn) // so that its answers do not hold the flood up
					for n := uint32(0); time.Now().Before(end); n++ {
						f.SetWriteDeadline(end.Add(time.Second))
						if flood.send(f, n) != nil {
							break // it was cut: come again
						}
						sent++
					}
					f.Conn.Close()
				}
				done <- sent
			}()
			var took []time.Duration
			for time.Now().Before(end) {
				took = append(took, status())
			}
			t.Logf("%d frames; another client's status: %d calls, p99 %v, quiet %v", <-done, len(took), p99(took), p99(quiet))
		})
	}
}

func TestCase59TooLargeAndTooMany(t *testing.T) {
	_, path := serve(t, limits.Limits{})
	other := sdk(t, path)
	t.Run("a message of 1 GiB", func(t *testing.T) {
		f := handMade(t, path)
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: callHeaders("/zcstore.v1.Store/Show"), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteData(1, false, []byte{0, 0x40, 0, 0, 0}); err != nil { // its length; the rest need never come
			t.Fatal(err)
		}
		if got := f.answer(t, 1); got["grpc-status"] != "8" {
			t.Errorf("got %v, want status 8 (resource exhausted)", got)
		}
	})
	t.Run("a header of 1 MiB", func(t *testing.T) {
		f := handMade(t, path)
		block := callHeaders("/zcstore.v1.Store/Status", "x-long", strings.Repeat("x", 1<<20))
		rest := block
		for first := true; len(rest) > 0; first = false {
			part := rest[:min(len(rest), 16<<10)]
			rest = rest[len(part):]
			var err error
			if first {
				err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: part, EndStream: true})
			} else {
				err = f.WriteContinuation(1, len(rest) == 0, part)
			}
			if err != nil {
				break // refused while it was sent
			}
		}
		if got := f.answer(t, 1); got["grpc-status"] == "0" || got["grpc-status"] == "" && got["reset"] == "" && got["closed"] == "" {
			t.Errorf("got %v, want a refusal", got)
		}
	})
	t.Run("calls without end", func(t *testing.T) {
		f := handMade(t, path)
		allowed := limits.Standard().Streams
		go func() {
			for i := range uint32(allowed + 40) {
				if f.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: callHeaders("/zcstore.v1.Store/Attach"), EndHeaders: true}) != nil {
					return
				}
			}
		}()
		refused := 0
		for refused < 40 {
			f.SetReadDeadline(time.Now().Add(5 * time.Second))
			fr, err := f.ReadFrame()
			if err != nil {
				t.Fatalf("after %d refusals: %v", refused, err)
			}
			if r, ok := fr.(*http2.RSTStreamFrame); ok && r.ErrCode == http2.ErrCodeRefusedStream {
				refused++
			}
		}
	})
	if _, err := other.Status(bounded(t)); err != nil {
		t.Errorf("another client: %v", err)
	}
}

// A panic in a handler is one call's error. What it held is free again.
func TestCase32PanicInAHandler(t *testing.T) {
	_, path := serve(t, limits.Limits{}, func(s *Server) { s.st = nil }) // every handler that asks the store panics
	c := sdk(t, path)
	for name, call := range map[string]func() error{
		"unary":  func() error { _, err := c.Status(bounded(t)); return err },
		"stream": func() error { _, err := c.List(bounded(t), "", false); return err },
		"lease":  func() error { _, err := c.Attach(bounded(t), "m"); return err },
	} {
		if err := call(); zcerr.KindOf(err) != zcerr.Other || !strings.Contains(err.Error(), "internal error in /zcstore.v1.Store/") || strings.Contains(err.Error(), "nil pointer") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := line(t, path, "ZCR1 attach m\n"); strings.Contains(got, "nil pointer") {
		t.Errorf("raw: %q", got)
	}
	health := healthpb.NewHealthClient(plainConn(t, path, insecure.NewCredentials()))
	if r, err := health.Check(bounded(t), &healthpb.HealthCheckRequest{Service: "zcstore.v1.Store"}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("after the panics: %v, %v", r, err)
	}
}

// Whoever connects and says nothing is closed in the handshake's time, and one user has few such at once.
func TestCase08SilentConnections(t *testing.T) {
	const handshake = 700 * time.Millisecond
	_, path := serve(t, limits.Limits{Handshake: handshake})
	begin := time.Now()
	var open []net.Conn
	for range 200 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	time.Sleep(250 * time.Millisecond) // the grace that each of them has, and some
	alive := 0
	for _, c := range open {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			alive++
		}
	}
	if most := limits.Standard().SilentPerUID; time.Since(begin) < handshake && alive > most {
		t.Errorf("%d silent connections of one user, the limit is %d", alive, most)
	}
	if _, err := sdk(t, path).Status(bounded(t)); err != nil {
		t.Errorf("another client beside them: %v", err)
	}
	for _, c := range open {
		c.SetReadDeadline(begin.Add(handshake + 5*time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("a silent connection stays open")
		}
	}
	t.Logf("%d at once, all closed after %v", alive, time.Since(begin).Round(time.Millisecond))
}

// A socket that nobody answers on is taken over, and one that somebody answers on is not.
func TestCase23StaleSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err) // the dead daemon's socket has to be there
	}
	ln, err := Listen(path)
	if err != nil {
		t.Fatalf("a dead daemon's socket: %v", err)
	}
	defer ln.Close()
	if _, err := Listen(path); zcerr.KindOf(err) != zcerr.Conflict {
		t.Errorf("a living daemon's socket: %v", err)
	}
}
