package bench

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Compute is what to measure of products: all of each, in every combination.
type Compute struct {
	Tiers   []string // of [cpu.Tiers]
	Forms   []string // of [derive.Weights]
	Threads []int
	Sizes   [][2]int // N and K of the weight
	Rows    []int    // M; 1 is measured on weights that are in no cache, from 64 KiB on
	Window  time.Duration
	Tries   int // how often a row is measured again when the machine did not hold still
}

// Product is a row of the table.
type Product struct {
	Tier    string  `json:"tier"`
	Form    string  `json:"form"`
	Threads int     `json:"threads"`
	M       int     `json:"m"`
	N       int     `json:"n"`
	K       int     `json:"k"`
	Flops   float64 `json:"flops"`       // a second, of the fastest run
	Read    float64 `json:"read"`        // bytes of the weight a second; 0 where the weight is in a cache
	Peak    float64 `json:"peak"`        // of all threads: multiply-adds on registers, or bytes read when Read is given
	Share   float64 `json:"share"`       // of the peak
	Drift   float64 `json:"drift"`       // by how much the two probes differ
	Tries   int     `json:"tries"`       // how often the row was measured
	Unquiet bool    `json:"unquiet"`     // the probes differ by more than MaxDrift, after all tries
	Median  float64 `json:"median_secs"` // of a run
	Best    float64 `json:"best_secs"`
}

// coldBytes is the size of the weights that are read from memory: several times what caches hold.
const coldBytes = 256 << 20

// Run measures row by row and calls emit with each.
func (c Compute) Run(ctx context.Context, emit func(Product) error) error {
	for _, tier := range c.Tiers {
		for _, threads := range c.Threads {
			if err := c.device(ctx, tier, threads, emit); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c Compute) device(ctx context.Context, tier string, threads int, emit func(Product) error) error {
	d, err := cpu.NewTier(tier, gpu.Options{Threads: threads})
	if err != nil {
		return err
	}
	defer d.Close()
	for _, form := range c.Forms {
		for _, size := range c.Sizes {
			for _, m := range c.Rows {
				if err := ctx.Err(); err != nil {
					return err
				}
				p, err := c.product(d, Product{Tier: tier, Form: form, Threads: threads, M: m, N: size[0], K: size[1]})
				if err != nil {
					return fmt.Errorf("%s, %s, %d x %d x %d: %w", tier, form, m, size[0], size[1], err)
				}
				if err := emit(p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// product measures one row.
func (c Compute) product(d *cpu.Device, p Product) (Product, error) {
	w, err := weightOf(p.Form, p.N, p.K)
	if err != nil {
		return p, err
	}
	weights, fromMemory := 1, p.M == 1 && len(w.v.Data) >= 64<<10
	var cold []float32
	if fromMemory {
		weights = coldBytes/len(w.v.Data) + 1
		cold = ramp(coldBytes / 4) // written: pages that never were are one and the same
	}
	groups := make([]*gpu.Group, weights)
	for i := range groups {
		if groups[i], err = w.group(d); err != nil {
			return p, err
		}
		w.v.Data = bytes.Clone(w.v.Data)
	}
	s, err := d.NewStream()
	if err != nil {
		return p, err
	}
	defer s.Close()
	x, y := s.F32(p.M, p.K), s.F32(p.M, p.N)
	s.Upload(x, ramp(p.M*p.K))
	run := func() error {
		for _, g := range groups {
			s.Linear(y, x, g, gpu.Epilogue{})
		}
		return s.Sync()
	}
	for p.Tries = 1; ; p.Tries++ {
		var m measured
		if fromMemory {
			m, err = c.interleaved(func() float64 { return d.ReadBandwidth(cold) }, run)
		} else {
			m, err = c.between(func() float64 { return d.PeakOf(w.form) * float64(p.Threads) }, run)
		}
		if err != nil {
			return p, err
		}
		p.Best, p.Median = m.runs[0]/float64(weights), m.runs[len(m.runs)/2]/float64(weights)
		p.Flops = 2 * float64(p.M) * float64(p.N) * float64(p.K) / p.Best
		if m.before == 0 || m.after == 0 { // plain Go has no probe
			return p, nil
		}
		p.Peak = (m.before + m.after) / 2
		p.Share = p.Flops / p.Peak
		if fromMemory {
			p.Read, p.Peak = float64(len(w.v.Data))/p.Best, max(m.before, m.after)
			p.Share = p.Read / p.Peak
		}
		p.Drift = max(m.before, m.after)/min(m.before, m.after) - 1
		p.Unquiet = p.Drift > MaxDrift
		if !p.Unquiet || p.Tries >= c.Tries {
			return p, nil
		}
	}
}

// measured is the seconds of runs, in order, and two probes.
type measured struct {
	runs          []float64
	before, after float64
}

// between runs f for the window, with a probe before and one after.
func (c Compute) between(probe func() float64, f func() error) (m measured, err error) {
	m.before = probe()
	m.runs, err = times(c.Window, f)
	m.after = probe()
	return m, err
}

// interleaved runs f and the probe in turns, since who else uses the memory changes from one to the next. The probes are the
// best of every other turn.
func (c Compute) interleaved(probe func() float64, f func() error) (m measured, err error) {
	for start := time.Now(); len(m.runs) < 10 || time.Since(start) < 4*c.Window; {
		m.before, m.after = m.after, max(m.before, probe())
		began := time.Now()
		if err := f(); err != nil {
			return m, err
		}
		m.runs = append(m.runs, time.Since(began).Seconds())
	}
	slices.Sort(m.runs)
	return m, nil
}

// weight is one in a form.
type weight struct {
	v    tensor.View
	form pack.Form // 0: plain
	n, k int
}

func weightOf(name string, n, k int) (weight, error) {
	w := weight{n: n, k: k}
	f, err := derive.Parse(name)
	if err != nil {
		return w, err
	}
	if w.v, err = tensor.FromFloat32s(tensor.Shape{n, k}, ramp(n*k)); err != nil || !f.Derived() {
		return w, err
	}
	layout, _ := f.Layout()
	if w.form, err = pack.ParseForm(layout); err != nil {
		return w, err
	}
	p, err := pack.Of(w.form, w.v.DType, tensor.Linear, w.v.Shape)
	if err != nil {
		return w, err
	}
	panels := make([]byte, p.Bytes())
	if err := p.Pack(panels, w.v.Data); err != nil {
		return w, err
	}
	w.v = tensor.View{DType: w.form.DType(), Shape: p.Shape(), Data: panels}
	return w, nil
}

// group is the weight alone, on the bytes that it has.
func (w weight) group(d *cpu.Device) (*gpu.Group, error) {
	var g *gpu.Weight
	var err error
	if w.form == 0 {
		g, err = d.Import(w.v, tensor.Linear)
	} else {
		g, err = d.ImportPacked(w.v, gpu.Panels(w.form), w.n, w.k)
	}
	if err != nil {
		return nil, err
	}
	return gpu.NewGroup([]*gpu.Weight{g}, nil)
}

// ramp is n values that are not all the same.
func ramp(n int) []float32 {
	f := make([]float32, n)
	for i := range f {
		f[i] = float32(i%17)/17 - 0.4
	}
	return f
}
