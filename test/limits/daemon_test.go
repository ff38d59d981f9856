package limits

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// race starts two daemons at once and gives the one that serves and what the other said when it ended.
func race(t *testing.T, a, b *exec.Cmd) (winner *exec.Cmd, code int, words string) {
	t.Helper()
	type ending struct {
		cmd   *exec.Cmd
		ready bool
		err   error
		words string
	}
	ends := make(chan ending, 4)
	for _, cmd := range []*exec.Cmd{a, b} {
		var log bytes.Buffer
		cmd.Stderr = &log
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			line, _ := bufio.NewReader(out).ReadString('\n')
			if line == "ready\n" {
				ends <- ending{cmd: cmd, ready: true}
				return
			}
			err := cmd.Wait()
			ends <- ending{cmd, false, err, log.String()}
		}()
	}
	for range 2 {
		select {
		case e := <-ends:
			if e.ready {
				if winner != nil {
					t.Fatal("two daemons serve")
				}
				winner = e.cmd
				continue
			}
			var exit *exec.ExitError
			if errors.As(e.err, &exit) {
				code = exit.ExitCode()
			}
			words = e.words
		case <-time.After(20 * time.Second):
			t.Fatal("neither serves nor ends")
		}
	}
	return winner, code, words
}

// Two daemons that want the same socket, or the same directory, started at the same moment: one serves, and the other ends with
// 3 and says who has it.
func TestCase22TwoDaemons(t *testing.T) {
	rounds := size(6, 200, 200)
	for _, same := range []string{"socket", "directory", "both"} {
		t.Run(same, func(t *testing.T) {
			for range rounds {
				socket, dir := testdaemon.Place(t)
				otherSocket, otherDir := filepath.Join(filepath.Dir(socket), "other"), dir
				switch same {
				case "socket":
					var err error
					if otherDir, err = os.MkdirTemp("/dev/shm", fmt.Sprintf("zcstore-test-%d-", os.Getpid())); err != nil {
						t.Fatal(err)
					}
					defer os.RemoveAll(otherDir)
					otherSocket = socket
				case "both":
					otherSocket = socket
				}
				winner, code, words := race(t, testdaemon.Command(socket, dir), testdaemon.Command(otherSocket, otherDir))
				if winner == nil {
					t.Fatalf("none serves: %s", words)
				}
				if code != 3 || !strings.Contains(words, fmt.Sprint("pid ", winner.Process.Pid)) && !strings.Contains(words, "another daemon") {
					t.Errorf("the other ended with %d: %s; pid %d serves", code, words, winner.Process.Pid)
				}
				_ = winner.Process.Signal(syscall.SIGTERM)
				if err := winner.Wait(); err != nil {
					t.Errorf("the one that served ended with %v", err)
				}
			}
		})
	}
}

// A put that is open when SIGTERM comes may finish, and one whose client goes is aborted; the daemon ends with 0 either way, and
// what was acknowledged is there for the next.
func TestCase31SIGTERMDuringAPut(t *testing.T) {
	for _, finishes := range []bool{true, false} {
		t.Run(fmt.Sprint("finishes=", finishes), func(t *testing.T) {
			socket, dir := testdaemon.Place(t)
			cmd := testdaemon.Command(socket, dir)
			p := testdaemon.StartCommand(t, cmd)
			s, cc, plan := openPut(t, socket, "m")
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if finishes {
				upload, err := net.Dial("unix", socket)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := upload.Write(append([]byte("ZCR1 put "+plan.Ticket+"\n"), weights(t)...)); err != nil {
					t.Fatal(err)
				}
				defer upload.Close()
				if err := s.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Commit{Commit: &zcstorev1.PutCommit{}}}); err != nil {
					t.Fatal(err)
				}
				if r, err := s.Recv(); err != nil || r.GetDone() == nil {
					t.Errorf("a put that was open at SIGTERM: %v, %v", r, err)
				}
			}
			cc.Close()
			begin := time.Now()
			p.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 0 || time.Since(begin) > 10*time.Second {
				t.Errorf("the daemon ended with %d after %v", code, time.Since(begin))
			}
			testdaemon.StartProcess(t, socket, dir)
			list, err := testdaemon.Client(t, socket).List(ctx, "", true)
			if err != nil || (len(list) == 1) != finishes {
				t.Errorf("the next daemon has %v, %v", list, err)
			}
		})
	}
}

// openPut begins a put and gets its plan.
func openPut(t *testing.T, socket, ref string) (zcstorev1.Store_PutClient, *grpc.ClientConn, *zcstorev1.PutPlan) {
	t.Helper()
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(fdpass.ClientCredentials(fdpass.ClientOptions{})), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	s, err := zcstorev1.NewStoreClient(cc).Put(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := sealed(t)
	if err := errors.Join(
		s.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{Protocol: client.Protocol, Ref: ref, ManifestBytes: uint64(len(m))}}}),
		s.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Manifest{Manifest: m}})); err != nil {
		t.Fatal(err)
	}
	r, err := s.Recv()
	if err != nil || r.GetPlan().GetTicket() == "" {
		t.Fatal(r, err)
	}
	return s, cc, r.GetPlan()
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}
func (rawCodec) Name() string { return "proto" }

// Messages with fields and values of another release are taken as far as they are known; empty ones and ones with the wrong
// step are refused as what they are.
func TestCase55MessagesOfAnotherRelease(t *testing.T) {
	socket, _ := start(t, testdaemon.Config{})
	c := testdaemon.Client(t, socket)
	if err := put(c, "m", 16, 1); err != nil {
		t.Fatal(err)
	}
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(fdpass.ClientCredentials(fdpass.ClientOptions{})), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	unknown := protowire.AppendTag(nil, 1000, protowire.BytesType)
	unknown = protowire.AppendBytes(unknown, []byte("from the future"))
	unknown = protowire.AppendTag(unknown, 1001, protowire.VarintType)
	unknown = protowire.AppendVarint(unknown, 1<<63)
	encode := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	call := func(method string, msg []byte) error {
		t.Helper()
		s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/zcstore.v1.Store/"+method)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.SendMsg(&msg), s.CloseSend()); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		var reply []byte
		if err := s.RecvMsg(&reply); !errors.Is(err, io.EOF) {
			return zcerr.FromStatus(err)
		}
		return nil
	}
	known := encode(&zcstorev1.ShowRequest{Ref: "m"})
	for _, tt := range []struct {
		method string
		msg    []byte
		kind   zcerr.Kind
		ok     bool
	}{
		{"Status", unknown, 0, true},
		{"Show", append(append([]byte(nil), unknown...), known...), 0, true},
		{"Show", append(append([]byte(nil), known...), unknown...), 0, true},
		{"List", unknown, 0, true},
		{"Show", nil, zcerr.Invalid, false},
		{"Tag", nil, zcerr.Invalid, false},
		{"Remove", nil, zcerr.Invalid, false},
		{"Verify", nil, zcerr.Invalid, false},
		{"Put", nil, zcerr.Invalid, false},
		{"Put", unknown, zcerr.Invalid, false},
		{"Put", encode(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Commit{Commit: &zcstorev1.PutCommit{}}}), zcerr.Invalid, false},
		{"Attach", encode(&zcstorev1.AttachRequest{Protocol: client.Protocol}), zcerr.Invalid, false},
		{"Attach", append(encode(&zcstorev1.AttachRequest{Protocol: client.Protocol}), unknown...), zcerr.Invalid, false},
	} {
		err := call(tt.method, tt.msg)
		if (err == nil) != tt.ok || err != nil && zcerr.KindOf(err) != tt.kind {
			t.Errorf("%s with %d bytes: %v: %v", tt.method, len(tt.msg), zcerr.KindOf(err), err)
		}
	}
	for _, noise := range [][]byte{{0xff}, {0x0a, 0xff, 0xff, 0xff, 0x7f}, bytes.Repeat([]byte{0x9b}, 100)} {
		for _, method := range []string{"Status", "Show", "Put", "Attach", "List"} {
			if err := call(method, noise); err == nil {
				t.Errorf("%s took noise", method)
			}
		}
	}
	if _, err := c.Status(ctx); err != nil {
		t.Error(err)
	}
}

// secrets is what no error may tell: where segments are, what their files are called, addresses, Go's own words of a panic.
var secrets = regexp.MustCompile(`/dev/shm|zcstore-test-|\b[st]-[0-9a-f]{16,}|\b[0-9a-f]{32}\b|0x[0-9a-f]{5,}|goroutine |runtime error|\.go:[0-9]`)

func TestCase69ErrorsTellNoSecrets(t *testing.T) {
	socket, dir := testdaemon.Place(t)
	testdaemon.StartProcess(t, socket, dir, testdaemon.Config{Limits: limits.Limits{BytesPerUID: 8 << 20, PutsPerUID: 2, Idle: 200 * time.Millisecond}}.Env())
	c := testdaemon.Client(t, socket)
	for i, name := range []string{"gone", "cut", "whole"} {
		if err := put(c, name, 128, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	held, err := c.Attach(ctx, "whole")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	damage(t, c, dir, "gone", func(path string) error { return os.Remove(path) })
	damage(t, c, dir, "cut", func(path string) error {
		return errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 4096))
	})
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(fdpass.ClientCredentials(fdpass.ClientOptions{})), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	api := zcstorev1.NewStoreClient(cc)
	var all []string
	seen := map[zcerr.Kind]bool{}
	note := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Logf("%s: no error", what)
			return
		}
		err = zcerr.FromStatus(err)
		seen[zcerr.KindOf(err)] = true
		all = append(all, fmt.Sprintf("%s: %v (%s)", what, err, zcerr.HintOf(err)))
	}
	for _, ref := range []string{"gone", "cut", "nothing", "whole:nothing", "whole@sha256:" + strings.Repeat("ab", 32), "../../etc/passwd", "x y", "", "a:b:c"} {
		_, err := c.Attach(ctx, ref)
		note("attach "+ref, err)
		_, err = c.Verify(ctx, ref)
		note("verify "+ref, err)
		_, err = api.Show(ctx, &zcstorev1.ShowRequest{Ref: ref})
		note("show "+ref, err)
		_, err = api.Tag(ctx, &zcstorev1.TagRequest{Source: ref, Target: "whole:latest"})
		note("tag "+ref, err)
		_, err = api.Remove(ctx, &zcstorev1.RemoveRequest{Ref: ref + "-no"})
		note("rm "+ref, err)
		raw, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(raw, "ZCR1 attach "+ref+"\n")
		raw.SetReadDeadline(time.Now().Add(2 * time.Second))
		if ref != "cut" { // handed out, for the client to find
			b, _ := io.ReadAll(raw)
			all = append(all, fmt.Sprintf("raw %s: %s", ref, b))
		}
		raw.Close()
	}
	note("put over the quota", put(c, "large", 2048, 9))
	_, err = c.Tag(ctx, "whole", "gone:latest", false)
	note("a tag that is taken", err)
	for range 3 {
		s, err := api.Put(ctx)
		if err == nil {
			err = s.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{Protocol: client.Protocol, Ref: "x", ManifestBytes: 1 << 62}}})
		}
		if err == nil || errors.Is(err, io.EOF) {
			_, err = s.Recv()
		}
		note("a manifest too large", err)
	}
	s, _, _ := openPut(t, socket, "late")
	_, err = s.Recv()
	note("a put that nobody feeds", err)
	for _, ticket := range []string{"", "0123456789abcdef0123456789abcdef"} {
		raw, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(raw, "ZCR1 put "+ticket+"\n")
		b, _ := io.ReadAll(raw)
		all = append(all, fmt.Sprintf("raw put: %s", b))
		raw.Close()
	}
	list, err := c.List(ctx, "", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		all = append(all, "listed as damaged: "+v.Damaged)
	}
	for _, text := range all {
		if found := secrets.FindString(text); found != "" {
			t.Errorf("%q is in: %s", found, text)
		}
	}
	t.Logf("%d texts of kinds %v", len(all), seen)
	for _, k := range []zcerr.Kind{zcerr.Invalid, zcerr.NotFound, zcerr.Conflict, zcerr.Corrupt, zcerr.Limit, zcerr.Timeout} {
		if !seen[k] {
			t.Errorf("no error of kind %v among them", k)
		}
	}
	for _, planted := range []string{"open /dev/shm/zcstore-1/x: no", "s-" + strings.Repeat("0a", 16), "at 0xc000123456", "runtime error: index", "store.go:12"} {
		if !secrets.MatchString(planted) {
			t.Errorf("the expression does not find %q", planted)
		}
	}
}

// damage does something to the file of a model's segment.
func damage(t *testing.T, c *client.Client, dir, ref string, do func(path string) error) {
	t.Helper()
	v, err := c.Show(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(dir, "s-"+v.Segments[0].Id+"*"))
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	if err := do(found[0]); err != nil {
		t.Fatal(err)
	}
}
