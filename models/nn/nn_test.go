package nn

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/gpu/gputest"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm/tensor"
)

// onDevices runs a test on the real device and on the late, poisoned one.
func onDevices(t *testing.T, f func(t *testing.T, dev gpu.Device)) {
	t.Run("cpu", func(t *testing.T) { f(t, cpu.Default()) })
	t.Run("async", func(t *testing.T) { f(t, gputest.Async(cpu.Default())) })
}

func read(t testing.TB, path string) map[string]tensor.View {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	views := map[string]tensor.View{}
	for _, e := range h.Entries {
		v, err := tensor.New(e.DType, e.Shape, file[h.DataStart+e.Begin:h.DataStart+e.End])
		if err != nil {
			t.Fatal(err)
		}
		views[e.Name] = v
	}
	return views
}

func input(t testing.TB, v tensor.View) *Tensor {
	t.Helper()
	f, err := v.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	x, err := New(v.Shape, f)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// compare holds a result to a golden, within 1e-5.
func compare(t *testing.T, what string, x *Tensor, err error, want tensor.View) float64 {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if !x.Shape().Equal(want.Shape) {
		t.Fatalf("%s: shape %v, want %v", what, x.Shape(), want.Shape)
	}
	got, err := x.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	w, err := want.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	var worst float64
	for i := range got {
		d := math.Abs(float64(got[i]) - float64(w[i]))
		if !(d <= 1e-5) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], w[i])
		}
		worst = max(worst, d)
	}
	return worst
}

// source is a stored module in memory, as models.Source has it.
type source struct {
	path   string
	config any
	views  map[string]tensor.View
	names  []string
	kids   map[string]func() (models.Module, error)
	dev    gpu.Device
}

func (s *source) Path() string                          { return s.path }
func (s *source) Names() []string                       { return nil }
func (s *source) Value(string) ([]byte, bool)           { return nil, false }
func (s *source) ChildNames() []string                  { return s.names }
func (s *source) Child(n string) (models.Module, error) { return s.kids[n]() }
func (s *source) Device() gpu.Device                    { return s.dev }
func (s *source) Has(n string) bool                     { _, ok := s.views[n]; return ok }
func (s *source) Tensor(n string, want tensor.Shape) (tensor.View, tensor.Role, error) {
	v, ok := s.views[n]
	if !ok || !v.Shape.Equal(want) {
		return v, 0, errors.New("no tensor " + n + " of shape " + want.String())
	}
	role := tensor.Other
	if len(v.Shape) == 2 {
		role = tensor.Linear
	}
	return v, role, nil
}

func (s *source) Config(into any) error {
	b, err := json.Marshal(s.config)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// build makes a Sequential as a manifest of the goldens describes it.
func build(t testing.TB, dev gpu.Device, layers []map[string]any, prefix string, views map[string]tensor.View) *Sequential {
	t.Helper()
	src := &source{path: prefix, dev: dev, kids: map[string]func() (models.Module, error){}}
	for i, l := range layers {
		name := string(rune('0' + i))
		own := map[string]tensor.View{}
		for _, p := range []string{"weight", "bias"} {
			if v, ok := views[prefix+name+"."+p]; ok {
				own[p] = v
			}
		}
		src.names = append(src.names, name)
		src.kids[name] = func() (models.Module, error) {
			return models.Build(l["kind"].(string), &source{path: prefix + name, config: l, views: own, dev: dev})
		}
	}
	m, err := models.Build("nn.Sequential", src)
	if err != nil {
		t.Fatal(err)
	}
	return m.(*Sequential)
}

type node struct {
	Prefix string
	Layers []map[string]any
	Items  json.RawMessage
	Value  json.RawMessage
}

func manifest(t testing.TB, set string) map[string]node {
	t.Helper()
	b, err := os.ReadFile(golden.Tree(t, set, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct{ Fields map[string]node }
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m.Fields
}

// EncoderDecoder is the pipeline of the tutorial, as a program writes it.
type EncoderDecoder struct {
	Encoder, Decoder *Sequential
	Temperature      float32
}

func (p *EncoderDecoder) Forward(x *Tensor) (*Tensor, error) {
	latent, err := p.Encoder.Forward(x)
	if err != nil {
		return nil, err
	}
	out, err := p.Decoder.Forward(latent)
	if err != nil {
		return nil, err
	}
	return out.Div(p.Temperature)
}

func TestTutorial(t *testing.T) {
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		g := read(t, golden.Tree(t, "tutorial", "golden.safetensors"))
		p := &EncoderDecoder{
			Encoder: NewSequential(NewLinear(128, 96, On(dev)), NewReLU(), NewLinear(96, 64, On(dev)), NewReLU()),
			Decoder: NewSequential(NewLinear(64, 96, On(dev)), NewReLU(), NewLinear(96, 10, On(dev))),
		}
		for name, m := range map[string]*Sequential{"encoder": p.Encoder, "decoder": p.Decoder} {
			views := read(t, golden.Tree(t, "tutorial", "pipeline.safetensors"))
			find := func(n string) (tensor.View, bool) { v, ok := views[n]; return v, ok }
			if err := LoadStateDict(m, name+".network.", find); err != nil {
				t.Fatal(err)
			}
			if dev != gpu.Device(cpu.Default()) { // it has a copy of its own
				for _, v := range views {
					for i := range v.Data {
						v.Data[i] = 0xff
					}
				}
			}
		}
		x := input(t, g["input"])
		latent, err := p.Encoder.Forward(x)
		worst := compare(t, "latent", latent, err, g["latent"])
		for temperature, want := range map[float32]string{1: "output.temperature_1.0", 0.7: "output.temperature_0.7"} {
			p.Temperature = temperature
			out, err := p.Forward(x)
			worst = max(worst, compare(t, want, out, err, g[want]))
		}
		t.Logf("largest difference %.3g", worst)
	})
}

func TestComplex(t *testing.T) {
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		g := read(t, golden.Tree(t, "complex", "golden.safetensors"))
		views := read(t, golden.Tree(t, "complex", "pipeline.safetensors"))
		fields := manifest(t, "complex")
		var pre, enc map[string]node
		var dec []node
		for _, e := range []struct {
			of   string
			into any
		}{{"preprocessor", &pre}, {"encoders", &enc}, {"decoders", &dec}} {
			if err := json.Unmarshal(fields[e.of].Items, e.into); err != nil {
				t.Fatal(err)
			}
		}
		var worst float64
		var sum *Tensor
		for _, k := range []string{"text", "image"} {
			x, err := build(t, dev, pre[k].Layers, pre[k].Prefix, views).Forward(input(t, g["input."+k]))
			worst = max(worst, compare(t, "preprocessed."+k, x, err, g["preprocessed."+k]))
			e, err := build(t, dev, enc[k].Layers, enc[k].Prefix, views).Forward(x)
			worst = max(worst, compare(t, "encoded."+k, e, err, g["encoded."+k]))
			if sum == nil {
				sum = e
			} else if sum, err = sum.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		for i, d := range dec {
			out, err := build(t, dev, d.Layers, d.Prefix, views).Forward(sum)
			name := "output." + string(rune('0'+i))
			worst = max(worst, compare(t, name, out, err, g[name]))
		}
		t.Logf("largest difference %.3g", worst)
	})
}

func TestStateful(t *testing.T) {
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		g := read(t, golden.Tree(t, "stateful", "golden.safetensors"))
		views := read(t, golden.Tree(t, "stateful", "pipeline.safetensors"))
		fields := manifest(t, "stateful")
		var pre struct {
			Mean, Std []float32
			Clip      float32
		}
		if err := json.Unmarshal(fields["preprocessor"].Value, &pre); err != nil {
			t.Fatal(err)
		}
		m := build(t, dev, fields["model"].Layers, "model.", views)
		row := func(v []float32) *Tensor {
			x, err := New(tensor.Shape{len(v)}, v)
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		batches := 0
		for name, v := range g {
			b, ok := strings.CutSuffix(name, ".input")
			if !ok {
				b, ok = strings.CutPrefix(name, "input.")
				if !ok {
					continue
				}
			}
			batches++
			x, err := input(t, v).Sub(row(pre.Mean))
			if err == nil {
				x, err = x.Quo(row(pre.Std))
			}
			if err == nil {
				x, err = x.Clamp(-pre.Clip, pre.Clip)
			}
			if err != nil {
				t.Fatal(err)
			}
			if dev != gpu.Device(cpu.Default()) { // the steps above ran on the default device
				f, err := x.Float32s()
				if err != nil {
					t.Fatal(err)
				}
				if x, err = New(x.Shape(), f); err != nil {
					t.Fatal(err)
				}
			}
			want, ok := g[b+".output"]
			if !ok {
				want = g["output."+b]
			}
			out, err := m.Forward(x)
			t.Logf("%s: largest difference %.3g", b, compare(t, name, out, err, want))
		}
		if batches != 3 {
			t.Errorf("%d batches, want 3 (have %d tensors)", batches, len(g))
		}
	})
}

func TestFusedIsUnfused(t *testing.T) {
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		lin, norm, last := NewLinear(7, 9, Seed(1), On(dev)), NewLayerNorm(9, On(dev)), NewLinear(9, 4, Seed(2), NoBias(), On(dev))
		layers := []Layer{NewDropout(0.1), lin, NewSequential(NewSiLU(), norm), NewTanh(), last, custom{}, NewSoftmax(), NewIdentity()}
		x, err := New(tensor.Shape{2, 3, 7}, ramp(42))
		if err != nil {
			t.Fatal(err)
		}
		got, err := NewSequential(layers...).Forward(x)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			if x, err = l.Forward(x); err != nil {
				t.Fatal(err)
			}
		}
		a, b := values(t, got), values(t, x)
		for i := range a {
			if a[i] != b[i] {
				t.Fatalf("element %d: %v in a Sequential, %v one by one", i, a[i], b[i])
			}
		}
		if s := got.Shape(); !s.Equal(tensor.Shape{2, 3, 4}) {
			t.Errorf("shape %v", s)
		}
	})
}

// custom is a layer of a program's own.
type custom struct{}

func (custom) Spec() models.Spec                  { return models.Spec{Kind: "test.custom"} }
func (custom) Forward(x *Tensor) (*Tensor, error) { return x.Scale(2) }

func ramp(n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(i%13)/7 - 0.8
	}
	return v
}

func values(t testing.TB, x *Tensor) []float32 {
	t.Helper()
	f, err := x.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLowPrecisionWeights(t *testing.T) {
	l := NewLinear(2, 2)
	half := tensor.View{DType: tensor.F16, Shape: tensor.Shape{2, 2}, Data: []byte{0, 0x3c, 0, 0x40, 0, 0xbc, 0, 0x38}} // 1 2 -1 .5
	bf := tensor.View{DType: tensor.BF16, Shape: tensor.Shape{2}, Data: []byte{0x80, 0x3f, 0, 0x40}}                    // 1 2
	views := map[string]tensor.View{"weight": half, "bias": bf}
	if err := LoadStateDict(l, "", func(n string) (tensor.View, bool) { v, ok := views[n]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	x, err := FromRows([][]float32{{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Forward(x)
	if err != nil {
		t.Fatal(err)
	}
	if got := values(t, y); got[0] != 6 || got[1] != 2 {
		t.Errorf("got %v, want [6 2]", got)
	}
	if d := l.Spec().Params[0].Tensor.DType; d != tensor.F16 {
		t.Errorf("stored as %v", d)
	}
}

func TestLoadStateDictReports(t *testing.T) {
	m := NewSequential(NewLinear(2, 3, Seed(1)), NewReLU(), NewLayerNorm(3))
	before := values(t, forwardOnes(t, m, 2))
	v := func(shape ...int) tensor.View {
		n, _ := tensor.Shape(shape).Elements()
		return tensor.View{DType: tensor.F32, Shape: shape, Data: make([]byte, 4*n)}
	}
	views := map[string]tensor.View{"a.0.weight": v(3, 2), "a.0.bias": v(4), "a.2.weight": v(3), "a.9.weight": v(1), "b.x": v(1)}
	names := []string{"a.0.weight", "a.0.bias", "a.2.weight", "a.9.weight", "b.x"}
	err := LoadStateDict(m, "a.", func(n string) (tensor.View, bool) { v, ok := views[n]; return v, ok }, names...)
	var e *StateError
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	if len(e.Missing) != 1 || e.Missing[0] != "a.2.bias" || len(e.Unexpected) != 1 || e.Unexpected[0] != "a.9.weight" || len(e.Wrong) != 1 {
		t.Errorf("got %+v", e)
	}
	if !errors.Is(err, gpu.ErrShape) || !strings.Contains(err.Error(), "a.0.bias") || !strings.Contains(err.Error(), "[4]") {
		t.Errorf("got %v", err)
	}
	for i, x := range values(t, forwardOnes(t, m, 2)) {
		if x != before[i] {
			t.Fatal("a refused load changed the module")
		}
	}
}

func forwardOnes(t *testing.T, l Layer, n int) *Tensor {
	t.Helper()
	x, err := FromRows([][]float32{make([]float32, n)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range x.host {
		x.host[i] = 1
	}
	y, err := l.Forward(x)
	if err != nil {
		t.Fatal(err)
	}
	return y
}

func TestErrors(t *testing.T) {
	x, _ := New(tensor.Shape{2, 3}, ramp(6))
	ids, _ := NewInts(tensor.Shape{2}, []int32{0, 5})
	elsewhere := NewLinear(3, 3, On(gputest.Async(cpu.Default())))
	there, err := elsewhere.Forward(x)
	if err != nil {
		t.Fatal(err)
	}
	two := func(_ *Tensor, err error) error { return err }
	for _, c := range []struct {
		name string
		err  error
		kind error
		text string
	}{
		{"linear", two(NewLinear(4, 2).Forward(x)), gpu.ErrShape, "nn.Linear: shapes do not fit: the last dimension of x is to be 4 (x F32 [2,3], weight F32 [2,4])"},
		{"in a sequential", two(NewSequential(NewReLU(), NewLinear(4, 2)).Forward(x)), gpu.ErrShape, "nn.Linear"},
		{"norm", two(NewLayerNorm(4).Forward(x)), gpu.ErrShape, "nn.LayerNorm"},
		{"no size", two(NewLinear(0, 2).Forward(x)), gpu.ErrShape, "in_features 0"},
		{"too large to make", two(NewLinear(1<<30, 1<<30).Forward(x)), gpu.ErrShape, "weight"},
		{"nil", two(NewLinear(3, 2).Forward(nil)), gpu.ErrShape, "nil"},
		{"nil into a sequential", two(NewSequential().Forward(nil)), gpu.ErrShape, "nil"},
		{"nil layer", two(NewSequential(nil).Forward(x)), nil, "layer 0 is nil"},
		{"ids into linear", two(NewLinear(2, 2).Forward(ids)), gpu.ErrUnsupported, "I32"},
		{"values into embedding", two(NewEmbedding(4, 2).Forward(x)), gpu.ErrUnsupported, "indices"},
		{"id", two(NewEmbedding(4, 2).Forward(ids)), gpu.ErrIndex, "index 5 at 1, of 4 rows"},
		{"gelu", two((&GELU{Approximate: "fast"}).Forward(x)), gpu.ErrUnsupported, `approximate "fast"`},
		{"softmax", two((&Softmax{Dim: 0}).Forward(x)), gpu.ErrUnsupported, "dim 0"},
		{"row", two(x.Row(2)), gpu.ErrIndex, "row 2"},
		{"add", two(x.Add(mustNew(t, 2, 2))), gpu.ErrShape, "nn.Add"},
		{"new", two(New(tensor.Shape{2, 2}, ramp(3))), gpu.ErrShape, "3 values"},
		{"rows", two(FromRows([][]float32{{1}, {1, 2}})), gpu.ErrShape, "row 1 has 2"},
		{"another device", two(NewLinear(3, 3).Forward(there)), gpu.ErrDevice, "x is on another device"},
		{"reshape", two(x.Reshape(tensor.Shape{4})), gpu.ErrShape, "[4]"},
		{"pool", two(x.MeanPool([]int{0, 1}, nil)), gpu.ErrShape, "meanpool"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.text) || (c.kind != nil && !errors.Is(c.err, c.kind)) {
			t.Errorf("%s: got %v, want %q and kind %v", c.name, c.err, c.text, c.kind)
		}
	}
}

func mustNew(t *testing.T, shape ...int) *Tensor {
	t.Helper()
	n, _ := tensor.Shape(shape).Elements()
	x, err := New(shape, ramp(n))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestTensor(t *testing.T) {
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		id, err := NewLinear(2, 2, On(dev)), error(nil)
		views := map[string][]float32{"weight": {1, 0, 0, 1}, "bias": {0, 0}}
		err = LoadStateDict(id, "", func(n string) (tensor.View, bool) {
			shape := tensor.Shape{2, 2}
			if n == "bias" {
				shape = shape[:1]
			}
			v, err := tensor.FromFloat32s(shape, views[n])
			return v, err == nil
		})
		if err != nil {
			t.Fatal(err)
		}
		host, err := FromRows([][]float32{{1, 2}, {3, 4}, {-5, 6}})
		if err != nil {
			t.Fatal(err)
		}
		x, err := id.Forward(host) // the same values, on the device
		if err != nil {
			t.Fatal(err)
		}
		row, err := x.Row(1)
		if err != nil {
			t.Fatal(err)
		}
		check := func(name string, y *Tensor, err error, want ...float32) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			got := values(t, y)
			for i := range want {
				if math.Abs(float64(got[i]-want[i])) > 1e-6 {
					t.Errorf("%s: got %v, want %v", name, got, want)
					return
				}
			}
		}
		check("row", row, nil, 3, 4)
		y, err := x.Add(row)
		check("add a row", y, err, 4, 6, 6, 8, -2, 10)
		y, err = host.Mul(x)
		check("mul", y, err, 1, 4, 9, 16, 25, 36)
		y, err = x.Clamp(0, 3)
		check("clamp", y, err, 1, 2, 3, 3, 0, 3)
		y, err = x.Softmax()
		check("softmax", y, err, 0.26894143, 0.7310586)
		y, err = x.MeanPool([]int{0, 2, 3}, []int32{1, 0, 1})
		check("pool", y, err, 1, 2, -5, 6)
		y, err = x.Pick([]int{2, 0})
		check("pick", y, err, -5, 6, 1, 2)
		if _, err := x.Pick([]int{3}); !errors.Is(err, gpu.ErrIndex) {
			t.Errorf("pick past the end: %v", err)
		}
		y, err = row.L2Normalize()
		check("l2", y, err, 0.6, 0.8)
		y, err = x.Reshape(tensor.Shape{2, 3})
		check("reshape", y, err, 1, 2, 3)
		y, err = y.Row(1)
		check("row of reshaped", y, err, 4, -5, 6)
		emb := NewEmbedding(3, 2, Seed(3), On(dev))
		ids, err := NewInts(tensor.Shape{1, 2}, []int32{2, 0})
		if err != nil {
			t.Fatal(err)
		}
		table, err := emb.Spec().Params[0].Tensor.Float32s()
		if err != nil {
			t.Fatal(err)
		}
		y, err = emb.Forward(ids)
		check("embedding", y, err, table[4], table[5], table[0], table[1])
	})
}

// One module, many goroutines.
func TestConcurrentForward(t *testing.T) {
	m := NewSequential(NewLinear(64, 300, Seed(1)), NewGELU(), NewLinear(300, 64, Seed(2)))
	x := mustNew(t, 40, 64)
	want := values(t, mustForward(t, m, x))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if ctx.Err() != nil {
					return
				}
				y, err := m.Forward(x)
				if err == nil {
					var got []float32
					if got, err = y.Float32s(); err == nil && got[77] != want[77] {
						err = errors.New("another answer")
					}
				}
				if err != nil {
					t.Error(err)
					stop()
				}
			}
		})
	}
	wg.Wait()
}

func mustForward(t *testing.T, l Layer, x *Tensor) *Tensor {
	t.Helper()
	y, err := l.Forward(x)
	if err != nil {
		t.Fatal(err)
	}
	return y
}

func TestSpecs(t *testing.T) {
	for _, c := range []struct {
		m      models.Module
		kind   string
		config string
		params string
	}{
		{NewLinear(2, 3), "nn.Linear", `{"in_features":2,"out_features":3,"bias":true}`, "weight linear [3,2] bias other [3]"},
		{NewLinear(2, 3, NoBias()), "nn.Linear", `{"in_features":2,"out_features":3,"bias":false}`, "weight linear [3,2]"},
		{NewLayerNorm(4), "nn.LayerNorm", `{"normalized_shape":4,"eps":0.00001}`, "weight other [4] bias other [4]"},
		{NewEmbedding(5, 2), "nn.Embedding", `{"num_embeddings":5,"embedding_dim":2}`, "weight lookup [5,2]"},
		{NewGELU(), "nn.GELU", `{"approximate":"none"}`, ""},
		{&GELU{}, "nn.GELU", `{"approximate":"none"}`, ""},
		{NewSoftmax(), "nn.Softmax", `{"dim":-1}`, ""},
		{NewReLU(), "nn.ReLU", `null`, ""},
	} {
		s := c.m.Spec()
		b, err := json.Marshal(s.Config)
		var params []string
		for _, p := range s.Params {
			params = append(params, p.Name, p.Role.String(), p.Tensor.Shape.String())
		}
		if got := strings.Join(params, " "); err != nil || s.Kind != c.kind || string(b) != c.config || got != c.params {
			t.Errorf("got %s %s %q %v, want %s %s %q", s.Kind, b, got, err, c.kind, c.config, c.params)
		}
	}
	a, b := NewLinear(3, 2, Seed(5)).Spec(), NewLinear(3, 2, Seed(5)).Spec()
	if string(a.Params[0].Tensor.Data) != string(b.Params[0].Tensor.Data) {
		t.Error("one seed, two layers")
	}
	if r, other := NewReLU(), NewReLU(); r == other {
		t.Error("two layers are one pointer")
	}
}
