package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm/tensor"
)

func status(t testing.TB, p *place) *zcstorev1.StatusReply {
	t.Helper()
	st, err := p.c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// params are the weight bytes of modules, in order.
func params(mods []models.Module) [][]byte {
	var all [][]byte
	for _, m := range mods {
		spec := m.Spec()
		for _, p := range spec.Params {
			all = append(all, p.Tensor.Data)
		}
		for _, c := range spec.Children {
			all = append(all, params([]models.Module{c.Module})...)
		}
	}
	return all
}

// blocks is the bytes that the kernel has allocated for the files of a directory. statfs would count the daemons of other
// tests too: they all live in /dev/shm.
func blocks(t testing.TB, dir string) int {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, f := range files {
		var st syscall.Stat_t
		if err := syscall.Stat(filepath.Join(dir, f.Name()), &st); err != nil {
			t.Fatal(err)
		}
		total += int(st.Blocks) * 512
	}
	return total
}

// A second version adds what changed; removing the first disturbs neither the workers that hold it nor the second.
func TestCase48VersionsReplacedAndRemovedWhileMapped(t *testing.T) {
	p := start(t)
	first := wide(21)
	r1 := put(t, p, "wide", first)
	rows, want1 := someRows(t, first)
	args := Args{Socket: p.socket, Ref: r1.Ref, Kind: "tutorial", Dir: p.dir}
	old := pool(t, pipes, args, 1)

	second := wide(21)
	changed := nn.NewLinear(512, 2048, nn.Seed(99)) // one tensor of the decoder's first layer
	views := map[string]tensor.View{"weight": changed.Spec().Params[0].Tensor, "bias": second.Decoder.At(0).Spec().Params[1].Tensor}
	if err := nn.LoadStateDict(second.Decoder.At(0), "", func(n string) (tensor.View, bool) { v, ok := views[n]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	before := blocks(t, p.dir)
	r2 := put(t, p, "wide", second)
	grown, size := blocks(t, p.dir)-before, 512*2048*4
	t.Logf("%s has %d bytes; %s added %d for a changed tensor of %d (by the kernel's blocks: %d)", r1.Ref, r1.SharedBytes, r2.Ref, r2.WrittenBytes, size, grown)
	if r2.Ref == r1.Ref || grown < size || grown > size+64<<10 {
		t.Errorf("%s to %s grew by %d", r1.Ref, r2.Ref, grown)
	}

	if _, err := p.c.Remove(ctx, r1.Ref, false); err != nil {
		t.Fatal(err)
	}
	if _, err := worker.Start(ctx, pipes, args, worker.Options{Workers: 1}); zcerr.KindOf(err) != zcerr.NotFound {
		t.Errorf("attach to a removed version: %v", err)
	}
	// The worker that holds the first still computes on it, every byte as it was.
	if sum := each(t, old, "sum")[0].Probe.Sum; sum != sumOf(first.modules()) {
		t.Errorf("the removed version sums to %d", sum)
	}
	outs, err := old.Each(ctx, rows)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "the removed version in its worker", outs[0], want1, 0)
	held := status(t, p)

	// The second is whole in other processes, and in this one bit for bit.
	_, want2 := someRows(t, second)
	args.Ref = r2.Ref
	w := pool(t, pipes, args, 2)
	if outs, err = w.Each(ctx, rows); err != nil {
		t.Fatal(err)
	}
	for i := range outs {
		equal(t, fmt.Sprintf("the second version in worker %d", i), outs[i], want2, 0)
	}
	for _, a := range each(t, w, "sum") {
		if a.Probe.Sum != sumOf(second.modules()) {
			t.Errorf("the second version sums to %d", a.Probe.Sum)
		}
	}
	var got Tutorial
	m, err := pipeline.Load(ctx, p.c, r2.Ref, &got, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(params(got.modules()), params(second.modules()), bytes.Equal) {
		t.Error("the second version is not bit-equal to what was put")
	}
	m.Close()

	// When the last holder goes, so does what only the first had. (The segment stays: the second uses most of it.)
	each(t, old, "close")
	after := status(t, p)
	if after.Versions != 1 || after.HeldAfterDeleteBytes > held.HeldAfterDeleteBytes || after.Leases != 2 {
		t.Errorf("after the last holder: %d versions, %d bytes held (before: %d), %d leases", after.Versions, after.HeldAfterDeleteBytes, held.HeldAfterDeleteBytes, after.Leases)
	}
	if _, err := p.c.Remove(ctx, "wide", true); err != nil {
		t.Fatal(err)
	}
	each(t, w, "close")
	if st := status(t, p); st.UsedBytes != 0 || st.Leases != 0 || st.HeldAfterDeleteBytes != 0 {
		t.Errorf("all removed and closed: %d bytes used, %d leases", st.UsedBytes, st.Leases)
	}
}

// leaseLimit is how soon the death of a worker must be seen.
const leaseLimit = 100 * time.Millisecond

func TestKilledWorkerFreesItsLease(t *testing.T) {
	p := start(t)
	put(t, p, "tutorial", trainedTutorial(t))
	w := pool(t, pipes, Args{Socket: p.socket, Ref: "tutorial", Kind: "tutorial", Dir: p.dir}, 3)
	var figures []time.Duration
	for try := range 3 { // the machine is shared
		each(t, w, "hello") // also starts the victim of the last round again
		holders, err := p.c.Holders(ctx, "tutorial")
		if err != nil || len(holders) != 3 {
			t.Fatalf("%d holders of 3 workers, %v", len(holders), err)
		}
		victim := int32(w.Workers()[try%3].PID)
		if !slices.ContainsFunc(holders, func(h *zcstorev1.Holder) bool { return h.Pid == victim }) {
			t.Fatalf("worker %d is not among the holders %v", victim, holders)
		}
		begin := time.Now()
		if err := syscall.Kill(int(victim), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for {
			holders, err := p.c.Holders(ctx, "tutorial")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(holders, func(h *zcstorev1.Holder) bool { return h.Pid == victim }) {
				if len(holders) != 2 {
					t.Errorf("%d holders are left of 2", len(holders))
				}
				break
			}
			if time.Since(begin) > 20*time.Second {
				t.Fatal("the lease of a killed worker stays")
			}
		}
		figures = append(figures, time.Since(begin))
	}
	each(t, w, "hello") // all are alive when the pool is closed
	t.Logf("from kill -9 until the lease was gone: %v", figures)
	if slices.Min(figures) > leaseLimit {
		t.Errorf("no lease was free within %v: %v", leaseLimit, figures)
	}
}

func TestKilledDaemon(t *testing.T) {
	p := start(t)
	put(t, p, "tutorial", trainedTutorial(t))
	put(t, p, "complex", trainedComplex(t))
	put(t, p, "stateful", trainedStateful(t))
	w := pool(t, pipes, Args{Socket: p.socket, Ref: "tutorial", Kind: "tutorial", Dir: p.dir}, 3)
	before := each(t, w, "sum")
	rows, wants := goldenRows(t, "tutorial", "", []string{"input"}, []string{"output.temperature_1.0"})

	p.daemon.Kill()
	if _, err := p.c.Status(ctx); zcerr.KindOf(err) != zcerr.Unavailable {
		t.Errorf("status without a daemon: %v", err)
	}
	worst, batches := 0.0, 0
	for n := range 100 { // 100 batches in each worker
		from := n * 25 % len(rows)
		want := map[string][][]float32{"output.temperature_1.0": wants["output.temperature_1.0"][from : from+25]}
		outs, err := w.Each(ctx, rows[from:from+25])
		if err != nil {
			t.Fatalf("batch %d without a daemon: %v", n, err)
		}
		for _, a := range outs {
			worst = max(worst, largest(a, want))
			batches++
		}
	}
	t.Logf("%d batches in 3 workers without a daemon, largest difference %.2g", batches, worst)
	if !(worst <= 1e-5) || batches != 300 {
		t.Errorf("%d batches without a daemon, largest difference %g", batches, worst)
	}

	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
	begin := time.Now()
	answered := time.Duration(0)
	var holders []*zcstorev1.Holder
	for len(holders) != 3 { // the workers take their leases anew by themselves
		var err error
		if holders, err = p.c.Holders(ctx, "tutorial"); err == nil && answered == 0 {
			answered = time.Since(begin)
		} else if err != nil && zcerr.KindOf(err) != zcerr.Unavailable { // the client dials again after a while only
			t.Fatal(err)
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the new daemon has %d leases of 3 workers, %v", len(holders), err)
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("a client that saw the daemon go had its answer %v after the new one served; the workers had their leases after %v", answered, time.Since(begin))
	if st := status(t, p); st.AdoptedVersions != 3 || st.Versions != 3 || st.Leases != 3 {
		t.Errorf("the new daemon adopted %d versions, has %d and %d leases; want 3 each", st.AdoptedVersions, st.Versions, st.Leases)
	}
	each(t, w, "reload") // and attach as if they were new
	holders, err := p.c.Holders(ctx, "tutorial")
	if err != nil || len(holders) != 3 {
		t.Errorf("%d holders after attaching again, %v", len(holders), err)
	}
	after := each(t, w, "sum")
	for i := range after {
		if after[i].PID != before[i].PID || fmt.Sprint(after[i].Probe) != fmt.Sprint(before[i].Probe) {
			t.Errorf("worker %d has %v now, %v before", i, after[i], before[i])
		}
	}
	everywhere(t, w, rows, wants)
	put(t, p, "wide", wide(3)) // and it stores
}

func modulesOf(p *Big) []models.Module {
	var all []models.Module
	for _, l := range p.Layers {
		all = append(all, l)
	}
	return all
}

// A model that is closed while its lease is lost costs the next attach nothing.
func TestCloseAndAttachAfterRestart(t *testing.T) {
	p := start(t)
	put(t, p, "tutorial", trainedTutorial(t))
	for range 3 { // the client's own renewal runs against it
		m, err := p.c.Attach(ctx, "tutorial")
		if err != nil {
			t.Fatal(err)
		}
		p.daemon.Kill()
		time.Sleep(200 * time.Millisecond) // the renewal waits longer between its attempts
		p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
		begin := time.Now()
		for _, err = p.c.Status(ctx); zcerr.KindOf(err) == zcerr.Unavailable && time.Since(begin) < 10*time.Second; {
			_, err = p.c.Status(ctx)
		}
		_ = m.Close() // nothing to release: that daemon has gone
		for m, err = p.c.Attach(ctx, "tutorial"); zcerr.KindOf(err) == zcerr.Unavailable && time.Since(begin) < 10*time.Second; {
			m, err = p.c.Attach(ctx, "tutorial")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
