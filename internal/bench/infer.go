package bench

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/pack"
)

// Infer is what to measure of an encoder: forward passes that give the last hidden states of every token.
type Infer struct {
	Model  *encoder.Model
	Form   pack.Form // of the weights, for the probe; 0 is plain
	Shapes []Shape
	Window time.Duration // for each row
	Tries  int           // how often a row is measured again when the machine did not hold still
	Ops    *Ops          // what the device watches with; nil: no times of single ops

	reads float64 // bytes a second, from memory
}

// Shape is texts of one length.
type Shape struct{ Texts, Tokens int }

func (s Shape) String() string { return fmt.Sprintf("%dx%d", s.Texts, s.Tokens) }

// Forward is a row of the table: what passes of one shape took.
type Forward struct {
	Shape   string   `json:"shape"`
	Runs    int      `json:"runs"`
	Median  float64  `json:"median_secs"`
	Best    float64  `json:"best_secs"`
	Texts   float64  `json:"texts_per_sec"`
	Tokens  float64  `json:"tokens_per_sec"`
	Flops   float64  `json:"flops"`      // a second, of the matrix work alone, in the median
	Peak    float64  `json:"peak"`       // of all threads: multiply-adds on registers. 0: the tier has no probe
	Share   float64  `json:"share"`      // of the peak
	Drift   float64  `json:"drift"`      // by how much the probes before and after differ
	Read    float64  `json:"read"`       // bytes of the weights of products a second, as if read for each part of a batch
	OfRead  float64  `json:"read_share"` // of what the threads read from memory when they do nothing else
	Tries   int      `json:"tries"`
	Unquiet bool     `json:"unquiet"` // they differ by more than MaxDrift, after all tries
	Ops     []OpTime `json:"ops,omitempty"`
}

// OpTime is what the ops of one kind take in a pass, on average.
type OpTime struct {
	Op    string  `json:"op"`
	Calls float64 `json:"calls"`
	Secs  float64 `json:"secs"`
	Share float64 `json:"share"` // of the pass
}

// Ops adds up the time of ops, while one stream is in use. Watch is for [gpu.Options].
type Ops struct{ sums map[gpu.Op]opSum }

type opSum struct {
	calls int
	took  time.Duration
}

// Watch adds a run of an op.
func (o *Ops) Watch(op gpu.Op, took time.Duration) {
	if o.sums == nil {
		o.sums = map[gpu.Op]opSum{}
	}
	s := o.sums[op]
	o.sums[op] = opSum{s.calls + 1, s.took + took}
}

// perPass gives what was added up, the longest first, and starts anew.
func (o *Ops) perPass(passes int, total time.Duration) []OpTime {
	var out []OpTime
	rest := total
	for _, op := range slices.SortedFunc(maps.Keys(o.sums), func(a, b gpu.Op) int { return cmp.Compare(o.sums[b].took, o.sums[a].took) }) {
		s := o.sums[op]
		name := op.Name
		if op.N > 0 {
			name = fmt.Sprintf("%s %d to %d", op.Name, op.K, op.N)
		}
		rest -= s.took
		out = append(out, OpTime{name, float64(s.calls) / float64(passes), s.took.Seconds() / float64(passes), s.took.Seconds() / total.Seconds()})
	}
	o.sums = nil
	return append(out, OpTime{"between ops", 1, rest.Seconds() / float64(passes), rest.Seconds() / total.Seconds()})
}

// Run measures row by row and calls emit with each.
func (f Infer) Run(ctx context.Context, emit func(Forward) error) error {
	if d, ok := f.Model.Device().(*cpu.Device); ok {
		cold := make([]float32, coldBytes/4)
		for range 4 { // the first has the page faults
			f.reads = max(f.reads, d.ReadBandwidth(cold))
		}
	}
	for _, s := range f.Shapes {
		row, err := f.forward(ctx, s)
		if err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
		if err := emit(row); err != nil {
			return err
		}
	}
	return nil
}

// work is the multiplications and additions of a pass, of matrices alone.
func (f Infer) work(s Shape) float64 {
	c := f.Model.Sizes()
	h, inner := float64(c.Hidden), float64(c.Intermediate)
	perToken := 8*h*h + 4*h*inner + 4*float64(s.Tokens)*h
	return float64(s.Texts*s.Tokens) * float64(c.Layers) * perToken
}

// weights is the size in bytes of what a pass multiplies with, in the model's form.
func (f Infer) weights() float64 {
	c := f.Model.Sizes()
	h, inner, size := float64(c.Hidden), float64(c.Intermediate), 4.0
	switch f.Form {
	case pack.BF16:
		size = 2
	case pack.Int8:
		size = 1
	}
	return float64(c.Layers) * (4*h*h + 2*h*inner) * size
}

// batch is texts whose tokens are spread over the vocabulary.
func (f Infer) batch(s Shape) encoder.Batch {
	var b encoder.Batch
	for i := range s.Texts * s.Tokens {
		b.IDs = append(b.IDs, int32(i*7919%f.Model.Sizes().Vocab))
	}
	for i := range s.Texts + 1 {
		b.Starts = append(b.Starts, i*s.Tokens)
	}
	return b
}

// forward measures one row.
func (f Infer) forward(ctx context.Context, s Shape) (Forward, error) {
	b := f.batch(s)
	dst := make([]float32, len(b.IDs)*f.Model.Sizes().Hidden)
	pass := func() error { return f.Model.EncodeInto(ctx, dst, b) }
	for range 2 { // pages and caches are warm
		if err := pass(); err != nil {
			return Forward{}, err
		}
	}
	probe := func() float64 { return 0 }
	if d, ok := f.Model.Device().(*cpu.Device); ok {
		probe = func() float64 { return d.PeakOf(f.Form) * float64(d.Info().Threads) }
	}
	row := Forward{Shape: s.String()}
	for row.Tries = 1; ; row.Tries++ {
		if f.Ops != nil {
			f.Ops.sums = nil
		}
		before := probe()
		runs, err := times(f.Window, pass)
		if err != nil {
			return row, err
		}
		after := probe()
		total := 0.0
		for _, r := range runs {
			total += r
		}
		if f.Ops != nil {
			row.Ops = f.Ops.perPass(len(runs), time.Duration(total*1e9))
		}
		row.Runs, row.Best, row.Median = len(runs), runs[0], runs[len(runs)/2]
		row.Texts, row.Tokens = float64(s.Texts)/row.Median, float64(s.Texts*s.Tokens)/row.Median
		row.Flops = f.work(s) / row.Median
		together := f.Model.Together()
		row.Read = f.weights() * float64((s.Texts*s.Tokens+together-1)/together) / row.Median
		row.Peak = (before + after) / 2
		if row.Peak == 0 {
			return row, nil
		}
		row.Share, row.OfRead = row.Flops/row.Peak, row.Read/f.reads
		row.Drift = max(before, after)/min(before, after) - 1
		row.Unquiet = row.Drift > MaxDrift
		if !row.Unquiet || row.Tries >= f.Tries {
			return row, nil
		}
	}
}
