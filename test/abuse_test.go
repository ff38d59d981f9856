package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// The HTTP/2 preface, with which a gRPC client begins.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func dialRaw(t testing.TB, p *place) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// whole reads until the daemon closes the connection, which it has to do within limit.
func whole(t *testing.T, c net.Conn, limit time.Duration) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		t.Errorf("the daemon keeps the connection for %v", limit)
	}
	return string(b) // another error is a connection cut with bytes unread
}

// api is a gRPC client without the SDK around it.
func api(t testing.TB, p *place, creds credentials.TransportCredentials) (zcstorev1.StoreClient, *grpc.ClientConn) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///abuse", grpc.WithTransportCredentials(creds), grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.socket)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return zcstorev1.NewStoreClient(conn), conn
}

// sealed is a version that could be put.
func sealed(t testing.TB) *manifest.Sealed {
	t.Helper()
	draft, _, err := pipeline.Describe(&small{Layer: nn.NewLinear(300, 200, nn.Seed(5))}, pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := draft.Seal(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type putStream = zcstorev1.Store_PutClient

func beginning(protocol uint32, ref string, n uint64) *zcstorev1.PutRequest {
	return &zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{Protocol: protocol, Ref: ref, ManifestBytes: n}}}
}

func chunk(b []byte) *zcstorev1.PutRequest {
	return &zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Manifest{Manifest: b}}
}

var commit = &zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Commit{Commit: &zcstorev1.PutCommit{}}}

// planned sends a manifest and gets the plan: an open put that waits for its bytes.
func planned(s putStream, m *manifest.Sealed) (*zcstorev1.PutPlan, error) {
	if err := errors.Join(s.Send(beginning(client.Protocol, "abuse", uint64(len(m.Encoded)))), s.Send(chunk(m.Encoded))); err != nil {
		return nil, err
	}
	r, err := s.Recv()
	if err == nil && (r.GetPlan().GetTicket() == "" || r.GetPlan().WantedBytes == 0) {
		err = fmt.Errorf("no plan: %v", r)
	}
	return r.GetPlan(), err
}

// upload sends bytes on the raw channel and ends it.
func upload(t testing.TB, p *place, ticket string, b []byte) {
	c := dialRaw(t, p)
	_, _ = c.Write(append([]byte("ZCR1 put "+ticket+"\n"), b...)) // the daemon may have closed already
	c.Close()
}

// rawAbuse is what may come on the socket. Each connection has to be closed at once, after an answer where there is one.
var rawAbuse = []struct{ name, send, answer string }{
	{"garbage", "\x00\xff\x13garbage garbage garbage", ""},
	{"HTTP/1", "GET / HTTP/1.1\r\nHost: zcstore\r\n\r\n", ""},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""},
	{"the magic of another version", "ZCR2 attach m\n", ""},
	{"put with no ticket", "ZCR1 put\n", `"kind":"denied"`},
	{"put with a bad ticket", "ZCR1 put badticket\nbytes that nobody wants", "no put waits for this ticket"},
	{"sources with a bad ticket", "ZCR1 sources badticket\nF", "no put waits for this ticket"},
	{"an unknown verb", "ZCR1 nonsense\n", "as in: ZCR1 attach NAME"},
	{"no verb", "ZCR1 \n", "the raw channel knows put, sources and attach"},
	{"attach to what is not there", "ZCR1 attach nothing\n", `"kind":"not_found"`},
	{"attach to nothing", "ZCR1 attach \n", "write NAME, NAME:TAG or NAME@sha256:DIGEST"},
	{"attach with a bad reference", "ZCR1 attach ../x\n", `"kind":"invalid"`},
	{"a line without end", "ZCR1 attach " + strings.Repeat("x", 4<<10), "the first line has over 1024 bytes"},
	{"HTTP/2, then garbage", preface + strings.Repeat("\xff", 400), ""},
	{"descriptors and HTTP/2, then garbage", "ZCF1" + preface + strings.Repeat("\xff", 400), ""},
	{"descriptors, then garbage", "ZCF1" + strings.Repeat("garbage ", 50), ""},
	{"a frame over the limit", "ZCF1" + preface + "\xff\xff\xff\x00\x00\x00\x00\x00\x01", ""},
}

func TestRawAbuse(t *testing.T) {
	p, other := withBystander(t)
	for _, tt := range rawAbuse {
		t.Run(tt.name, func(t *testing.T) {
			c := dialRaw(t, p)
			if _, err := c.Write([]byte(tt.send)); err != nil {
				t.Fatal(err)
			}
			if got := whole(t, c, 5*time.Second); !strings.Contains(got, tt.answer) {
				t.Errorf("answer %q, want %q in it", got, tt.answer)
			}
			other.works(t)
		})
	}
}

func TestProtocolAbuse(t *testing.T) {
	p, other := withBystander(t)
	other.works(t)
	m := sealed(t)
	size := 300*200*4 + 200*4
	weights := make([]byte, size)
	for _, tt := range []struct {
		name string
		do   func(s putStream) error // gives the daemon's word
		kind zcerr.Kind
		says string
	}{
		{"another protocol", func(s putStream) error { return s.Send(beginning(99, "abuse", 10)) }, zcerr.Unsupported, "protocol 99, this daemon protocol 1"},
		{"no protocol", func(s putStream) error { return s.Send(beginning(0, "abuse", 10)) }, zcerr.Unsupported, "protocol 0"},
		{"a stream that ends at once", func(s putStream) error { return s.CloseSend() }, zcerr.Invalid, "ended before its commit"},
		{"a stream that ends after begin", func(s putStream) error {
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", 10)), s.CloseSend())
		}, zcerr.Invalid, "ended before its commit"},
		{"a stream that ends in the manifest", func(s putStream) error {
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", uint64(len(m.Encoded)))), s.Send(chunk(m.Encoded[:9])), s.CloseSend())
		}, zcerr.Invalid, "ended before its commit"},
		{"a stream that ends after the plan", func(s putStream) error {
			_, err := planned(s, m)
			return errors.Join(err, s.CloseSend())
		}, zcerr.Invalid, "ended before its commit"},
		{"commit first", func(s putStream) error { return s.Send(commit) }, zcerr.Invalid, "begins with begin"},
		{"begin twice", func(s putStream) error {
			_, err := planned(s, m)
			return errors.Join(err, s.Send(beginning(client.Protocol, "abuse", 10)))
		}, zcerr.Invalid, "after the plan comes commit"},
		{"a manifest announced too large", func(s putStream) error { return s.Send(beginning(client.Protocol, "abuse", 1<<62)) }, zcerr.Limit, "4611686018427387904 bytes is over the limit"},
		{"no manifest", func(s putStream) error { return s.Send(beginning(client.Protocol, "abuse", 0)) }, zcerr.Invalid, "manifest"},
		{"more manifest than announced", func(s putStream) error {
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", 10)), s.Send(chunk(make([]byte, 11))))
		}, zcerr.Invalid, "do not add up to the 10 bytes"},
		{"an empty chunk", func(s putStream) error {
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", 10)), s.Send(chunk(nil)))
		}, zcerr.Invalid, "do not add up to the 10 bytes"},
		{"a manifest of noise", func(s putStream) error {
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", 64)), s.Send(chunk([]byte(strings.Repeat("\x93\x07{[", 16)))))
		}, zcerr.Invalid, "manifest"},
		{"a manifest with a bit turned", func(s putStream) error {
			b := append([]byte(nil), m.Encoded...)
			b[0] ^= 1
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", uint64(len(b)))), s.Send(chunk(b)))
		}, zcerr.Invalid, "manifest"},
		{"a message over the limit", func(s putStream) error {
			return errors.Join(s.Send(beginning(client.Protocol, "abuse", 3<<20)), s.Send(chunk(make([]byte, 2<<20))))
		}, zcerr.NoSpace, "larger than max"}, // grpc's own word: it has one code for both
		{"bytes that end early", func(s putStream) error {
			plan, err := planned(s, m)
			if err == nil {
				upload(t, p, plan.Ticket, weights[:100])
			}
			return errors.Join(err, s.Send(commit))
		}, zcerr.Invalid, "the bytes end inside tensor"},
		{"other bytes than announced", func(s putStream) error {
			plan, err := planned(s, m)
			if err == nil {
				upload(t, p, plan.Ticket, weights)
			}
			return err
		}, zcerr.Corrupt, "arrived with"},
		{"bytes, then the stream ends", func(s putStream) error {
			plan, err := planned(s, m)
			if err == nil {
				c := dialRaw(t, p)
				_, err = c.Write(append([]byte("ZCR1 put "+plan.Ticket+"\n"), weights[:1000]...))
			}
			return errors.Join(err, s.CloseSend())
		}, zcerr.Invalid, "ended before its commit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, _ := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{}))
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			s, err := a.Put(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.do(s); err != nil && !errors.Is(err, io.EOF) { // EOF: Recv has the reason
				t.Fatal(err)
			}
			_, err = s.Recv()
			if err = zcerr.FromStatus(err); zcerr.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v: %v; want %v and %q", zcerr.KindOf(err), err, tt.kind, tt.says)
			}
			other.works(t)
		})
	}
	t.Run("commit without bytes, then the client goes", func(t *testing.T) {
		a, conn := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{}))
		s, err := a.Put(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := planned(s, m); err != nil {
			t.Fatal(err)
		}
		if err := s.Send(commit); err != nil {
			t.Fatal(err)
		}
		if st, err := other.c.Status(ctx); err != nil || st.OpenPuts != 1 {
			t.Errorf("%d open puts while one waits for its bytes, %v", st.GetOpenPuts(), err)
		}
		conn.Close()
		other.works(t)
	})
	t.Run("a ticket used twice", func(t *testing.T) {
		a, conn := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{}))
		s, err := a.Put(ctx)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := planned(s, m)
		if err != nil {
			t.Fatal(err)
		}
		first, second := dialRaw(t, p), dialRaw(t, p)
		for _, c := range []net.Conn{first, second} {
			if _, err := c.Write([]byte("ZCR1 put " + plan.Ticket + "\n")); err != nil {
				t.Fatal(err)
			}
			if c == first { // taken, before the second comes
				if _, err := c.Write(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				other.status(t, 1)
			}
		}
		conn.Close()
		whole(t, first, 5*time.Second)
		whole(t, second, 5*time.Second)
		other.works(t)
	})
	t.Run("eight puts and a ninth", func(t *testing.T) {
		a, conn := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{}))
		for i := range 9 {
			s, err := a.Put(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_, err = planned(s, m)
			if i < 8 && err != nil {
				t.Fatal(err)
			}
			if err = zcerr.FromStatus(err); i == 8 && (zcerr.KindOf(err) != zcerr.Limit || !strings.Contains(err.Error(), "8 puts are open")) {
				t.Errorf("the ninth: %v", err)
			}
		}
		conn.Close()
		other.status(t, 0) // until the daemon has seen them go
		other.works(t)
	})
	t.Run("attach streams", func(t *testing.T) {
		held, err := other.c.Attach(ctx, "bystander")
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		holders, err := other.c.Holders(ctx, "")
		if err != nil || len(holders) != 1 {
			t.Fatalf("%v, %v", holders, err)
		}
		for _, tt := range []struct {
			name string
			req  *zcstorev1.AttachRequest
			kind zcerr.Kind
			says string
		}{
			{"another protocol", &zcstorev1.AttachRequest{Protocol: 7, Step: &zcstorev1.AttachRequest_Open{Open: "bystander"}}, zcerr.Unsupported, "protocol 7"},
			{"no step", &zcstorev1.AttachRequest{Protocol: client.Protocol}, zcerr.Invalid, "opens or releases"},
		} {
			a, conn := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{}))
			s, err := a.Attach(ctx)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Send(tt.req)
			if _, err = s.Recv(); zcerr.KindOf(zcerr.FromStatus(err)) != tt.kind || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v", tt.name, err)
			}
			conn.Close()
		}
		// Somebody else's lease is not to be released.
		a, conn := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{}))
		s, err := a.Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&zcstorev1.AttachRequest{Protocol: client.Protocol, Step: &zcstorev1.AttachRequest_Release{Release: holders[0].Lease}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		if now, err := other.c.Holders(ctx, ""); err != nil || len(now) != 1 || now[0].Lease != holders[0].Lease {
			t.Errorf("a stranger released a lease: %v, %v", now, err)
		}
		// Descriptors that nobody takes are bounded.
		var refusal error
		for range 100 {
			if err := s.Send(&zcstorev1.AttachRequest{Step: &zcstorev1.AttachRequest_Open{Open: "bystander"}}); err != nil {
				t.Fatal(err)
			}
			r, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if e := r.GetError(); e != nil {
				refusal = errors.New(e.Kind + ": " + e.Message)
				break
			}
		}
		if refusal == nil || !strings.HasPrefix(refusal.Error(), "limit: ") {
			t.Errorf("a client that takes none of its descriptors: %v", refusal)
		}
		conn.Close()
		other.works(t)
	})
	t.Run("a client without descriptors", func(t *testing.T) {
		a, _ := api(t, p, insecure.NewCredentials())
		s, err := a.Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&zcstorev1.AttachRequest{Protocol: client.Protocol, Step: &zcstorev1.AttachRequest_Open{Open: "bystander"}}); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if r, err := s.Recv(); err != nil || r.GetError().GetKind() != "conflict" || !strings.Contains(r.GetError().GetMessage(), "takes no descriptors") {
			t.Errorf("got %v, %v", r, err)
		}
		if _, err := a.Status(ctx, &zcstorev1.StatusRequest{}); err != nil {
			t.Errorf("what needs no descriptors: %v", err)
		}
		other.works(t)
	})
	t.Run("a method that is not there", func(t *testing.T) {
		_, conn := api(t, p, insecure.NewCredentials())
		err := conn.Invoke(ctx, "/zcstore.v1.Store/Destroy", &zcstorev1.StatusRequest{}, &zcstorev1.StatusReply{})
		if zcerr.KindOf(zcerr.FromStatus(err)) != zcerr.Unsupported {
			t.Errorf("got %v", err)
		}
		other.works(t)
	})
}

// status waits until the daemon says that so many puts are open.
func (b *bystander) status(t *testing.T, puts uint32) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		st, err := b.c.Status(ctx)
		if err == nil && st.OpenPuts == puts {
			return
		}
		if err != nil || time.Since(begin) > 5*time.Second {
			t.Fatalf("%d open puts, %v; want %d", st.GetOpenPuts(), err, puts)
		}
	}
}

// Connections that say nothing cost the others nothing, and are closed.
func TestSilence(t *testing.T) {
	t.Parallel() // it waits for the daemon's deadline of ten seconds
	p, other := withBystander(t)
	opened := time.Now()
	var silent []net.Conn
	for range 20 { // below the 32 that one uid may have unfinished: the other client needs some for itself
		silent = append(silent, dialRaw(t, p))
	}
	for _, begun := range []string{"ZC", "ZCR1 put", "PRI "} {
		c := dialRaw(t, p)
		if _, err := c.Write([]byte(begun)); err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	other.works(t)
	for _, c := range silent {
		whole(t, c, 15*time.Second)
	}
	t.Logf("all closed %v after they were opened", time.Since(opened).Round(100*time.Millisecond))
	other.works(t)
}
