package cpu_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// values are n numbers of about 1, the same each time.
func values(n int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	f := make([]float32, n)
	for i := range f {
		f[i] = float32(r.NormFloat64())
	}
	return f
}

// packed is a weight of n outputs of k inputs in a form.
func packed(t testing.TB, d *cpu.Device, form pack.Form, n, k int, f []float32) *gpu.Weight {
	t.Helper()
	v, err := tensor.FromFloat32s(tensor.Shape{n, k}, f)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pack.Of(form, v.DType, tensor.Linear, v.Shape)
	if err != nil {
		t.Fatal(err)
	}
	panels, err := tensor.New(form.DType(), p.Shape(), make([]byte, p.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pack(panels.Data, v.Data); err != nil {
		t.Fatal(err)
	}
	w, err := d.ImportPacked(panels, gpu.Panels(form), n, k)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// Every tier of kernels and every number of threads gives the same bits in every form; plain Go too in 8 bits, where sums are
// exact and what follows rounds in the same places. (In F32 it rounds products, and in BF16 it adds the bias last.)
func TestFormsSameBits(t *testing.T) {
	const m, n, k = 67, 203, 389
	for _, form := range pack.Forms {
		t.Run(form.String(), func(t *testing.T) {
			x, w, bias := values(m*k, 1), values(n*k, 2), values(n, 3)
			var want []float32
			for _, tier := range cpu.Tiers() {
				if tier == "go" && form != pack.Int8 {
					continue
				}
				for threads := 1; threads <= 3; threads++ {
					d := open(t, tier, threads)
					bv, err := tensor.FromFloat32s(tensor.Shape{n}, bias)
					if err != nil {
						t.Fatal(err)
					}
					b, err := d.Import(bv, tensor.Other)
					if err != nil {
						t.Fatal(err)
					}
					g, err := gpu.NewGroup([]*gpu.Weight{packed(t, d, form, n, k, w)}, []*gpu.Weight{b})
					if err != nil {
						t.Fatal(err)
					}
					s, err := d.NewStream()
					if err != nil {
						t.Fatal(err)
					}
					xm, y, got := s.F32(m, k), s.F32(m, n), make([]float32, m*n)
					s.Upload(xm, x)
					s.Linear(y, xm, g, gpu.Epilogue{Act: gpu.ReLU, Residual: xm.Columns(7, n)})
					s.Download(got, y)
					if err := s.Sync(); err != nil {
						t.Fatal(err)
					}
					s.Close()
					if want == nil {
						want = got
					}
					for i := range got {
						if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
							t.Fatalf("%s, %d threads: element %d is %v, elsewhere %v", tier, threads, i, got[i], want[i])
						}
					}
				}
			}
		})
	}
}

// What a form loses: the smallest cosine over rows against the plain product, of weights and inputs as they come in models.
func TestFormsLoss(t *testing.T) {
	const m, n, k = 200, 768, 768
	d := cpu.Default()
	x, w := values(m*k, 5), values(n*k, 6)
	out := map[pack.Form][]float32{}
	for _, form := range pack.Forms {
		g, err := gpu.NewGroup([]*gpu.Weight{packed(t, d, form, n, k, w)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.NewStream()
		if err != nil {
			t.Fatal(err)
		}
		xm, y := s.F32(m, k), s.F32(m, n)
		out[form] = make([]float32, m*n)
		s.Upload(xm, x)
		s.Linear(y, xm, g, gpu.Epilogue{})
		s.Download(out[form], y)
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		s.Close()
		least := 1.0
		for i := range m {
			least = min(least, cosine(out[form][i*n:(i+1)*n], out[pack.F32][i*n:(i+1)*n]))
		}
		t.Logf("%v: %.6f", form, least)
		if bound := map[pack.Form]float64{pack.F32: 1 - 1e-6, pack.BF16: 0.99999, pack.Int8: 0.9999}[form]; least < bound {
			t.Errorf("%v: cosine %.6f, want %v", form, least, bound)
		}
	}
}

func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab += float64(a[i]) * float64(b[i])
		aa += float64(a[i]) * float64(a[i])
		bb += float64(b[i]) * float64(b[i])
	}
	return ab / math.Sqrt(aa*bb)
}

func BenchmarkForms(b *testing.B) {
	for _, tier := range tiers {
		for _, form := range []string{"f32", "bf16", "int8"} {
			b.Run(fmt.Sprint(tier, "/", form), func(b *testing.B) { benchLinear(b, open(b, tier, 1), form) })
		}
	}
}
