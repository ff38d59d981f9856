package e2e

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Four worker processes compute without a pause while the daemon is killed and started anew, again and again: no call fails, no
// answer is wrong, no weight moves, and each new daemon soon has the four leases.
func TestCase21WorkersComputeThroughRestarts(t *testing.T) {
	const workers = 4
	p := start(t)
	model := trainedTutorial(t)
	put(t, p, "tutorial", model)
	w := pool(t, pipes, Args{Socket: p.socket, Ref: "tutorial", Kind: "tutorial", Dir: p.dir}, workers)
	sums, maps := each(t, w, "sum"), each(t, w, "maps")
	var pids []int32
	for _, a := range sums {
		pids = append(pids, int32(a.PID))
	}
	rows, wants := goldenRows(t, "tutorial", "", []string{"input"}, []string{"output.temperature_1.0"})
	rows, want := rows[:25], map[string][][]float32{"output.temperature_1.0": wants["output.temperature_1.0"][:25]}

	var batches atomic.Int64
	stop := make(chan struct{})
	var computing sync.WaitGroup
	computing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			outs, err := w.Each(ctx, rows)
			if err != nil {
				t.Errorf("a worker failed: %v", err)
				return
			}
			for i, a := range outs {
				if d := largest(a, want); !(d <= 1e-5) {
					t.Errorf("worker %d is off by %g", i, d)
				}
				batches.Add(1)
			}
		}
	})
	defer func() { computing.Wait() }()
	some := func() { // more batches go by
		for from := batches.Load(); batches.Load() < from+2*workers && !t.Failed(); {
			time.Sleep(time.Millisecond)
		}
	}
	for round := range 3 {
		some()
		p.daemon.Kill()
		some()
		begin := time.Now()
		p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
		served := time.Since(begin)
		var got []int32
		for !slices.Equal(got, pids) {
			holders, err := p.c.Holders(ctx, "tutorial")
			if err != nil && zcerr.KindOf(err) != zcerr.Unavailable {
				t.Fatal(err)
			}
			got = got[:0]
			for _, h := range holders {
				got = append(got, h.Pid)
			}
			slices.Sort(got)
			slices.Sort(pids)
			if time.Since(begin) > 5*time.Second+served {
				t.Fatalf("5 s after the new daemon serves, %v of %v have leases", got, pids)
			}
			time.Sleep(time.Millisecond)
		}
		t.Logf("restart %d: served after %v, all leases taken anew after %v", round+1, served.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	}
	close(stop)
	computing.Wait()
	t.Logf("%d batches in %d workers, no error", batches.Load(), workers)
	for i, a := range each(t, w, "sum") {
		if a.PID != sums[i].PID || fmt.Sprint(a.Probe) != fmt.Sprint(sums[i].Probe) {
			t.Errorf("worker %d: %v now, %v before", i, a, sums[i])
		}
	}
	for i, a := range each(t, w, "maps") { // not loaded again: every weight is where it was
		if fmt.Sprint(a.Probe.Params) != fmt.Sprint(maps[i].Probe.Params) {
			t.Errorf("worker %d has its weights elsewhere than before", i)
		}
	}
}

// A daemon with 100 segments is killed; the next one has adopted all of them when it serves. The time is reported.
func TestRestartWith100Segments(t *testing.T) {
	const n = 100
	p := start(t)
	for i := range n {
		data := make([]byte, 128<<10)
		copy(data, strconv.Itoa(i))
		d := &manifest.Draft{
			Root:    &manifest.Node{Kind: manifest.Module, Impl: "test.block", Config: []byte("{}"), Params: []manifest.Param{{Name: "w", Tensor: 0}}},
			Tensors: []manifest.DraftTensor{{Names: []string{"w"}, DType: tensor.U8, Shape: tensor.Shape{len(data)}, Data: bytes.NewReader(data)}},
		}
		if _, err := p.c.Put(ctx, fmt.Sprintf("m%03d", i), d, client.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p.daemon.Kill()
	begin := time.Now()
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
	served := time.Since(begin)
	c := testdaemon.Client(t, p.socket)
	st, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("from the start of the process until it serves: %v; first answer after %v", served.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
	if st.Segments != n || st.AdoptedVersions != n || st.DamagedVersions != 0 {
		t.Errorf("%d segments, %d versions adopted, %d damaged; want %d", st.Segments, st.AdoptedVersions, st.DamagedVersions, n)
	}
	for _, i := range []int{0, n / 2, n - 1} {
		m, err := c.Attach(ctx, fmt.Sprintf("m%03d", i))
		if err != nil {
			t.Fatal(err)
		}
		v, _, err := m.Tensor(0)
		if err != nil || string(v.Data[:3]) != (strconv.Itoa(i) + "\x00\x00\x00")[:3] {
			t.Errorf("version %d: %q, %v", i, v.Data[:3], err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
