package text_test

import (
	"os"
	"testing"

	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/safetensors"
	models "github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/shm/tensor"
)

// views reads a safetensors file whose tensors are aligned.
func views(t *testing.T, path string) map[string]tensor.View {
	t.Helper()
	b := file(t, path)
	h, err := safetensors.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]tensor.View{}
	for _, e := range h.Entries {
		all[e.Name] = tensor.View{DType: e.DType, Shape: e.Shape, Data: append([]byte(nil), b[h.DataStart+e.Begin:h.DataStart+e.End]...)}
	}
	return all
}

func file(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The tutorial's text pipeline in a struct gives what PyTorch gives, after it was stored and loaded.
func TestCompose(t *testing.T) {
	dir := golden.Path(t, "textclass")
	type classifier struct {
		Tokenizer  *models.Tokenizer
		Encoder    *encoder.Model
		Classifier *nn.Linear
		Softmax    *nn.Softmax
	}
	tok, err := models.NewTokenizer(file(t, golden.Path(t, "minilm", "model", "tokenizer.json")), 128)
	if err != nil {
		t.Fatal(err)
	}
	config, err := encoder.ParseConfig(file(t, dir+"/bert/config.json"))
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := encoder.Load(nn.Default(), config, encoder.Views(views(t, dir+"/bert/model.safetensors")))
	if err != nil {
		t.Fatal(err)
	}
	head := nn.NewLinear(48, 2)
	weights := views(t, dir+"/classifier.safetensors")
	if err := nn.LoadStateDict(head, "", func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	c := daemon(t)
	if _, err := pipeline.Put(ctx, c, "textclass", &classifier{tok, encoder, head, nn.NewSoftmax()}, pipeline.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	var p classifier
	m, err := pipeline.Load(ctx, c, "textclass", &p, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var texts []string
	for _, row := range lines[struct{ Text string }](t, dir+"/texts.jsonl") {
		texts = append(texts, row.Text)
	}
	want := f32(t, dir+"/golden.safetensors", "probabilities")
	worst := 0.0
	for from := 0; from < len(texts); from += 25 {
		b, err := p.Tokenizer.Batch(texts[from : from+25])
		if err != nil {
			t.Fatal(err)
		}
		x, err := p.Encoder.Encode(ctx, b)
		if err == nil {
			x, err = x.Pick(b.Starts[:b.Len()])
		}
		if err == nil {
			x, err = p.Classifier.Forward(x)
		}
		if err == nil {
			x, err = p.Softmax.Forward(x)
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := x.Float32s()
		if err != nil {
			t.Fatal(err)
		}
		worst = max(worst, largest(got, want[2*from:2*from+50]))
	}
	t.Logf("%d texts, largest difference %.2g", len(texts), worst)
	if len(texts) != 200 || worst > 1e-5 {
		t.Errorf("%d texts, largest difference of a probability %g", len(texts), worst)
	}
}
