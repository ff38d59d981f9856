// Package limits is what happens to a daemon, as a process, at its limits and among users: the clients that go too far are
// processes too.
package limits

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
)

var ctx = context.Background()

// size is how often a test does its thing: in go test, in CI, and by hand.
func size(short, ci, soak int) int {
	switch {
	case os.Getenv("ZCSTORE_SOAK") == "1":
		return soak
	case os.Getenv("ZCSTORE_CI") == "1":
		return ci
	}
	return short
}

// The test binary is also every client process; envChild says which, and envArgs is its JSON.
const (
	envChild = "ZCSTORE_LIMITS_CHILD"
	envArgs  = "ZCSTORE_LIMITS_ARGS"
)

type args struct {
	Socket, Ref, Ticket string
	N                   int
}

var children = map[string]func(args) error{}

func TestMain(m *testing.M) {
	testdaemon.Main()
	if f := children[os.Getenv(envChild)]; f != nil {
		var a args
		err := json.Unmarshal([]byte(os.Getenv(envArgs)), &a)
		if err == nil {
			err = f(a)
		}
		if err != nil {
			fmt.Printf("error: %v: %v\n", zcerr.KindOf(err), err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testleak.Run(m))
}

// child is a client process. It says lines, and goes on when its standard input has a line for it.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func spawn(t testing.TB, name string, a args, uid uint32) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), envChild+"="+name, envArgs+"="+string(b), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
		cmd.Dir = "/"
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd, in, bufio.NewReader(out)}
	t.Cleanup(c.kill)
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// says waits for a line.
func (c *child) says(t testing.TB, limit time.Duration) string {
	t.Helper()
	got := make(chan string, 1)
	go func() { s, _ := c.out.ReadString('\n'); got <- strings.TrimSuffix(s, "\n") }()
	select {
	case s := <-got:
		return s
	case <-time.After(limit):
		c.kill()
		t.Fatalf("the client process says nothing in %v", limit)
		return ""
	}
}

// tell lets it go on.
func (c *child) tell(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(c.in, "go\n"); err != nil {
		t.Fatal(err)
	}
}

var stdin = bufio.NewReader(os.Stdin)

// told waits, in a child, until it may go on.
func told() { _, _ = stdin.ReadString('\n') }

func dial(socket string) (*client.Client, error) {
	return client.Dial(ctx, client.Options{Socket: socket})
}

type model struct{ Layer *nn.Linear }

// put stores a model of n*n*4 bytes that nothing else equals.
func put(c *client.Client, ref string, n int, seed uint64) error {
	_, err := pipeline.Put(ctx, c, ref, &model{nn.NewLinear(n, n, nn.Seed(seed))}, pipeline.PutOptions{})
	return err
}

func start(t testing.TB, c testdaemon.Config) (socket string, p *testdaemon.Process) {
	t.Helper()
	socket, dir := testdaemon.Place(t)
	return socket, testdaemon.StartProcess(t, socket, dir, c.Env())
}

func await(t testing.TB, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, limit)
		}
	}
}

// field reads a number of kB from /proc/PID/status.
func field(t testing.TB, pid int, name string) (kb int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(l, name+":"); ok {
			fmt.Sscan(rest, &kb)
		}
	}
	return kb
}

// sealed is a manifest, encoded.
func sealed(t testing.TB) []byte {
	t.Helper()
	draft, _, err := pipeline.Describe(&model{nn.NewLinear(64, 64, nn.Seed(5))}, pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := draft.Seal(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.Encoded
}

// weights is what a put of sealed sends.
func weights(t testing.TB) []byte {
	t.Helper()
	draft, _, err := pipeline.Describe(&model{nn.NewLinear(64, 64, nn.Seed(5))}, pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := draft.Seal(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for i, d := range s.Data {
		b := make([]byte, s.Manifest.Tensors[i].Bytes())
		if _, err := d.ReadAt(b, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}
