package cpu_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/gpu/gputest"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/shm/tensor"
)

// open makes a device of a tier, or skips the test where the processor has not got it.
func open(t testing.TB, tier string, threads int) *cpu.Device {
	t.Helper()
	if !slices.Contains(cpu.Tiers(), tier) {
		t.Skipf("this processor runs %v, not %s", cpu.Tiers(), tier)
	}
	t.Setenv("ZCSTORE_CPU", tier)
	d, err := cpu.New(gpu.Options{Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if d.Tier() != tier {
		t.Fatalf("got tier %s, want %s", d.Tier(), tier)
	}
	return d
}

// tiers are all that there are kernels for, on any processor.
var tiers = []string{"avx512bf16", "avx512vnni", "avx512", "avx2", "go"}

func TestConformance(t *testing.T) {
	for _, tier := range tiers {
		for _, threads := range []int{1, 3} {
			if testrace.Enabled && threads == 1 { // nothing races, and it takes minutes
				continue
			}
			t.Run(fmt.Sprintf("%s, %d threads", tier, threads), func(t *testing.T) {
				gputest.Run(t, open(t, tier, threads))
			})
		}
	}
}

func TestUnknownTier(t *testing.T) {
	t.Setenv("ZCSTORE_CPU", "abacus")
	_, err := cpu.New(gpu.Options{})
	var e *cpu.TierError
	if !errors.As(err, &e) || e.Tier != "abacus" || !slices.Contains(e.Have, "go") || !strings.Contains(err.Error(), "abacus") {
		t.Errorf("got %v", err)
	}
}

func TestThreads(t *testing.T) {
	t.Setenv("ZCSTORE_THREADS", "3")
	if d, err := cpu.New(gpu.Options{}); err != nil || d.Info().Threads != 3 {
		t.Errorf("got %v, %v", d, err)
	}
	for _, bad := range []string{"0", "-1", "two"} {
		t.Setenv("ZCSTORE_THREADS", bad)
		if _, err := cpu.New(gpu.Options{}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOpenUnknown(t *testing.T) {
	if _, err := gpu.Open("abacus", gpu.Options{}); err == nil || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("got %v", err)
	}
}

// The device computes on the imported bytes themselves.
func TestZeroCopy(t *testing.T) {
	host := make([]float32, 1<<20)
	v, err := tensor.FromFloat32s(tensor.Shape{1 << 10, 1 << 10}, host)
	if err != nil {
		t.Fatal(err)
	}
	dev := cpu.Default()
	var w *gpu.Weight
	if got := testing.AllocsPerRun(10, func() { w, err = dev.Import(v, tensor.Linear) }); err != nil || got > 4 {
		t.Fatalf("%v allocations, %v", got, err)
	}
	if w.Mode != gpu.ZeroCopy {
		t.Errorf("mode %v", w.Mode)
	}
	g, err := gpu.NewGroup([]*gpu.Weight{w}, nil)
	if err != nil {
		t.Fatal(err)
	}
	host[5<<10] = 3 // row 5
	s, err := dev.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x, y, out := s.F32(1, 1<<10), s.F32(1, 1<<10), make([]float32, 1<<10)
	in := make([]float32, 1<<10)
	in[0] = 2
	s.Upload(x, in)
	s.Linear(y, x, g, gpu.Epilogue{})
	s.Download(out, y)
	if err := s.Sync(); err != nil || out[5] != 6 {
		t.Errorf("got %v, %v: the weight is not the host's memory", out[5], err)
	}
	raw := make([]byte, 17)
	if _, err := dev.Import(tensor.View{DType: tensor.F32, Shape: tensor.Shape{2, 2}, Data: raw[1:]}, tensor.Linear); !errors.Is(err, gpu.ErrUnsupported) {
		t.Errorf("misaligned: %v", err)
	}
}

func TestPeak(t *testing.T) {
	for _, tier := range tiers {
		t.Run(tier, func(t *testing.T) {
			p := open(t, tier, 1).Peak()
			t.Logf("%.1f GF/s", p/1e9)
			if (p > 0) != (tier != "go") {
				t.Errorf("%s: %v", tier, p)
			}
		})
	}
}
