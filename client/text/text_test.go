package text_test

import (
	"bufio"
	"context"
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/models/safetensors"
)

func TestMain(m *testing.M) {
	testdaemon.Main()
	os.Exit(testleak.Run(m))
}

var ctx = context.Background()

func put(t testing.TB, c *client.Client, name, dir string) {
	t.Helper()
	im, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := c.Put(ctx, name, im.Draft, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, name, dir string) *text.Pipeline {
	t.Helper()
	socket, shmDir := testdaemon.Place(t)
	testdaemon.Start(t, socket, shmDir)
	c := testdaemon.Client(t, socket)
	put(t, c, name, dir)
	p, err := text.Open(ctx, c, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// lines decodes a JSON-lines file.
func lines[T any](t testing.TB, path string) []T {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []T
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var v T
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// f32 reads a tensor of a golden file.
func f32(t testing.TB, path, name string) []float32 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := h.Find(name)
	if !ok {
		t.Fatalf("%s has no %s", path, name)
	}
	raw := b[h.DataStart+e.Begin : h.DataStart+e.End]
	out := make([]float32, len(raw)/4)
	for i := range out {
		out[i] = math.Float32frombits(uint32(raw[4*i]) | uint32(raw[4*i+1])<<8 | uint32(raw[4*i+2])<<16 | uint32(raw[4*i+3])<<24)
	}
	return out
}

func largest(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	d := 0.0
	for i := range got {
		d = math.Max(d, math.Abs(float64(got[i])-float64(want[i])))
	}
	return d
}

func TestIntents(t *testing.T) {
	dir := golden.Tree(t, "intents")
	p := open(t, "intents", dir)
	rows := lines[struct {
		Text, Predicted string
		IDs             []int32
	}](t, dir+"/golden.jsonl")
	var texts []string
	for _, r := range rows {
		texts = append(texts, r.Text)
	}
	got, err := p.Classify(ctx, texts)
	if err != nil {
		t.Fatal(err)
	}
	want := f32(t, dir+"/golden.safetensors", "probabilities")
	worst := 0.0
	for i, r := range rows {
		if got[i].Label != r.Predicted || got[i].Tokens != len(r.IDs) {
			t.Fatalf("text %d: %+v, want %s of %d tokens", i, got[i], r.Predicted, len(r.IDs))
		}
		worst = math.Max(worst, largest(got[i].Scores, want[i*5:i*5+5]))
	}
	if len(rows) != 300 || worst > 1e-4 {
		t.Errorf("%d texts, largest difference of a probability %g", len(rows), worst)
	}
	if _, err := p.Embed(ctx, texts[:1]); err == nil {
		t.Error("a classifier embedded")
	}
}

func TestMiniLM(t *testing.T) {
	dir := golden.Path(t, "minilm")
	p := open(t, "minilm", dir+"/model")
	rows := lines[struct {
		Text      string
		IDs       []int32 `json:"ids"`
		Truncated bool
	}](t, dir+"/texts.jsonl")
	if testing.Short() {
		rows = rows[:40]
	}
	var texts []string
	for _, r := range rows {
		texts = append(texts, r.Text)
	}
	got, err := p.Embed(ctx, texts)
	if err != nil {
		t.Fatal(err)
	}
	want := f32(t, dir+"/golden.safetensors", "embeddings")
	worst := 0.0
	for i, r := range rows {
		if got[i].Tokens != len(r.IDs) || (got[i].Truncated > 0) != r.Truncated {
			t.Errorf("text %d: %d tokens, %d cut; want %d, %v", i, got[i].Tokens, got[i].Truncated, len(r.IDs), r.Truncated)
		}
		worst = math.Max(worst, largest(got[i].Vector, want[i*384:i*384+384]))
	}
	t.Logf("%d texts, largest difference %.2g", len(rows), worst)
	if worst > 1e-5 {
		t.Errorf("largest difference of an embedding %g", worst)
	}
	// Alone or among others: the same, to the last bit.
	for _, i := range []int{0, 5, 12} {
		alone, err := p.Embed(ctx, texts[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		if largest(alone[0].Vector, got[i].Vector) != 0 {
			t.Errorf("text %d alone differs from text %d among others", i, i)
		}
	}
}
