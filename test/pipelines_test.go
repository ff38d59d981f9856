package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
	"github.com/zcstore/zcstore/test/golden"
)

// A runnable is a pipeline of the goldens. It takes and gives tensors by the names that golden.safetensors has for them;
// calls counts from 1.
type runnable interface {
	run(x map[string]*nn.Tensor) (y map[string]*nn.Tensor, calls int, err error)
	modules() []models.Module
}

// steps is for forward passes: after an error the rest does nothing.
type steps struct {
	y   map[string]*nn.Tensor
	err error
}

func (s *steps) do(name string, f func() (*nn.Tensor, error)) *nn.Tensor {
	if s.err != nil {
		return nil
	}
	t, err := f()
	if err != nil {
		s.err = fmt.Errorf("%s: %w", name, err)
		return nil
	}
	s.y[name] = t
	return t
}

// Tutorial is golden/tutorial. With wider layers it is also the pipeline that is large enough to be measured.
type Tutorial struct {
	Encoder, Decoder *nn.Sequential
	Temperature      float32
}

func tutorial(in, hidden, latent, out int, seed uint64) *Tutorial {
	return &Tutorial{
		Encoder:     nn.NewSequential(nn.NewLinear(in, hidden, nn.Seed(seed)), nn.NewReLU(), nn.NewLinear(hidden, latent, nn.Seed(seed+1)), nn.NewReLU()),
		Decoder:     nn.NewSequential(nn.NewLinear(latent, hidden, nn.Seed(seed+2)), nn.NewReLU(), nn.NewLinear(hidden, out, nn.Seed(seed+3))),
		Temperature: 1,
	}
}

func (p *Tutorial) modules() []models.Module { return []models.Module{p.Encoder, p.Decoder} }

func (p *Tutorial) run(x map[string]*nn.Tensor) (map[string]*nn.Tensor, int, error) {
	s := steps{y: map[string]*nn.Tensor{}}
	latent := s.do("latent", func() (*nn.Tensor, error) { return p.Encoder.Forward(x["input"]) })
	y := s.do("decoded", func() (*nn.Tensor, error) { return p.Decoder.Forward(latent) })
	s.do(fmt.Sprintf("output.temperature_%.1f", p.Temperature), func() (*nn.Tensor, error) { return y.Div(p.Temperature) })
	return s.y, 0, s.err
}

// Complex is golden/complex.
type Complex struct {
	Preprocessor, Encoders map[string]*nn.Sequential
	Decoders               []*nn.Sequential
	Labels                 []string
	Options                struct {
		Normalize bool
		Top       int
		Scale     float64
		Note      *string
	}
}

func blankComplex() *Complex {
	p := &Complex{
		Preprocessor: map[string]*nn.Sequential{
			"text":  nn.NewSequential(nn.NewLinear(32, 40), nn.NewLayerNorm(40)),
			"image": nn.NewSequential(nn.NewLinear(48, 56), nn.NewLayerNormEps(56, 1e-6)),
		},
		Encoders: map[string]*nn.Sequential{
			"text":  nn.NewSequential(nn.NewLinear(40, 96), nn.NewGELU(), nn.NewLinear(96, 64)),
			"image": nn.NewSequential(nn.NewLinear(56, 80), nn.NewTanh(), nn.NewLinear(80, 64)),
		},
		Decoders: []*nn.Sequential{
			nn.NewSequential(nn.NewLinear(64, 32), nn.NewReLU(), nn.NewLinear(32, 10)),
			nn.NewSequential(nn.NewLinear(64, 49), nn.NewSiLU(), nn.NewLinear(49, 5)),
			nn.NewSequential(nn.NewLinear(64, 100), &nn.GELU{Approximate: "tanh"}, nn.NewLinear(100, 17)),
		},
		Labels: []string{"topic", "tone", "tag"},
	}
	p.Options.Normalize, p.Options.Top, p.Options.Scale = true, 3, 0.25
	return p
}

func (p *Complex) modules() []models.Module {
	var all []models.Module
	for _, name := range []string{"text", "image"} {
		all = append(all, p.Preprocessor[name], p.Encoders[name])
	}
	for _, d := range p.Decoders {
		all = append(all, d)
	}
	return all
}

func (p *Complex) run(x map[string]*nn.Tensor) (map[string]*nn.Tensor, int, error) {
	s := steps{y: map[string]*nn.Tensor{}}
	for _, name := range []string{"text", "image"} {
		pre := s.do("preprocessed."+name, func() (*nn.Tensor, error) { return p.Preprocessor[name].Forward(x["input."+name]) })
		s.do("encoded."+name, func() (*nn.Tensor, error) { return p.Encoders[name].Forward(pre) })
	}
	sum := s.do("sum", func() (*nn.Tensor, error) { return s.y["encoded.text"].Add(s.y["encoded.image"]) })
	for i, d := range p.Decoders {
		s.do(fmt.Sprintf("output.%d", i), func() (*nn.Tensor, error) { return d.Forward(sum) })
	}
	return s.y, 0, s.err
}

// Stateful is golden/stateful.
type Stateful struct {
	Model        *nn.Sequential
	Preprocessor struct {
		Mean, Std []float32
		Clip      float32
	}
	Config struct{ Threshold float32 }
	Stats  struct{ Calls int }
}

func blankStateful() *Stateful {
	return &Stateful{Model: nn.NewSequential(nn.NewLinear(24, 40), nn.NewLayerNorm(40), nn.NewReLU(), nn.NewLinear(40, 6))}
}

func (p *Stateful) modules() []models.Module { return []models.Module{p.Model} }

func (p *Stateful) run(x map[string]*nn.Tensor) (map[string]*nn.Tensor, int, error) {
	p.Stats.Calls++
	s := steps{y: map[string]*nn.Tensor{}}
	mean, err1 := nn.FromRows([][]float32{p.Preprocessor.Mean})
	std, err2 := nn.FromRows([][]float32{p.Preprocessor.Std})
	s.err = errors.Join(err1, err2)
	centred := s.do("centred", func() (*nn.Tensor, error) { return x["input"].Sub(mean) })
	scaled := s.do("scaled", func() (*nn.Tensor, error) { return centred.Quo(std) })
	pre := s.do("preprocessed", func() (*nn.Tensor, error) { return scaled.Clamp(-p.Preprocessor.Clip, p.Preprocessor.Clip) })
	out := s.do("output", func() (*nn.Tensor, error) { return p.Model.Forward(pre) })
	probs := s.do("probabilities", func() (*nn.Tensor, error) { return out.Sigmoid() })
	s.do("above", func() (*nn.Tensor, error) { // 0 and 1
		v, err := probs.Float32s()
		if err != nil {
			return nil, err
		}
		for i := range v {
			if v[i] > p.Config.Threshold {
				v[i] = 1
			} else {
				v[i] = 0
			}
		}
		return nn.New(probs.Shape(), v)
	})
	return s.y, p.Stats.Calls, s.err
}

// fill gives modules the weights of a golden; prefixes go with the modules.
func fill(t testing.TB, folder string, mods map[string]models.Module) {
	t.Helper()
	weights, err := golden.Read(folder + "/pipeline.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	for prefix, m := range mods {
		if err := nn.LoadStateDict(m, prefix, func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }); err != nil {
			t.Fatal(err)
		}
	}
}

func trainedTutorial(t testing.TB) *Tutorial {
	p := tutorial(128, 96, 64, 10, 1)
	fill(t, "tutorial", map[string]models.Module{"encoder.network.": p.Encoder, "decoder.network.": p.Decoder})
	return p
}

func trainedComplex(t testing.TB) *Complex {
	p := blankComplex()
	mods := map[string]models.Module{}
	for name := range p.Encoders {
		mods["preprocessor."+name+"."], mods["encoders."+name+"."] = p.Preprocessor[name], p.Encoders[name]
	}
	for i, d := range p.Decoders {
		mods[fmt.Sprintf("decoders.%d.", i)] = d
	}
	fill(t, "complex", mods)
	return p
}

func trainedStateful(t testing.TB) *Stateful {
	p := blankStateful()
	fill(t, "stateful", map[string]models.Module{"model.": p.Model})
	b, err := golden.Files.ReadFile("stateful/manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var tree struct {
		Fields map[string]struct{ Value json.RawMessage }
	}
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	for name, into := range map[string]any{"preprocessor": &p.Preprocessor, "config": &p.Config, "stats": &p.Stats} {
		if err := json.Unmarshal(tree.Fields[name].Value, into); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// Row is one row of a batch: the input of that name. All rows of a batch have the same names.
type Row struct {
	X  map[string]worker.Floats
	Op string // of the first row: not a batch but a question about the worker itself
}

// Answer is what became of one row, or the answer to a question.
type Answer struct {
	PID   int
	Y     map[string]worker.Floats
	Calls int
	Probe *Probe
}

// Args say what a worker loads.
type Args struct {
	Socket, Ref, Kind string
	Copy              string // how the worker copies its weights, which the checks have to notice; empty: it does not
	Dir               string // for Copy
}

// actor holds one pipeline in a worker.
type actor struct {
	args Args
	c    *client.Client
	m    *client.Model
	p    runnable
	keep any
}

var pipes = worker.Define("e2e.pipeline", func(ctx context.Context, a Args) (worker.Actor[[]Row, []Answer], error) {
	c, err := client.Dial(ctx, client.Options{Socket: a.Socket})
	if err != nil {
		return nil, err
	}
	w := &actor{args: a, c: c}
	if err := w.load(ctx); err != nil {
		return nil, err
	}
	return w, nil
})

func (w *actor) load(ctx context.Context) error {
	switch w.args.Kind {
	case "tutorial":
		w.p = &Tutorial{}
	case "complex":
		w.p = &Complex{}
	case "stateful":
		w.p = &Stateful{}
	default:
		return fmt.Errorf("kind %q", w.args.Kind)
	}
	var err error
	if w.m, err = pipeline.Load(ctx, w.c, w.args.Ref, w.p, pipeline.LoadOptions{}); err != nil {
		return err
	}
	return w.copyWeights()
}

func (w *actor) Close() error { return w.c.Close() }

func (w *actor) Call(ctx context.Context, rows []Row) ([]Answer, error) {
	if len(rows) > 0 && rows[0].Op != "" {
		a, err := w.ask(ctx, rows[0].Op)
		return []Answer{a}, err
	}
	return w.batch(rows)
}

func (w *actor) batch(rows []Row) ([]Answer, error) {
	matrices := map[string][][]float32{}
	for _, r := range rows {
		for name, v := range r.X {
			matrices[name] = append(matrices[name], v)
		}
	}
	x := map[string]*nn.Tensor{}
	for name, m := range matrices {
		var err error
		if x[name], err = nn.FromRows(m); err != nil {
			return nil, err
		}
	}
	y, calls, err := w.p.run(x)
	if err != nil {
		return nil, err
	}
	out := make([]Answer, len(rows))
	for i := range out {
		out[i] = Answer{PID: pid, Y: map[string]worker.Floats{}, Calls: calls}
	}
	for name, t := range y {
		v, err := t.Float32s()
		if err != nil {
			return nil, err
		}
		n := len(v) / len(rows)
		for i := range out {
			out[i].Y[name] = v[i*n : (i+1)*n]
		}
	}
	return out, nil
}

// goldenRows are the inputs of a golden as rows, and wants what PyTorch made of them: by name, row by row. suffix is what the
// names have behind them there, as in "input.0".
func goldenRows(t testing.TB, folder, suffix string, inputs, outputs []string) (rows []Row, wants map[string][][]float32) {
	t.Helper()
	data, err := golden.Read(folder + "/golden.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) [][]float32 {
		v, ok := data[name+suffix]
		if !ok {
			t.Fatalf("%s has no %s", folder, name+suffix)
		}
		if v.DType == tensor.U8 {
			f := make([]float32, len(v.Data))
			for i, b := range v.Data {
				f[i] = float32(b)
			}
			if v, err = tensor.FromFloat32s(v.Shape, f); err != nil {
				t.Fatal(err)
			}
		}
		r, err := golden.Rows(v)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, name := range inputs {
		for i, r := range read(name) {
			if i == len(rows) {
				rows = append(rows, Row{X: map[string]worker.Floats{}})
			}
			rows[i].X[name] = r
		}
	}
	wants = map[string][][]float32{}
	for _, name := range outputs {
		wants[name] = read(name)
	}
	return rows, wants
}

// largest is the largest difference of answers from what is wanted; +Inf where there is no number to compare.
func largest(answers []Answer, wants map[string][][]float32) float64 {
	d := 0.0
	for name, want := range wants {
		if len(want) != len(answers) {
			return math.Inf(1)
		}
		for i, a := range answers {
			d = max(d, distance(a.Y[name], want[i]))
		}
	}
	return d
}

func distance(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	d := 0.0
	for i := range got {
		diff := math.Abs(float64(got[i]) - float64(want[i]))
		if math.IsNaN(diff) {
			return math.Inf(1)
		}
		d = max(d, diff)
	}
	return d
}
