package cpu_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// eachTier runs a benchmark on every tier, on one thread and on two.
func eachTier(b *testing.B, f func(b *testing.B, d *cpu.Device)) {
	for _, tier := range tiers {
		for _, threads := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/threads=%d", tier, threads), func(b *testing.B) { f(b, open(b, tier, threads)) })
		}
	}
}

// report gives GF/s on average and, of the fastest run, the share of what the cores reach in nothing but multiply-adds. The
// probe runs before and after; drift is how far apart the two are. On a busy machine the average says little, the best
// run against the best probe still does.
func report(b *testing.B, d *cpu.Device, flop float64, run func()) {
	reportForm(b, d, pack.F32, flop, run)
}

func reportForm(b *testing.B, d *cpu.Device, form pack.Form, flop float64, run func()) {
	before := d.PeakOf(form)
	best := time.Duration(1 << 62)
	b.ResetTimer()
	for b.Loop() {
		start := time.Now()
		run()
		best = min(best, time.Since(start))
	}
	b.StopTimer()
	b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GF/s")
	b.ReportMetric(flop/best.Seconds()/1e9, "best-GF/s")
	if after := d.PeakOf(form); before > 0 {
		b.ReportMetric(100*flop/best.Seconds()/((before+after)/2*float64(d.Info().Threads)), "best-%peak")
		b.ReportMetric(100*(max(before, after)/min(before, after)-1), "%drift")
	}
}

func weightOf(b *testing.B, d *cpu.Device, n, k int, form string) *gpu.Weight {
	f := make([]float32, n*k)
	for i := range f {
		f[i] = float32(i%17) / 17
	}
	if form != "plain" {
		p, err := pack.ParseForm("p16-" + form)
		if err != nil {
			b.Fatal(err)
		}
		return packed(b, d, p, n, k, f)
	}
	v, err := tensor.FromFloat32s(tensor.Shape{n, k}, f)
	if err != nil {
		b.Fatal(err)
	}
	w, err := d.Import(v, tensor.Linear)
	if err != nil {
		b.Fatal(err)
	}
	return w
}

func streamOf(b *testing.B, d *cpu.Device) *gpu.Stream {
	s, err := d.NewStream()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	return s
}

func sync(b *testing.B, s *gpu.Stream) {
	if err := s.Sync(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkLinear(b *testing.B) {
	eachTier(b, func(b *testing.B, d *cpu.Device) {
		for _, form := range []string{"plain", "f32"} {
			benchLinear(b, d, form)
		}
	})
}

func benchLinear(b *testing.B, d *cpu.Device, form string) {
	for _, nk := range [][2]int{{384, 384}, {1536, 384}, {384, 1536}, {768, 768}, {768, 3072}, {3072, 768}} {
		for _, m := range []int{1, 8, 32, 128, 1024} {
			b.Run(fmt.Sprintf("%s/n=%d/k=%d/m=%d", form, nk[0], nk[1], m), func(b *testing.B) {
				g, err := gpu.NewGroup([]*gpu.Weight{weightOf(b, d, nk[0], nk[1], form)}, nil)
				if err != nil {
					b.Fatal(err)
				}
				s := streamOf(b, d)
				x, y := s.F32(m, nk[1]), s.F32(m, nk[0])
				s.Zero(x)
				f, _ := pack.ParseForm("p16-" + form) // none for plain
				reportForm(b, d, f, 2*float64(m*nk[0]*nk[1]), func() { s.Linear(y, x, g, gpu.Epilogue{}); sync(b, s) })
			})
		}
	}
}

func BenchmarkAttention(b *testing.B) {
	eachTier(b, func(b *testing.B, d *cpu.Device) {
		for _, c := range [][4]int{{1, 16, 12, 32}, {1, 128, 12, 32}, {8, 128, 12, 32}, {32, 32, 12, 32}, {1, 512, 12, 64}} {
			b.Run(fmt.Sprintf("%dx%d/%dx%d", c[0], c[1], c[2], c[3]), func(b *testing.B) {
				s := streamOf(b, d)
				tokens, h := c[0]*c[1], c[2]*c[3]
				starts := make([]int, c[0]+1)
				for i := range starts {
					starts[i] = i * c[1]
				}
				qkv, y := s.F32(tokens, 3*h), s.F32(tokens, h)
				s.Zero(qkv)
				r := s.Ragged(starts, nil)
				report(b, d, 4*float64(tokens*c[1]*h), func() {
					s.Attention(y, qkv.Columns(0, h), qkv.Columns(h, h), qkv.Columns(2*h, h), gpu.Attention{Heads: c[2], Seqs: r})
					sync(b, s)
				})
			})
		}
	})
}

// BenchmarkElements gives nanoseconds per element, of rows as they are in MiniLM.
func BenchmarkElements(b *testing.B) {
	eachTier(b, func(b *testing.B, d *cpu.Device) {
		s := streamOf(b, d)
		const rows, cols = 16, 1536
		x, y := s.F32(rows, cols), s.F32(rows, cols)
		host := make([]float32, rows*cols)
		for i := range host {
			host[i] = float32(i%997)/200 - 2.5
		}
		s.Upload(x, host)
		ops := map[string]func(){
			"softmax":   func() { s.Softmax(y, x) },
			"layernorm": func() { s.LayerNorm(y, x, gpu.Matrix{}, nil, nil, 1e-5) },
		}
		for a := gpu.ReLU; a <= gpu.Sigmoid; a++ {
			ops[a.String()] = func() { s.Act(y, x, a) }
		}
		for name, op := range ops {
			b.Run(name, func(b *testing.B) {
				best := time.Duration(1 << 62)
				for b.Loop() {
					start := time.Now()
					op()
					best = min(best, time.Since(start))
				}
				sync(b, s)
				b.ReportMetric(float64(best.Nanoseconds())/(rows*cols), "best-ns/elem")
			})
		}
	})
}
