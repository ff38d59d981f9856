package encoder

import (
	"context"
	"math"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/pack"
)

// BenchmarkSteady is MiniLM on batches of varying shape, into a buffer of the caller's, after a round of warm-up: allocations and
// minor faults of a batch.
func BenchmarkSteady(b *testing.B) {
	m := miniLM(b)
	var batches []Batch
	for i := range 25 {
		ids := make([][]int32, 1+i*7%12)
		for j := range ids {
			ids[j] = make([]int32, 2+(i*13+j*5)%40)
		}
		batches = append(batches, NewBatch(ids))
	}
	dst, n := make([]float32, 12*384), 0
	embed := func() {
		x := batches[n%len(batches)]
		n++
		if err := m.Embed(context.Background(), dst[:x.Len()*384], x); err != nil {
			b.Fatal(err)
		}
	}
	for range 2 * len(batches) {
		embed()
	}
	faults := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Minflt
	}
	before := faults()
	b.ReportAllocs()
	for b.Loop() {
		embed()
	}
	b.ReportMetric(float64(faults()-before)/float64(b.N), "faults/op")
}

// BenchmarkPauses is 32x128 of MiniLM while another goroutine allocates, and the pauses of the garbage collector meanwhile: a kernel
// cannot be preempted, so a pause waits for the longest of them.
func BenchmarkPauses(b *testing.B) {
	m := miniLM(b)
	ids := make([][]int32, 32)
	for i := range ids {
		ids[i] = make([]int32, 128)
	}
	batch, dst := NewBatch(ids), make([]float32, 32*384)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		var keep [64][]byte
		for i := 0; !stop.Load(); i++ {
			keep[i%len(keep)] = make([]byte, 64<<10)
			if i%64 == 0 {
				runtime.Gosched()
			}
		}
		runtime.KeepAlive(&keep)
	}()
	sample := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	read := func() metrics.Float64Histogram {
		metrics.Read(sample)
		h := sample[0].Value.Float64Histogram()
		return metrics.Float64Histogram{Counts: append([]uint64(nil), h.Counts...), Buckets: h.Buckets}
	}
	before := read()
	for b.Loop() {
		if err := m.Embed(context.Background(), dst, batch); err != nil {
			b.Fatal(err)
		}
	}
	after := read()
	stop.Store(true)
	<-done
	total := uint64(0)
	for i := range after.Counts {
		after.Counts[i] -= before.Counts[i]
		total += after.Counts[i]
	}
	at := func(share float64) float64 { // the upper end of the bucket, in microseconds
		left := uint64(math.Ceil(share * float64(total)))
		for i, n := range after.Counts {
			if left <= n {
				return after.Buckets[i+1] * 1e6
			}
			left -= n
		}
		return 0
	}
	b.ReportMetric(float64(total), "pauses")
	b.ReportMetric(at(.5), "p50-us")
	b.ReportMetric(at(.99), "p99-us")
	b.ReportMetric(at(1), "max-us")
}

func miniLM(b *testing.B) *Model {
	dir := filepath.Join(golden.Path(b, "minilm"), "model")
	return open(b, device(b, cpu.Tiers()[0], gpu.Options{PackPrivately: pack.F32}), dir)
}
