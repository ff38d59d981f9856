package limits

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/server"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

func init() {
	children["greedy"], children["modest"], children["stranger"] = greedy, modest, modest
	children["hold"], children["fdlimit"], children["thief"], children["fake"] = hold, fdLimit, thief, fake
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start client processes of other users")
	}
}

// admitAll makes a daemon's socket one that every user of this machine can connect to: what then keeps him out is the daemon.
func admitAll(t *testing.T, socket string) {
	t.Helper()
	if err := errors.Join(os.Chmod(filepath.Dir(socket), 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
}

const userA, userB, userC = 54321, 54322, 54323

// greedy takes all that the daemon gives: bytes, then open puts, then connections. It says what it got of each, and that every
// refusal was of kind Limit and named a flag.
func greedy(a args) error {
	c, err := dial(a.Socket)
	if err != nil {
		return err
	}
	limit := func(err error) error {
		if zcerr.KindOf(err) != zcerr.Limit || !strings.Contains(zcerr.HintOf(err), "zcstored --max-") || !strings.Contains(err.Error(), fmt.Sprint("uid ", os.Getuid())) {
			return fmt.Errorf("refused with %v: %w (%s)", zcerr.KindOf(err), err, zcerr.HintOf(err))
		}
		return nil
	}
	puts := 0
	for ; err == nil && puts < 100; puts++ {
		err = put(c, "greedy", 256, uint64(puts))
	}
	if err := limit(err); err != nil {
		return fmt.Errorf("bytes: %w", err)
	}
	cc, err := grpc.NewClient("unix:"+a.Socket, grpc.WithTransportCredentials(fdpass.ClientCredentials(fdpass.ClientOptions{})), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	streams := 0
	for err == nil && streams < 100 {
		var s zcstorev1.Store_PutClient
		if s, err = zcstorev1.NewStoreClient(cc).Put(ctx); err != nil {
			break
		}
		got := make(chan error, 1)
		go func() { _, err := s.Recv(); got <- err }() // an open put waits for its manifest and says nothing
		select {
		case err = <-got:
		case <-time.After(100 * time.Millisecond):
			streams++
		}
	}
	if err := limit(zcerr.FromStatus(err)); err != nil {
		return fmt.Errorf("puts: %w", err)
	}
	var conns []*client.Client
	for err = nil; err == nil && len(conns) < 100; {
		var c *client.Client
		if c, err = dial(a.Socket); err == nil {
			_, err = c.Status(ctx)
			conns = append(conns, c)
		}
	}
	if err := limit(err); err != nil {
		return fmt.Errorf("connections: %w", err)
	}
	fmt.Printf("%d puts, %d open puts, %d connections\n", puts-1, streams, len(conns)-1)
	told()
	return nil
}

// modest puts one model and says how long that took.
func modest(a args) error {
	c, err := dial(a.Socket)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := put(c, a.Ref, 256, 999); err != nil {
		return err
	}
	fmt.Println("put", time.Since(begin).Milliseconds())
	return nil
}

// One user who takes all the connections, open puts and bytes that he gets leaves another's put alone; a third, whom nobody
// named, gets nothing.
func TestCase60OneUserAtTheLimits(t *testing.T) {
	needRoot(t)
	socket, segments := testdaemon.PublicPlace(t)
	testdaemon.StartProcess(t, socket, segments, testdaemon.Config{
		Limits: limits.Limits{Conns: 30, ConnsPerUID: 10, Puts: 6, PutsPerUID: 3, BytesPerUID: 2 << 20},
		Access: server.Access{UIDs: []uint32{userA}, GIDs: []uint32{userB}},
	}.Env())
	admitAll(t, socket)
	a := spawn(t, "greedy", args{Socket: socket}, userA)
	var puts, open, conns int
	got := a.says(t, 30*time.Second)
	if n, _ := fmt.Sscanf(got, "%d puts, %d open puts, %d connections", &puts, &open, &conns); n != 3 {
		t.Fatalf("the greedy one: %s", got)
	}
	t.Log("the greedy one:", got)
	// 256 KiB each and a table, of 2 MiB; ten connections, two of which it put with, and one more for each open put.
	if puts < 5 || puts > 8 || open != 3 || conns > 8+3 {
		t.Errorf("it got %d puts, %d open puts and %d connections", puts, open, conns)
	}
	b := spawn(t, "modest", args{Socket: socket, Ref: "modest"}, userB)
	var ms int
	if got := b.says(t, 10*time.Second); !strings.HasPrefix(got, "put ") {
		t.Errorf("the other user: %s", got)
	} else if fmt.Sscanf(got, "put %d", &ms); ms > 1000 {
		t.Errorf("the other user's put took %d ms", ms)
	}
	c := spawn(t, "stranger", args{Socket: socket, Ref: "stranger"}, userC)
	if got := c.says(t, 10*time.Second); !strings.HasPrefix(got, "error: denied: ") || !strings.Contains(got, fmt.Sprint("uid ", userC)) {
		t.Errorf("a user whom nobody named: %s", got)
	}
	a.kill()
	own := testdaemon.Client(t, socket)
	await(t, "end of the greedy one", 10*time.Second, func() bool { st, err := own.Status(ctx); return err == nil && st.OpenPuts == 0 })
}

// hold attaches, says so, and attaches once more when it is told to.
func hold(a args) error {
	c, err := dial(a.Socket)
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := c.Attach(ctx, a.Ref); err != nil {
			return err
		}
		fmt.Println("attached")
		told()
	}
	return nil
}

// A stopped client owes no reading, so it keeps its lease, for much longer than one may leave replies unread, and goes on where
// it was.
func TestCase03StoppedClientKeepsItsLease(t *testing.T) {
	const unread = 300 * time.Millisecond
	socket, _ := start(t, testdaemon.Config{Limits: limits.Limits{Unread: unread, Idle: unread, Handshake: unread}})
	c := testdaemon.Client(t, socket)
	if err := put(c, "m", 64, 1); err != nil {
		t.Fatal(err)
	}
	holder := spawn(t, "hold", args{Socket: socket, Ref: "m"}, 0)
	if got := holder.says(t, 10*time.Second); got != "attached" {
		t.Fatal(got)
	}
	if err := holder.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * unread); time.Now().Before(end); time.Sleep(unread / 4) {
		if st, err := c.Status(ctx); err != nil || st.Leases != 1 {
			t.Fatalf("%d leases of a stopped client, %v", st.GetLeases(), err)
		}
	}
	if err := holder.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	holder.tell(t)
	if got := holder.says(t, 10*time.Second); got != "attached" {
		t.Fatalf("after it goes on: %s", got)
	}
	holders, err := c.Holders(ctx, "m")
	if err != nil || len(holders) != 2 || holders[0].Pid != int32(holder.cmd.Process.Pid) || holders[0].Form != "plain" || holders[0].Command == "" {
		t.Errorf("holders: %v, %v", holders, err)
	}
	holder.kill()
	await(t, "end of its leases", 5*time.Second, func() bool { st, err := c.Status(ctx); return err == nil && st.Leases == 0 })
}

// fdLimit attaches with no room for a descriptor, and again with room.
func fdLimit(a args) error {
	c, err := dial(a.Socket)
	if err != nil {
		return err
	}
	if _, err := c.Attach(ctx, a.Ref); err != nil { // the connection is made
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
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(probe + 1), Max: old.Max}); err != nil { // a version has two files
		return err
	}
	_, refused := c.Attach(ctx, a.Ref)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		return err
	}
	if zcerr.KindOf(refused) != zcerr.Limit || !strings.Contains(zcerr.HintOf(refused), "ulimit -n") {
		return fmt.Errorf("at the limit: %v: %w", zcerr.KindOf(refused), refused)
	}
	after, err := unix.Dup(0)
	if err != nil || after != probe {
		return fmt.Errorf("descriptor %d is the lowest free one, it was %d: some that arrived are open, %v", after, probe, err)
	}
	unix.Close(after)
	if _, err := c.Attach(ctx, a.Ref); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	fmt.Println("ok")
	return nil
}

func TestCase10ClientAtItsLimitOfOpenFiles(t *testing.T) {
	socket, _ := start(t, testdaemon.Config{})
	if err := put(testdaemon.Client(t, socket), "m", 64, 1); err != nil {
		t.Fatal(err)
	}
	if got := spawn(t, "fdlimit", args{Socket: socket, Ref: "m"}, 0).says(t, 20*time.Second); got != "ok" {
		t.Error(got)
	}
}

// thief uses a ticket that was given to another process of the same user.
func thief(a args) error {
	c, err := net.Dial("unix", a.Socket)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c, "ZCR1 put "+a.Ticket+"\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	fmt.Printf("closed with %q, %v\n", b, err)
	return nil
}

// What a ticket is bound to is the process, not its number or user: another process that has it gets nothing, and it is spent.
func TestCase64TicketInAnotherProcess(t *testing.T) {
	socket, _ := start(t, testdaemon.Config{})
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(fdpass.ClientCredentials(fdpass.ClientOptions{})), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	s, err := zcstorev1.NewStoreClient(cc).Put(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m := sealed(t)
	for _, req := range []*zcstorev1.PutRequest{
		{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{Protocol: client.Protocol, Ref: "m", ManifestBytes: uint64(len(m))}}},
		{Step: &zcstorev1.PutRequest_Manifest{Manifest: m}},
	} {
		if err := s.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Recv()
	if err != nil || r.GetPlan().GetTicket() == "" {
		t.Fatal(r, err)
	}
	got := spawn(t, "thief", args{Socket: socket, Ticket: r.GetPlan().Ticket}, 0).says(t, 10*time.Second)
	if !strings.HasPrefix(got, "closed") {
		t.Error(got)
	}
	if _, err := s.Recv(); zcerr.KindOf(zcerr.FromStatus(err)) != zcerr.Denied || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the put whose ticket was used by another process: %v", err)
	}
}

// fake listens where a daemon should, as another user.
func fake(a args) error {
	ln, err := net.Listen("unix", a.Socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(a.Socket, 0o666); err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go io.Copy(io.Discard, c)
	}
}

func TestCase66FakeDaemon(t *testing.T) {
	needRoot(t)
	dir := testdaemon.PublicDir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	if got := spawn(t, "fake", args{Socket: socket}, userA).says(t, 10*time.Second); got != "ready" {
		t.Fatal(got)
	}
	c := testdaemon.Client(t, socket)
	for name, err := range map[string]error{
		"status": func() error { _, err := c.Status(ctx); return err }(),
		"attach": func() error { _, err := c.Attach(ctx, "m"); return err }(),
		"put":    put(c, "m", 16, 1),
	} {
		if zcerr.KindOf(err) != zcerr.Denied || !strings.Contains(err.Error(), fmt.Sprint("uid ", userA)) {
			t.Errorf("%s: %v: %v", name, zcerr.KindOf(err), err)
		}
	}
}
