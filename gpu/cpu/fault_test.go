package cpu_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// cutFile is n bytes of memory whose file has been cut to nothing: each read of it is a SIGBUS.
func cutFile(t *testing.T, n int, gate *region.Gate) []byte {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(n)); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	r := region.Register(b, gate)
	t.Cleanup(func() { r.Remove(); _ = unix.Munmap(b) })
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	return b
}

// Every op that reads weights, in every form they can have, on one thread and on many: a file that was cut is an error of Sync,
// no goroutine ends the process, and the stream computes on with other weights.
func TestCase29EveryOpOnACutSegment(t *testing.T) {
	const n = 256
	good := make([]float32, n*n)
	for _, run := range []struct {
		tier    string
		threads int
	}{{"avx512", 1}, {"avx512", 2}, {"avx512", 8}, {"avx2", 1}, {"avx2", 3}, {"go", 1}, {"go", 2}, {"go", 8}} {
		if !slices.Contains(cpu.Tiers(), run.tier) {
			continue
		}
		d := open(t, run.tier, run.threads)
		gate := region.NewGate()
		lost := cutFile(t, 4*n*n, gate)
		weight := func(dt tensor.DType, role tensor.Role, shape ...int) *gpu.Weight {
			size, err := tensor.SizeBytes(dt, shape)
			if err != nil {
				t.Fatal(err)
			}
			w, err := d.Import(tensor.View{DType: dt, Shape: shape, Data: lost[:size]}, role)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		v, err := tensor.FromFloat32s(tensor.Shape{n, n}, good)
		if err != nil {
			t.Fatal(err)
		}
		fine, err := d.Import(v, tensor.Linear)
		if err != nil {
			t.Fatal(err)
		}
		linear := func(w, bias *gpu.Weight) func(*gpu.Stream) {
			return func(s *gpu.Stream) {
				g, err := gpu.NewGroup([]*gpu.Weight{w}, []*gpu.Weight{bias})
				if err != nil {
					t.Fatal(err)
				}
				x := s.F32(100, n)
				s.Zero(x)
				s.Linear(s.F32(100, n), x, g, gpu.Epilogue{})
			}
		}
		norm := func(gamma, beta *gpu.Weight) func(*gpu.Stream) {
			return func(s *gpu.Stream) {
				x := s.F32(100, n)
				s.Zero(x)
				s.LayerNorm(x, x, gpu.Matrix{}, gamma, beta, 1e-5)
			}
		}
		gather := func(w *gpu.Weight) func(*gpu.Stream) {
			return func(s *gpu.Stream) {
				ids := s.I32(100)
				s.UploadInts(ids, make([]int32, 100))
				s.Gather(s.F32(100, n), []gpu.Lookup{{Table: w, IDs: ids}})
			}
		}
		values, err := tensor.View{DType: tensor.F32, Shape: tensor.Shape{n, n}, Data: lost}.Float32s()
		if err != nil {
			t.Fatal(err)
		}
		ops := map[string]func(*gpu.Stream){
			"upload":  func(s *gpu.Stream) { s.Upload(s.F32(n, n), values) },
			"bias":    linear(fine, weight(tensor.F32, tensor.Other, n)),
			"bias-16": linear(fine, weight(tensor.BF16, tensor.Other, n)),
			"beta":    norm(nil, weight(tensor.F32, tensor.Other, n)),
		}
		panels, err := d.ImportPacked(tensor.View{DType: tensor.F32, Shape: tensor.Shape{n / 16, n, 16}, Data: lost}, gpu.Panels(pack.F32), n, n)
		if err != nil {
			t.Fatal(err)
		}
		ops["linear-packed"] = linear(panels, nil)
		for _, dt := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
			ops["linear-"+dt.String()] = linear(weight(dt, tensor.Linear, n, n), nil)
			ops["turned-"+dt.String()] = linear(weight(dt, tensor.LinearT, n, n), nil)
			ops["gamma-"+dt.String()] = norm(weight(dt, tensor.Other, n), nil)
			ops["gather-"+dt.String()] = gather(weight(dt, tensor.Lookup, n, n))
		}
		s, err := d.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		for name, op := range ops {
			t.Run(fmt.Sprintf("%s/%s/threads=%d", run.tier, name, run.threads), func(t *testing.T) {
				op(s)
				if err := s.Sync(); !errors.Is(err, zcerr.Fault) {
					t.Errorf("Sync gave %v, want a fault", err)
				}
				linear(fine, nil)(s)
				if err := s.Sync(); err != nil {
					t.Errorf("the stream afterwards: %v", err)
				}
				s.Release(gpu.Mark{})
			})
		}
		s.Close()
		gate.Close() // would wait for ever if an op had kept it
		s, err = d.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		ops["linear-F32"](s)
		if err := s.Sync(); !errors.Is(err, region.ErrClosed) {
			t.Errorf("an op on a closed mapping: %v", err)
		}
		s.Close()
	}
}

// What guarding costs: the same product with weights in a known mapping, behind a gate, and on the heap.
func BenchmarkGuard(b *testing.B) {
	const n = 64 // a small op, of which the guard is a large part
	vals := make([]float32, n*n)
	v, err := tensor.FromFloat32s(tensor.Shape{n, n}, vals)
	if err != nil {
		b.Fatal(err)
	}
	d, err := cpu.New(gpu.Options{Threads: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for _, gated := range []bool{false, true} {
		b.Run(fmt.Sprintf("gated=%v", gated), func(b *testing.B) {
			if gated {
				r := region.Register(v.Data, region.NewGate())
				defer r.Remove()
			}
			w, err := d.Import(v, tensor.Linear)
			if err != nil {
				b.Fatal(err)
			}
			g, err := gpu.NewGroup([]*gpu.Weight{w}, nil)
			if err != nil {
				b.Fatal(err)
			}
			s, err := d.NewStream()
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			x, y := s.F32(1, n), s.F32(1, n)
			s.Zero(x)
			for b.Loop() {
				s.Linear(y, x, g, gpu.Epilogue{})
				if err := s.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
