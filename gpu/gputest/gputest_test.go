package gputest

import (
	"math"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

func TestAsync(t *testing.T) { Run(t, Async(cpu.Default())) }

func TestNear(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct {
		got         float32
		want, bound float64
		ok          bool
	}{
		{0, 0, 0, true},
		{0, math.Copysign(0, -1), 0, true},
		{1, 1.5, 0.5, true},
		{1, 1.6, 0.5, false},
		{1.5, 1, 0.5, true},
		{float32(nan), nan, 0, true},
		{1, nan, inf, false},
		{float32(nan), 1, inf, false},
		{float32(inf), inf, 0, true},
		{float32(-inf), inf, inf, false},
		{float32(inf), 1e39, 0, true},
		{math.MaxFloat32, inf, inf, false},
		{float32(inf), 1, 1e30, false},
	} {
		if near(c.got, c.want, c.bound) != c.ok {
			t.Errorf("near(%v, %v, %v) is not %v", c.got, c.want, c.bound, c.ok)
		}
	}
}

// The fake has to catch what it is for.
func TestAsyncIsLateAndPoisoned(t *testing.T) {
	dev := Async(cpu.Default())
	s, err := dev.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	isNaN := func(x float32) bool { return x != x }

	fresh, got := s.F32(1, 3), make([]float32, 3)
	s.Download(got, fresh)
	if err := s.Sync(); err != nil || !isNaN(got[0]) {
		t.Errorf("fresh scratch holds %v, %v", got, err)
	}
	src := []float32{1, 2, 3}
	s.Upload(fresh, src)
	s.Download(got, fresh)
	if !isNaN(got[2]) {
		t.Errorf("a download was there before Sync: %v", got)
	}
	src[0] = 9
	s.Sync()
	if got[0] != 9 {
		t.Errorf("an upload read the host before Sync: %v", got)
	}
	m := s.Mark()
	x := s.F32(1, 3)
	s.Upload(x, src)
	s.Download(got, x)
	s.Release(m)
	late := make([]float32, 3)
	s.Download(late, x)
	s.Sync()
	if got[1] != 2 || !isNaN(late[1]) {
		t.Errorf("before release %v, after it %v", got, late)
	}
	host := []float32{2}
	v, err := tensor.FromFloat32s(tensor.Shape{1, 1}, host)
	if err != nil {
		t.Fatal(err)
	}
	w, err := dev.Import(v, tensor.Linear)
	if err != nil {
		t.Fatal(err)
	}
	host[0] = 7
	g, err := gpu.NewGroup([]*gpu.Weight{w}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Linear(fresh.Columns(0, 1), fresh.Columns(1, 1), g, gpu.Epilogue{})
	s.Download(got, fresh)
	s.Sync()
	if got[0] != 4 {
		t.Errorf("the weight is that of the host: %v", got)
	}
}
