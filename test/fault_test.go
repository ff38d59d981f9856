package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// truncate cuts the files of a store that match, as only the daemon's uid and root can.
func truncate(t *testing.T, dir, pattern string, keep map[string]bool, size int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	for _, f := range files {
		if keep[f] {
			continue
		}
		if err := errors.Join(os.Chmod(f, 0o600), os.Truncate(f, size)); err != nil {
			t.Fatal(err)
		}
		cut++
	}
	if cut == 0 {
		t.Fatalf("nothing in %s matches %s", dir, pattern)
	}
}

func filesOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, f := range files {
		all[f] = true
	}
	return all
}

// input is n rows for wide.
func input(t testing.TB, n int) *nn.Tensor {
	t.Helper()
	rows := make([][]float32, n)
	for i := range rows {
		rows[i] = make([]float32, 512)
		for k := range rows[i] {
			rows[i][k] = float32((i*7+k)%13) - 6
		}
	}
	x, err := nn.FromRows(rows)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func (p *Tutorial) forward(x *nn.Tensor) ([]float32, error) {
	y, err := p.Encoder.Forward(x)
	if err == nil {
		y, err = p.Decoder.Forward(y)
	}
	if err != nil {
		return nil, err
	}
	return y.Float32s()
}

// A segment that is cut under goroutines that compute ends each of their calls with a typed error; the process, another model
// and the client go on, nothing stays locked, and the model can be closed and had anew.
func TestCase29SegmentCutUnderInference(t *testing.T) {
	for _, threads := range []int{1, 4} {
		if testrace.Enabled && threads == 1 {
			continue
		}
		p := start(t)
		dev, err := cpu.New(gpu.Options{Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		good, bad := wide(1), wide(2)
		put(t, p, "good", good)
		keep := filesOf(t, p.dir)
		put(t, p, "bad", bad)
		var other, victim Tutorial
		opt := pipeline.LoadOptions{Device: dev}
		mo, err := pipeline.Load(ctx, p.c, "good", &other, opt)
		if err != nil {
			t.Fatal(err)
		}
		mv, err := pipeline.Load(ctx, p.c, "bad", &victim, opt)
		if err != nil {
			t.Fatal(err)
		}
		x := input(t, 40)
		want, err := other.forward(x)
		if err != nil {
			t.Fatal(err)
		}
		var calls atomic.Int64
		var wg sync.WaitGroup
		ready := make(chan struct{}, 4)
		for range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					if _, err := victim.forward(x); err != nil {
						if !errors.Is(err, zcerr.Fault) || zcerr.KindOf(err) != zcerr.Fault || zcerr.HintOf(err) == "" {
							t.Errorf("ended with %v", err)
						}
						return
					}
					if calls.Add(1); i == 2 {
						ready <- struct{}{}
					}
				}
			})
		}
		for range 4 {
			<-ready
		}
		truncate(t, p.dir, "s-*", keep, 4096)
		wg.Wait()
		t.Logf("threads=%d: %d calls before the cut", threads, calls.Load())

		if got, err := other.forward(x); err != nil || !equalFloats(got, want) {
			t.Errorf("the other model: %v", err)
		}
		if err := mv.Populate(); !errors.Is(err, zcerr.Fault) {
			t.Errorf("Populate of what was cut: %v", err)
		}
		if _, err := mv.Views(); err != nil {
			t.Errorf("the table is whole, and Views gave %v", err)
		}
		if err := mv.Read(func() error { _ = bytes.Count(mv.Segments()[0].Bytes, []byte{7}); return nil }); !errors.Is(err, zcerr.Fault) {
			t.Errorf("Read of what was cut: %v", err)
		}
		truncate(t, p.dir, "t-*", keep, 0)
		if _, _, err := mv.Tensor(0); !errors.Is(err, zcerr.Fault) {
			t.Errorf("Tensor with a table that was cut: %v", err)
		}
		if _, _, err := mv.Lookup("x"); !errors.Is(err, zcerr.Fault) {
			t.Errorf("Lookup with a table that was cut: %v", err)
		}
		if err := mv.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := pipeline.Load(ctx, p.c, "bad", new(Tutorial), opt); err == nil {
			t.Error("what was cut is served as if whole")
		} else {
			t.Logf("attach: %v", err)
		}
		if _, err := p.c.Remove(ctx, "bad", true); err != nil {
			t.Fatal(err)
		}
		put(t, p, "bad", bad)
		again, err := pipeline.Load(ctx, p.c, "bad", &victim, opt)
		if err != nil {
			t.Fatal(err)
		}
		wantBad, err := bad.forward(x)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := victim.forward(x); err != nil || !equalFloats(got, wantBad) {
			t.Errorf("put and attached again: %v", err)
		}
		if err := errors.Join(again.Close(), mo.Close()); err != nil {
			t.Error(err)
		}
	}
}

func equalFloats(a, b []float32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// rawReader is an actor that reads its weights without any guard of its own.
type rawReader struct {
	c *client.Client
	m *client.Model
}

var rawReads = worker.Define("e2e.rawReader", func(ctx context.Context, socket string) (worker.Actor[string, int], error) {
	c, err := client.Dial(ctx, client.Options{Socket: socket})
	if err != nil {
		return nil, err
	}
	m, err := c.Attach(ctx, "bad")
	return &rawReader{c, m}, err
})

func (r *rawReader) Call(_ context.Context, op string) (int, error) {
	if op == "stray" { // a bug of the program: memory that is not there, and no model of ours
		return strayRead(), nil
	}
	sum := 0
	for _, s := range r.m.Segments() {
		for _, b := range s.Bytes {
			sum += int(b)
		}
	}
	return sum, nil
}

func (r *rawReader) Close() error { return r.c.Close() }

// The goroutines of worker processes are guarded too; a fault that is none of ours still ends the process.
func TestCase29WorkerProcess(t *testing.T) {
	p := start(t)
	put(t, p, "bad", wide(3))
	w, err := worker.Start(ctx, rawReads, p.socket, worker.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	before := w.Workers()[0].PID
	if _, err := w.Call(ctx, "sum"); err != nil {
		t.Fatal(err)
	}
	truncate(t, p.dir, "s-*", nil, 0)
	for range 2 {
		if _, err := w.Call(ctx, "sum"); !errors.Is(err, zcerr.Fault) {
			t.Errorf("a worker that reads what was cut: %v", err)
		}
	}
	if now := w.Workers()[0].PID; now != before {
		t.Errorf("process %d became %d", before, now)
	}
	_, err = w.Call(ctx, "stray")
	var exit *worker.Exit
	if !errors.As(err, &exit) {
		t.Errorf("a stray read did not end the process: %v", err)
	}
}

// Closing a model, or its client, while many goroutines compute: calls that have begun end right, later ones with one kind of
// error, and the pages go only after that. A read of unmapped pages would end this process.
func TestCloseWhileForwardRuns(t *testing.T) {
	p := start(t)
	model := tutorial(512, 256, 128, 512, 5)
	put(t, p, "m", model)
	x := input(t, 16)
	want, err := model.forward(x)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 20
	if testrace.Enabled {
		rounds = 5
	}
	for round := range rounds {
		c, err := client.Dial(ctx, client.Options{Socket: p.socket})
		if err != nil {
			t.Fatal(err)
		}
		var got Tutorial
		m, err := pipeline.Load(ctx, c, "m", &got, pipeline.LoadOptions{Prefault: client.PrefaultBackground})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var done atomic.Int64
		begun := make(chan struct{}, 12)
		for g := range 12 {
			wg.Go(func() {
				for i := 0; ; i++ {
					var err error
					switch g {
					case 0:
						_, err = m.Views()
					case 1:
						_, _, err = m.Tensor(1)
					case 2:
						err = m.Populate()
					case 3:
						err = m.Read(func() error { _ = bytes.Count(m.Segments()[0].Bytes, []byte{1}); return nil })
					default:
						var y []float32
						if y, err = got.forward(x); err == nil && !equalFloats(y, want) {
							t.Error("a wrong result")
						}
					}
					if i == 0 {
						begun <- struct{}{}
					}
					if err != nil {
						if !errors.Is(err, zcerr.Canceled) || zcerr.KindOf(err) != zcerr.Canceled {
							t.Errorf("ended with %v", err)
						}
						return
					}
					done.Add(1)
				}
			})
		}
		for range 12 {
			<-begun
		}
		time.Sleep(time.Duration(round) * 100 * time.Microsecond) // another place in the pass each time
		var closers sync.WaitGroup
		for i := range 3 {
			closers.Go(func() {
				if i == 0 {
					_ = c.Close()
				} else if err := m.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
		}
		closers.Wait()
		wg.Wait()
		if done.Load() == 0 {
			t.Error("nothing was computed")
		}
	}
}

func TestPrefaultPolicies(t *testing.T) {
	p := start(t)
	put(t, p, "m", wide(6))
	resident := func(m *client.Model) int {
		maps, err := mapsBelow(p.dir, "/proc/self/smaps")
		if err != nil {
			t.Fatal(err)
		}
		kb := 0
		for _, mp := range maps {
			for _, s := range m.Segments() {
				if mp.Inode == s.Inode {
					kb += mp.RSS
				}
			}
		}
		return kb << 10
	}
	size := func(m *client.Model) int {
		n := 0
		for _, s := range m.Segments() {
			n += len(s.Bytes)
		}
		return n
	}
	attach := func(want bool, opts ...client.AttachOption) {
		t.Helper()
		m, err := p.c.Attach(ctx, "m", opts...)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Prefaulted(ctx); err != nil {
			t.Error(err)
		}
		if got := resident(m); got >= size(m) != want {
			t.Errorf("%d of %d bytes are mapped in", got, size(m))
		}
	}
	attach(false)
	attach(false, client.Prefault(client.PrefaultNone))
	attach(true, client.Prefault(client.PrefaultWait))
	attach(true, client.Prefault(client.PrefaultBackground))
	t.Setenv(client.EnvPrefault, "wait")
	attach(true)
	attach(false, client.Prefault(client.PrefaultNone)) // the program's word is stronger
	t.Setenv(client.EnvPrefault, "soon")
	if _, err := p.c.Attach(ctx, "m"); !errors.Is(err, zcerr.Invalid) || zcerr.HintOf(err) == "" {
		t.Errorf("an unknown policy: %v", err)
	}
	if h, err := p.c.Holders(ctx, "m"); err != nil || len(h) != 0 {
		t.Errorf("leases left: %v, %v", h, err)
	}
	// A failure is told, and the model attached with wait is not left behind.
	t.Setenv(client.EnvPrefault, "")
	m, err := p.c.Attach(ctx, "m", client.Prefault(client.PrefaultBackground))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	_ = m.Prefaulted(ctx)
	truncate(t, p.dir, "s-*", nil, 0)
	if err := m.Populate(); !errors.Is(err, zcerr.Fault) {
		t.Errorf("populate of a cut segment: %v", err)
	}
}

// loadTutorial is pipeline.Load into a Tutorial.
func loadTutorial(c *client.Client, ref string, into *Tutorial) (*client.Model, error) {
	return pipeline.Load(ctx, c, ref, into, pipeline.LoadOptions{})
}
