package encoder

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/shm/tensor"
)

// The text pipeline of the tutorial: an encoder, the first token of each text, a Linear, softmax.
func TestTextclass(t *testing.T) {
	dir := golden.Path(t, "textclass")
	file, err := os.ReadFile(golden.Path(t, "minilm", "model", "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.FromJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	tok = tok.WithPadding(tokenizer.Padding{}).WithTruncation(tokenizer.Truncation{MaxLength: 128})
	f, err := os.Open(filepath.Join(dir, "texts.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var ids [][]int32
	for s := bufio.NewScanner(f); s.Scan(); {
		var x struct{ Text string }
		if err := json.Unmarshal(s.Bytes(), &x); err != nil {
			t.Fatal(err)
		}
		e, err := tok.Encode(x.Text)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.IDs)
	}
	if testrace.Enabled {
		ids = ids[:50]
	}
	g := read(t, filepath.Join(dir, "golden.safetensors"))
	head := read(t, filepath.Join(dir, "classifier.safetensors"))
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		m := open(t, dev, filepath.Join(dir, "bert"))
		classifier := nn.NewLinear(48, 2, nn.On(dev))
		if err := nn.LoadStateDict(classifier, "", func(n string) (tensor.View, bool) { v, ok := head[n]; return v, ok }); err != nil {
			t.Fatal(err)
		}
		var worstOf float64
		for from := 0; from < len(ids); from += 25 {
			b := NewBatch(ids[from : from+25])
			hidden, err := m.Encode(context.Background(), b)
			if err != nil {
				t.Fatal(err)
			}
			cls, err := hidden.Pick(b.Starts[:25])
			if err != nil {
				t.Fatal(err)
			}
			logits, err := classifier.Forward(cls)
			if err != nil {
				t.Fatal(err)
			}
			probabilities, err := logits.Softmax()
			if err != nil {
				t.Fatal(err)
			}
			for name, x := range map[string]*nn.Tensor{"cls": cls, "logits": logits, "probabilities": probabilities} {
				cols := x.Shape()[1]
				diff, _ := worst(t, values(t, x, nil), floats(t, g[name])[from*cols:(from+25)*cols], cols, nil)
				if diff > 1e-5 {
					t.Errorf("%s from text %d on: off by %.3g", name, from, diff)
				}
				worstOf = max(worstOf, diff)
			}
		}
		t.Logf("%d texts, largest difference %.3g", len(ids), worstOf)
	})
}

// stored is a bert as a store gives it back.
type stored struct {
	Views
	config *Config
}

func (s stored) Path() string                        { return "Model" }
func (s stored) Has(n string) bool                   { _, ok := s.Views[n]; return ok }
func (s stored) Child(string) (models.Module, error) { return nil, errors.New("no children") }
func (s stored) ChildNames() []string                { return nil }
func (s stored) Value(string) ([]byte, bool)         { return nil, false }
func (s stored) Device() gpu.Device                  { return cpu.Default() }
func (s stored) Config(into any) error {
	b, err := json.Marshal(s.config)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// What Spec describes, Build rebuilds.
func TestSpecAndBuild(t *testing.T) {
	c, views := tiny(t)
	m, err := Load(cpu.Default(), c, views)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Spec()
	again := stored{Views{}, s.Config.(*Config)}
	for _, p := range s.Params {
		again.Views[p.Name] = p.Tensor
	}
	back, err := models.Build(s.Kind, again)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBatch([][]int32{{1, 2, 3}, {4}})
	x, err := m.Encode(context.Background(), b)
	want := values(t, x, err)
	x, err = back.(*Model).Encode(context.Background(), b)
	for i, v := range values(t, x, err) {
		if v != want[i] {
			t.Fatal("the rebuilt model answers otherwise")
		}
	}
	delete(again.Views, "embeddings.word_embeddings.weight")
	if _, err := models.Build(s.Kind, again); err == nil || !strings.Contains(err.Error(), "Model: bert: missing tensors: embeddings.word_embeddings.weight") {
		t.Errorf("got %v", err)
	}
}

// One model, many goroutines, batches of different shapes.
func TestConcurrentEncode(t *testing.T) {
	c, views := tiny(t)
	m, err := Load(cpu.Default(), c, views)
	if err != nil {
		t.Fatal(err)
	}
	text := func(i int) []int32 {
		ids := make([]int32, 1+i%9)
		for j := range ids {
			ids[j] = int32((i*13 + j*7) % 211)
		}
		return ids
	}
	want := make([][]float32, 24)
	for i := range want {
		want[i] = make([]float32, 36)
		if err := m.Embed(context.Background(), want[i], NewBatch([][]int32{text(i)})); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := 0; i+1+w <= len(want); i += 1 + w {
				var ids [][]int32
				for j := range 1 + w {
					ids = append(ids, text(i+j))
				}
				got := make([]float32, len(ids)*36)
				if err := m.Embed(context.Background(), got, NewBatch(ids)); err != nil {
					t.Error(err)
					return
				}
				for k, v := range got {
					if v != want[i+k/36][k%36] {
						t.Errorf("text %d differs in a batch of %d", i+k/36, len(ids))
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
