package encoder

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

// The published BERTs say that they are language models, call norms by their old names, repeat the decoder's table, and have
// the other head of pre-training as well.
func TestPublishedLanguageModel(t *testing.T) {
	dir := golden.Path(t, "tiny", "bert-mlm")
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseConfig(b)
	if err != nil {
		t.Fatal(err)
	}
	plain := read(t, filepath.Join(dir, "model.safetensors"))
	old := Views{}
	for name, v := range plain {
		name = strings.Replace(strings.Replace(name, "LayerNorm.weight", "LayerNorm.gamma", 1), "LayerNorm.bias", "LayerNorm.beta", 1)
		old[name] = v
	}
	width := c.sizes.Hidden
	old["cls.predictions.decoder.weight"] = plain["bert.embeddings.word_embeddings.weight"]
	old["cls.seq_relationship.weight"] = tensor.View{DType: tensor.F32, Shape: tensor.Shape{2, width}, Data: make([]byte, 8*width)}
	old["cls.seq_relationship.bias"] = tensor.View{DType: tensor.F32, Shape: tensor.Shape{2}, Data: make([]byte, 8)}
	batch := NewBatch([][]int32{{1, 2, 3, 4}})
	var all [2][]float32
	for i, w := range []Views{plain, old} {
		m, err := Load(nn.Default(), c, w)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.MaskLogits(context.Background(), batch, []int{2})
		all[i] = values(t, got, err)
	}
	for i := range all[0] {
		if all[0][i] != all[1][i] {
			t.Fatalf("logit %d: %g and %g", i, all[0][i], all[1][i])
		}
	}
	m, err := Load(nn.Default(), c, plain)
	if err != nil {
		t.Fatal(err)
	}
	for _, rows := range [][]int{{-1}, {4}} {
		if _, err := m.MaskLogits(context.Background(), batch, rows); err == nil {
			t.Errorf("rows %v of 4 tokens", rows)
		}
	}
	if _, err := m.TokenLogits(context.Background(), batch); err == nil {
		t.Error("a language model tagged")
	}
}
