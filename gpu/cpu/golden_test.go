package cpu_test

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm/tensor"
)

// What torch answers, at sizes of real models, is what every tier answers: the largest difference is a few roundings of the largest
// value. The conformance kit has a reference of ours; this one is not.
func TestAgainstTorch(t *testing.T) {
	file, err := os.ReadFile(golden.Tree(t, "compute", "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tier := range tiers {
		for _, e := range h.Entries {
			if e.Name == "bert" { // an encoder, not an op
				continue
			}
			t.Run(tier+"/"+e.Name, func(t *testing.T) {
				v, err := tensor.New(e.DType, e.Shape, file[h.DataStart+e.Begin:h.DataStart+e.End])
				if err != nil {
					t.Fatal(err)
				}
				want, err := v.Float32s()
				if err != nil {
					t.Fatal(err)
				}
				againstTorch(t, open(t, tier, 2), e.Name, want, e.Shape[0])
			})
		}
	}
}

func againstTorch(t *testing.T, d *cpu.Device, name string, want []float32, kept int) {
	t.Helper()
	s, err := d.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	noise := func(seed uint32, rows, cols int, scale float32) gpu.Matrix {
		m := s.F32(rows, cols)
		s.Upload(m, golden.Noise(seed, rows*cols, scale))
		return m
	}
	weight := func(seed uint32, role tensor.Role, scale float32, shape ...int) *gpu.Weight {
		n, _ := tensor.Shape(shape).Elements()
		v, err := tensor.FromFloat32s(shape, golden.Noise(seed, n, scale))
		if err != nil {
			t.Fatal(err)
		}
		w, err := d.Import(v, role)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	var dst gpu.Matrix
	every := 13
	if size, kv, how := 0, 0, ""; strings.HasPrefix(name, "attention.") {
		if _, err := fmt.Sscanf(strings.ReplaceAll(name, ".", " "), "attention %d %d %s", &size, &kv, &how); err != nil {
			t.Fatal(err)
		}
		const n, heads = 211, 4
		every, dst = 30, s.F32(n, heads*size)
		s.Attention(dst, noise(uint32(size), n, heads*size, 2), noise(uint32(size)+1, n, kv*size, 2), noise(uint32(size)+2, n, kv*size, 1),
			gpu.Attention{Heads: heads, KVHeads: kv, Causal: how == "causal", Seqs: s.Ragged([]int{0, n}, nil)})
	} else {
		const rows, cols = 40, 768
		x := noise(7, rows, cols, 8)
		dst = s.F32(rows, cols)
		switch name {
		case "softmax":
			s.Softmax(dst, x)
		case "layernorm":
			s.LayerNorm(dst, x, gpu.Matrix{}, weight(8, tensor.Other, 1, cols), weight(9, tensor.Other, 1, cols), 1e-5)
		case "linear":
			g, err := gpu.NewGroup([]*gpu.Weight{weight(10, tensor.Linear, 1./16, 300, cols)}, []*gpu.Weight{weight(11, tensor.Other, 1, 300)})
			if err != nil {
				t.Fatal(err)
			}
			dst = s.F32(rows, 300)
			s.Linear(dst, x, g, gpu.Epilogue{Act: gpu.GELUErf})
		default:
			for a := gpu.ReLU; a <= gpu.Sigmoid; a++ {
				if a.String() == name {
					s.Act(dst, x, a)
				}
			}
		}
	}
	got := make([]float32, dst.Rows*dst.Cols)
	s.Download(got, dst)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if len(want) != kept*dst.Cols {
		t.Fatalf("%d values for %d rows of %d", len(want), kept, dst.Cols)
	}
	worst, largest := 0.0, 0.0
	for i, w := range want {
		g := got[i/dst.Cols*every*dst.Cols+i%dst.Cols]
		worst, largest = math.Max(worst, math.Abs(float64(g-w))), math.Max(largest, math.Abs(float64(w)))
		if g != g {
			t.Fatalf("value %d is NaN", i)
		}
	}
	t.Logf("largest difference %.2g of values up to %.2g", worst, largest)
	if worst > 2e-6*largest {
		t.Errorf("largest difference %.3g, of values up to %.3g", worst, largest)
	}
}
