package pipeline_test

import (
	"context"
	"errors"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

func TestMain(m *testing.M) {
	testdaemon.Main()
	os.Exit(testleak.Run(m))
}

var ctx = context.Background()

func daemon(t testing.TB) *client.Client {
	t.Helper()
	socket, dir := testdaemon.Place(t)
	testdaemon.Start(t, socket, dir)
	return testdaemon.Client(t, socket)
}

// Inner, Nested and Deep put models into a map in a slice in a struct, beside plain fields of many sorts.
type Inner struct {
	Proj   *nn.Linear
	Labels []string
	Scale  float32
}

type Nested struct {
	Stages []map[string]Inner
	Shared *nn.Sequential
	Again  *nn.Sequential // the same as Shared
	Any    nn.Layer
	Names  map[string]int
	When   time.Time
	Empty  []string
	Table  tensor.View
	Pair   [2]*nn.LayerNorm
	Opt    *Options
	hidden int
}

type Options struct {
	Top  int
	Note *string `zcstore:"note"`
	Skip func()
	Out  chan int `zcstore:"-"`
}

func nested(t testing.TB) *Nested {
	t.Helper()
	table, err := tensor.FromFloat32s(tensor.Shape{3, 2}, []float32{1, 2, 3, 4, 5, 6})
	if err != nil {
		t.Fatal(err)
	}
	shared := nn.NewSequential(nn.NewLinear(8, 300, nn.Seed(1)), nn.NewReLU(), nn.NewLinear(300, 4, nn.Seed(2)))
	note := "kept"
	return &Nested{
		Stages: []map[string]Inner{
			{"fr": {Proj: nn.NewLinear(4, 8, nn.Seed(3)), Labels: []string{"a", "b"}, Scale: 0.1}, "v1.0": {Proj: nn.NewLinear(4, 2, nn.Seed(4))}},
			{},
			{"last": {Proj: nn.NewLinear(2, 2, nn.Seed(5), nn.NoBias()), Scale: 3e38}},
		},
		Shared: shared, Again: shared, Any: nn.NewGELU(), Names: map[string]int{"x": 1 << 40}, When: time.Unix(5, 6).UTC(),
		Table: table, Pair: [2]*nn.LayerNorm{nn.NewLayerNorm(4), nn.NewLayerNormEps(4, 1e-6)},
		Opt: &Options{Top: 3, Note: &note}, hidden: 7,
	}
}

func forward(t testing.TB, l nn.Layer, x []float32) []float32 {
	t.Helper()
	in, err := nn.New(tensor.Shape{1, len(x)}, x)
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Forward(in)
	if err != nil {
		t.Fatal(err)
	}
	out, err := y.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnyDepth(t *testing.T) {
	c := daemon(t)
	p := nested(t)
	r, err := pipeline.Put(ctx, c, "nested", p, pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Ref != "nested:v1" || r.SharedBytes < 300*8*4 || r.Existed {
		t.Errorf("report %+v", r)
	}
	skipped := map[string]string{}
	for _, s := range r.Skipped {
		skipped[s.Path] = s.Why
	}
	if len(skipped) != 3 || skipped["hidden"] != "not exported" || skipped["Opt.Skip"] == "" || skipped["Opt.Out"] == "" {
		t.Errorf("skipped %v", skipped)
	}
	copied := map[string]bool{}
	for _, s := range r.Copied {
		copied[s.Path] = true
	}
	for _, want := range []string{"Names", "When", "Empty", "Opt.Top", "Opt.note", "Stages.0.fr.Labels", `Stages.0["v1.0"].Scale`} {
		if !copied[want] {
			t.Errorf("%s is not in the report: %v", want, r.Copied)
		}
	}
	var got Nested
	m, err := pipeline.Load(ctx, c, "nested", &got, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got.Shared != got.Again || got.Shared == nil {
		t.Error("a module used twice is two modules now")
	}
	if got.Stages[0]["fr"].Scale != 0.1 || got.Stages[2]["last"].Scale != 3e38 || !reflect.DeepEqual(got.Stages[0]["fr"].Labels, p.Stages[0]["fr"].Labels) ||
		got.Names["x"] != 1<<40 || !got.When.Equal(p.When) || got.Empty != nil || *got.Opt.Note != "kept" || got.Opt.Top != 3 {
		t.Errorf("plain fields: %+v", got)
	}
	if v, err := got.Table.Float32s(); err != nil || v[5] != 6 {
		t.Errorf("bare tensor: %v, %v", v, err)
	}
	x := []float32{1, -2, 3, -4, 5, -6, 7, -8}
	for i, pair := range [][2]nn.Layer{{p.Shared, got.Shared}, {p.Stages[0]["fr"].Proj, got.Stages[0]["fr"].Proj}, {p.Pair[1], got.Pair[1]}, {p.Any, got.Any}} {
		in := x
		if i == 1 || i == 2 {
			in = x[:4]
		}
		if a, b := forward(t, pair[0], in), forward(t, pair[1], in); !reflect.DeepEqual(a, b) {
			t.Errorf("module %d: %v, put was %v", i, b, a)
		}
	}
	// Every weight lies in a mapped segment, none on the heap.
	segs := m.Segments()
	in := func(v tensor.View) bool {
		for _, s := range segs {
			if reflect.ValueOf(v.Data).Pointer()-reflect.ValueOf(s.Bytes).Pointer() < uintptr(len(s.Bytes)) {
				return true
			}
		}
		return false
	}
	for _, mod := range []models.Module{got.Shared.At(0), got.Shared.At(2), got.Stages[2]["last"].Proj, got.Pair[0]} {
		for _, prm := range mod.Spec().Params {
			if !in(prm.Tensor) {
				t.Errorf("%s of %s is a copy", prm.Name, mod.Spec().Kind)
			}
		}
	}
	// The same value again is the same version.
	if again, err := pipeline.Put(ctx, c, "nested", nested(t), pipeline.PutOptions{}); err != nil || !again.Existed || again.Digest != r.Digest {
		t.Errorf("again: %+v, %v", again, err)
	}
}

type Tied struct {
	Embed *nn.Embedding
	Head  *nn.Linear // its weight is the table
	Bias  float32
}

func tied(t testing.TB, seed uint64) *Tied {
	t.Helper()
	p := &Tied{Embed: nn.NewEmbedding(500, 64, nn.Seed(seed)), Head: nn.NewLinear(64, 500, nn.NoBias())}
	table := p.Embed.Spec().Params[0].Tensor
	if err := nn.LoadStateDict(p.Head, "", func(string) (tensor.View, bool) { return table, true }, "weight"); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTiedTensorsAreStoredOnce(t *testing.T) {
	c := daemon(t)
	r, err := pipeline.Put(ctx, c, "tied", tied(t, 1), pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.SharedTensors != 1 || r.SharedBytes != 500*64*4 {
		t.Errorf("report %+v", r)
	}
	var got Tied
	m, err := pipeline.Load(ctx, c, "tied", &got, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	a, b := got.Embed.Spec().Params[0].Tensor, got.Head.Spec().Params[0].Tensor
	if &a.Data[0] != &b.Data[0] {
		t.Error("tied tensors came back untied")
	}
	row, err := m.Table().TensorNames(0)
	if err != nil || len(row) != 2 {
		t.Errorf("names %v, %v", row, err)
	}
}

type Wide struct{ A, B, C *nn.Linear }

func wide(seeds ...uint64) *Wide {
	return &Wide{nn.NewLinear(256, 256, nn.Seed(seeds[0])), nn.NewLinear(256, 256, nn.Seed(seeds[1])), nn.NewLinear(256, 256, nn.Seed(seeds[2]))}
}

func TestSecondVersionAndRemovalOfTheFirst(t *testing.T) {
	c := daemon(t)
	if _, err := pipeline.Put(ctx, c, "w", wide(1, 2, 3), pipeline.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	before, _ := c.Status(ctx)
	next := wide(1, 9, 3)
	r, err := pipeline.Put(ctx, c, "w", next, pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	after, _ := c.Status(ctx)
	changed := 256 * 256 * 4
	if grown := int(after.UsedBytes - before.UsedBytes); grown < changed || grown > changed+64<<10 {
		t.Errorf("the kernel counts %d more for one changed tensor of %d (the report says %d)", grown, changed, r.WrittenBytes)
	}
	if _, err := c.Remove(ctx, "w:v1", false); err != nil {
		t.Fatal(err)
	}
	var got Wide
	m, err := pipeline.Load(ctx, c, "w", &got, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i, pair := range [][2]*nn.Linear{{next.A, got.A}, {next.B, got.B}, {next.C, got.C}} {
		for k := range pair[0].Spec().Params {
			if string(pair[0].Spec().Params[k].Tensor.Data) != string(pair[1].Spec().Params[k].Tensor.Data) {
				t.Errorf("layer %d, parameter %d differs after rm of v1", i, k)
			}
		}
	}
}

type holder struct{ L *nn.Linear }

func TestPutRefuses(t *testing.T) {
	c := daemon(t)
	l := func() *nn.Linear { return nn.NewLinear(2, 2, nn.Seed(1)) }
	type self struct {
		L    *nn.Linear
		Next *self
	}
	loop := &self{L: l()}
	loop.Next = loop
	for _, tt := range []struct {
		name string
		p    any
		want []string
	}{
		{"nil", nil, []string{"nil"}},
		{"a nil pointer", (*Wide)(nil), []string{"nil"}},
		{"no models", &struct{ X int }{1}, []string{"no models"}},
		{"an unexported model", &struct {
			A *nn.Linear
			b *nn.Linear
		}{l(), l()}, []string{"b:", "not exported"}},
		{"a model below an unexported field", &struct {
			A *nn.Linear
			h holder
		}{l(), holder{l()}}, []string{"h:", "not exported"}},
		{"models under keys of numbers", &struct{ M map[int]*nn.Linear }{map[int]*nn.Linear{1: l()}}, []string{"M:", "map[int]"}},
		{"a channel of models", &struct {
			A *nn.Linear
			C chan *nn.Linear
		}{l(), make(chan *nn.Linear)}, []string{"C:", "chan"}},
		{"a nil model in a list", &struct{ L []*nn.Linear }{[]*nn.Linear{l(), nil}}, []string{"L.1:", "nil"}},
		{"weights in a plain slice", &struct {
			A *nn.Linear
			W []float32
		}{l(), make([]float32, 1<<20)}, []string{"W:", "copied"}},
		{"not a number", &struct {
			A *nn.Linear
			T float64
		}{l(), math.NaN()}, []string{"T:", "NaN"}},
		{"itself", loop, []string{"contains itself"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := pipeline.Put(ctx, c, "p", tt.p, pipeline.PutOptions{})
			if !errors.Is(err, zcerr.Invalid) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %q", err, w)
				}
			}
		})
	}
	if ls, err := c.List(ctx, "", true); err != nil || len(ls) != 0 {
		t.Errorf("something was stored: %v, %v", ls, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	c := daemon(t)
	type pipe struct {
		Enc   *nn.Sequential
		Heads map[string]*nn.Linear
		List  []*nn.LayerNorm
		Temp  float32
	}
	if _, err := pipeline.Put(ctx, c, "p", &pipe{
		Enc: nn.NewSequential(nn.NewLinear(2, 2, nn.Seed(1))), Heads: map[string]*nn.Linear{"a": nn.NewLinear(2, 2, nn.Seed(2))},
		List: []*nn.LayerNorm{nn.NewLayerNorm(2)}, Temp: 1,
	}, pipeline.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		into any
		kind zcerr.Kind
		want []string
	}{
		{"not a pointer", pipe{}, zcerr.Invalid, []string{"pointer"}},
		{"another kind of module", &struct {
			Enc   *nn.Linear
			Heads map[string]*nn.Linear
			List  []*nn.LayerNorm
			Temp  float32
		}{}, zcerr.Invalid, []string{"Enc:", "*nn.Linear", "nn.Sequential"}},
		{"a field that is not stored", &struct {
			More *nn.Linear
		}{}, zcerr.Invalid, []string{"More", "*nn.Linear", "Enc, Heads, List, Temp"}},
		{"a stored part without a field", &struct {
			Enc   *nn.Sequential
			Heads map[string]*nn.Linear
			List  []*nn.LayerNorm
		}{}, zcerr.Invalid, []string{"Temp:", "no field"}},
		{"deep in a map", &struct {
			Enc   *nn.Sequential
			Heads map[string]*nn.LayerNorm
			List  []*nn.LayerNorm
			Temp  float32
		}{}, zcerr.Invalid, []string{"Heads.a:", "*nn.LayerNorm", "nn.Linear"}},
		{"a list of another length", &struct {
			Enc   *nn.Sequential
			Heads map[string]*nn.Linear
			List  [2]*nn.LayerNorm
			Temp  float32
		}{}, zcerr.Invalid, []string{"List:", "[2]", "list of 1"}},
		{"a value of another type", &struct {
			Enc   *nn.Sequential
			Heads map[string]*nn.Linear
			List  []*nn.LayerNorm
			Temp  string
		}{}, zcerr.Invalid, []string{"Temp:", "string", "value"}},
		{"a value where a model is wanted", &struct {
			Enc   *nn.Sequential
			Heads map[string]*nn.Linear
			List  []*nn.LayerNorm
			Temp  *nn.Linear
		}{}, zcerr.Invalid, []string{"Temp:", "*nn.Linear"}},
		{"no such model", &pipe{}, zcerr.NotFound, []string{"nothing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ref := "p"
			if tt.kind == zcerr.NotFound {
				ref = "nothing"
			}
			_, err := pipeline.Load(ctx, c, ref, tt.into, pipeline.LoadOptions{})
			if !errors.Is(err, tt.kind) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %q", err, w)
				}
			}
		})
	}
	var p pipe
	m, err := pipeline.Load(ctx, c, "p", &p, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if st, _ := c.Status(ctx); st.Leases != 0 {
		t.Errorf("%d leases left by refused loads", st.Leases)
	}
}

// liar says in its config another shape than its weights have.
type liar struct{ *nn.Linear }

func (l liar) Spec() models.Spec {
	s := l.Linear.Spec()
	s.Config = map[string]any{"in_features": 2, "out_features": 3, "bias": true}
	return s
}

func TestLoadChecksShapes(t *testing.T) {
	c := daemon(t)
	if _, err := pipeline.Put(ctx, c, "liar", &struct{ Head liar }{liar{nn.NewLinear(2, 2, nn.Seed(1))}}, pipeline.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	var p struct{ Head *nn.Linear }
	_, err := pipeline.Load(ctx, c, "liar", &p, pipeline.LoadOptions{})
	if !errors.Is(err, zcerr.Invalid) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"Head", "weight", "[3,2]", "[2,2]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	if p.Head != nil {
		t.Error("a failed load changed the value")
	}
}
