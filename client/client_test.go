package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

func TestMain(m *testing.M) {
	testdaemon.Main()
	os.Exit(testleak.Run(m))
}

var ctx = context.Background()

// draft is a module with n tensors of size bytes, filled from the seed.
func draft(seed uint64, n, size int) (*manifest.Draft, [][]byte) {
	d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(`{}`)}}
	var all [][]byte
	for i := range n {
		b := make([]byte, size)
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		for k := 0; k+8 <= len(b); k += 8 {
			v := rng.Uint64()
			for j := range 8 {
				b[k+j] = byte(v >> (8 * j))
			}
		}
		name := fmt.Sprintf("t%04d", i)
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{name}, DType: tensor.U8, Shape: tensor.Shape{size}, Data: bytes.NewReader(b)})
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: name, Tensor: i})
		all = append(all, b)
	}
	return d, all
}

func daemonAndClient(t testing.TB) (*client.Client, string, string) {
	t.Helper()
	socket, dir := testdaemon.Place(t)
	testdaemon.Start(t, socket, dir)
	return testdaemon.Client(t, socket), socket, dir
}

func same(t *testing.T, m *client.Model, want [][]byte) {
	t.Helper()
	for i, b := range want {
		v, _, err := m.Lookup(fmt.Sprintf("t%04d", i))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(v.Data, b) {
			t.Fatalf("tensor %d differs", i)
		}
	}
}

func TestPutAttachAndTheRest(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	d, want := draft(1, 5, 3<<20+5)
	done, err := c.Put(ctx, "org/m", d, client.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(done.Version.Tags, " ") != "v1 latest" || done.Existed || done.WrittenBytes < 15<<20 {
		t.Errorf("done: %v", done)
	}
	m, err := c.Attach(ctx, "org/m")
	if err != nil {
		t.Fatal(err)
	}
	same(t, m, want)
	if m.Ref() != "org/m:latest" || m.Digest() != client.Digest(done.Version.Digest) {
		t.Errorf("attached %s %v", m.Ref(), m.Digest())
	}
	holders, err := c.Holders(ctx, "")
	if err != nil || len(holders) != 1 || holders[0].Pid != int32(os.Getpid()) || holders[0].Ref != "org/m:latest" {
		t.Errorf("holders %v, %v", holders, err)
	}
	if _, err := c.Tag(ctx, "org/m", "org/m:prod", false); err != nil {
		t.Error(err)
	}
	if info, err := c.Show(ctx, "org/m:prod"); err != nil || info.Holders != 1 || len(info.Segments) != 1 {
		t.Errorf("show %v, %v", info, err)
	}
	rm, err := c.Remove(ctx, "org/m", false)
	if err != nil || rm.HeldBytes < 15<<20 || len(rm.Untagged) != 3 {
		t.Errorf("rm %v, %v", rm, err)
	}
	same(t, m, want)
	if ls, err := c.List(ctx, "", true); err != nil || len(ls) != 1 || !ls[0].Deleted {
		t.Errorf("ls --all %v, %v", ls, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	st, err := c.Status(ctx)
	if err != nil || st.Leases != 0 || st.UsedBytes != 0 || st.HeldAfterDeleteBytes != 0 || st.Clients != 1 {
		t.Errorf("status %v, %v", st, err)
	}
}

// Errors keep kind, model and hint over the wire, and the next call works.
func TestErrorsCrossTheSocket(t *testing.T) {
	c, socket, _ := daemonAndClient(t)
	d, want := draft(1, 1, 100)
	if _, err := c.Put(ctx, "m:one", d, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	other, _ := draft(2, 1, 100)
	_, err := c.Put(ctx, "m:one", other, client.PutOptions{})
	var e *zcerr.Error
	if !errors.As(err, &e) || e.Kind != zcerr.Conflict || e.Op != "put" || e.Model != "m:one" || !strings.Contains(e.Hint, "--replace") {
		t.Errorf("conflict: %+v", e)
	}
	if _, err = c.Attach(ctx, "n"); !errors.Is(err, zcerr.NotFound) || !strings.Contains(zcerr.HintOf(err), "zcctl put n DIR") {
		t.Errorf("not found: %v, %q", err, zcerr.HintOf(err))
	}
	if _, err = c.Attach(ctx, "a b"); !errors.Is(err, zcerr.Invalid) {
		t.Errorf("bad reference: %v", err)
	}
	m, err := c.Attach(ctx, "m:one") // the stream is still good
	if err != nil {
		t.Fatal(err)
	}
	same(t, m, want)
	nobody := testdaemon.Client(t, socket+"x")
	if _, err := nobody.Status(ctx); !errors.Is(err, zcerr.Unavailable) || !strings.Contains(err.Error(), socket+"x") || !strings.Contains(zcerr.HintOf(err), "zcstored --dev") {
		t.Errorf("no daemon: %v; %q", err, zcerr.HintOf(err))
	}
	if _, err := nobody.Attach(ctx, "m"); !errors.Is(err, zcerr.Unavailable) {
		t.Errorf("attach without a daemon: %v", err)
	}
	if _, err := nobody.Put(ctx, "m", other, client.PutOptions{}); !errors.Is(err, zcerr.Unavailable) {
		t.Errorf("put without a daemon: %v", err)
	}
}

// A source that changes between hashing and sending is found by the daemon, and nothing is stored. One that is read only once
// is stored as it was read.
func TestSourceThatChanges(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	d, _ := draft(1, 2, 1<<20)
	d.Tensors[1].Data = &changing{}
	if _, err := c.Put(ctx, "once", d, client.PutOptions{}); err != nil { // nothing of this size is stored: the daemon hashes
		t.Fatal(err)
	}
	if v, err := c.Verify(ctx, "once"); err != nil || len(v.Damaged) > 0 {
		t.Errorf("verify: %v, %v", v, err)
	}
	before, _ := c.Status(ctx)
	d.Tensors[1].Data = &changing{}
	_, err := c.Put(ctx, "m", d, client.PutOptions{})
	if !errors.Is(err, zcerr.Corrupt) || !strings.Contains(err.Error(), "t0001") {
		t.Errorf("got %v", err)
	}
	if st, _ := c.Status(ctx); st.UsedBytes != before.UsedBytes || st.OpenPuts != 0 || st.Versions != 1 {
		t.Errorf("left: %v", st)
	}
}

type changing struct{ reads int }

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	for i := range p {
		p[i] = byte(c.reads)
	}
	return len(p), nil
}

func TestCancelLeavesNothing(t *testing.T) {
	c, _, _ := daemonAndClient(t)
	d, _ := draft(1, 4, 1<<20)
	if _, err := c.Put(ctx, "m", d, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		cctx, cancel := context.WithCancel(ctx)
		go func() {
			if i%2 == 0 {
				time.Sleep(time.Duration(i) * time.Microsecond)
			}
			cancel()
		}()
		m, err := c.Attach(cctx, "m")
		if err == nil {
			m.Close()
		} else if !errors.Is(err, zcerr.Canceled) {
			t.Fatal(err)
		}
		cancel()
	}
	waitFor(t, "leases to go", func() bool { st, err := c.Status(ctx); return err == nil && st.Leases == 0 })
	// A put that is cancelled half way.
	cctx, cancel := context.WithCancel(ctx)
	big, _ := draft(2, 8, 4<<20)
	_, err := c.Put(cctx, "big", big, client.PutOptions{Progress: func(stage string, done, _ int) {
		if stage == "send" && done > 8<<20 {
			cancel()
		}
	}})
	if !errors.Is(err, zcerr.Canceled) {
		t.Errorf("cancelled put: %v", err)
	}
	waitFor(t, "the put to go", func() bool {
		st, _ := c.Status(ctx)
		return st.OpenPuts == 0 && st.Versions == 1 && st.UsedBytes < 5<<20
	})
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 10 s for %s", what)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	c, socket, _ := daemonAndClient(t)
	var contents [4][][]byte
	for i := range contents {
		d, want := draft(uint64(i), 3, 100_000)
		contents[i] = want
		if _, err := c.Put(ctx, fmt.Sprintf("m%d", i), d, client.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			own := c
			if g%2 == 0 {
				own = testdaemon.Client(t, socket)
			}
			for k := range 50 {
				i := (g + k) % len(contents)
				m, err := own.Attach(ctx, fmt.Sprintf("m%d", i))
				if err != nil {
					t.Error(err)
					return
				}
				same(t, m, contents[i])
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	if st, _ := c.Status(ctx); st.Leases != 0 {
		t.Errorf("%d leases left", st.Leases)
	}
}

// After kill -9 of the daemon, mapped weights stay readable, the next daemon has adopted what was stored, and the same
// client goes on with it.
func TestDaemonKilledAndStartedAgain(t *testing.T) {
	socket, dir := testdaemon.Place(t)
	p := testdaemon.StartProcess(t, socket, dir)
	c := testdaemon.Client(t, socket)
	d, want := draft(1, 3, 1<<20)
	if _, err := c.Put(ctx, "m", d, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	m, err := c.Attach(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	same(t, m, want)
	if _, err := c.Status(ctx); !errors.Is(err, zcerr.Unavailable) {
		t.Errorf("status of a dead daemon: %v", err)
	}
	testdaemon.StartProcess(t, socket, dir)
	waitFor(t, "the new daemon", func() bool { st, err := c.Status(ctx); return err == nil && st.AdoptedVersions == 1 })
	waitFor(t, "the lease to be taken anew", func() bool {
		h, err := c.Holders(ctx, "m")
		return err == nil && len(h) == 1 && h[0].Pid == int32(os.Getpid())
	})
	again, err := c.Attach(ctx, "m:v1")
	if err != nil {
		t.Fatal(err)
	}
	same(t, again, want)
	if again.Segments()[0].Inode != m.Segments()[0].Inode {
		t.Error("the new daemon serves another segment")
	}
	if err := errors.Join(m.Close(), again.Close()); err != nil {
		t.Error(err)
	}
	if h, err := c.Holders(ctx, ""); err != nil || len(h) != 0 {
		t.Errorf("after close: %v, %v", h, err)
	}
}

// A call that comes when the daemon is back finds it, however long it was away.
func TestCallsFindTheNewDaemonAtOnce(t *testing.T) {
	socket, dir := testdaemon.Place(t)
	stop := testdaemon.Start(t, socket, dir)
	c := testdaemon.Client(t, socket)
	d, want := draft(1, 1, 1000)
	if _, err := c.Put(ctx, "m", d, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	held, err := c.Attach(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for range 3 {
		stop()
		for range 5 { // fails, and makes the connection wait longer and longer
			if _, err := c.Status(ctx); !errors.Is(err, zcerr.Unavailable) {
				t.Fatalf("status of a dead daemon: %v", err)
			}
		}
		stop = testdaemon.Start(t, socket, dir)
		m, err := c.Attach(ctx, "m")
		if err != nil {
			t.Fatalf("the first call to the new daemon: %v", err)
		}
		same(t, m, want)
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
