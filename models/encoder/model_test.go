package encoder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

func TestConfigIsStrict(t *testing.T) {
	for _, c := range []struct {
		json, key string
		is        error
		kind      zcerr.Kind
	}{
		{`{"position_embedding_type": "relative_key"}`, "position_embedding_type", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"hidden_act": "quick_gelu"}`, "hidden_act", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"model_type": "roformer"}`, "model_type", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"architectures": ["BertForMultipleChoice"]}`, "architectures", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"is_decoder": true}`, "is_decoder", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"add_cross_attention": true}`, "add_cross_attention", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"num_attention_heads": 7}`, "num_attention_heads", gpu.ErrShape, zcerr.Invalid},
		{`{"num_attention_heads": 0}`, "num_attention_heads", gpu.ErrShape, zcerr.Invalid},
		{`{"num_hidden_layers": -1}`, "num_hidden_layers", gpu.ErrShape, zcerr.Invalid},
		{`{"num_hidden_layers": 1000000000}`, "num_hidden_layers", gpu.ErrShape, zcerr.Invalid},
		{`{"hidden_size": 0}`, "hidden_size", gpu.ErrShape, zcerr.Invalid},
		{`{"vocab_size": -3}`, "vocab_size", gpu.ErrShape, zcerr.Invalid},
		{`{"vocab_size": 1000000000000}`, "vocab_size", gpu.ErrShape, zcerr.Invalid},
		{`{"layer_norm_eps": -1}`, "layer_norm_eps", gpu.ErrShape, zcerr.Invalid},
		{`{"num_labels": -2}`, "num_labels", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "roberta", "architectures": ["BertModel"]}`, "architectures", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"model_type": "roberta", "max_position_embeddings": 2}`, "pad_token_id", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "xlm-roberta", "pad_token_id": -1}`, "pad_token_id", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "distilbert", "dim": 770}`, "n_heads", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "distilbert", "hidden_dim": 0}`, "hidden_dim", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "distilbert", "activation": "quick_gelu"}`, "activation", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"model_type": "electra", "embedding_size": -4}`, "embedding_size", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "albert", "num_hidden_groups": 13}`, "num_hidden_groups", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "albert", "inner_group_num": 0}`, "inner_group_num", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "mpnet", "num_attention_heads": 5}`, "num_attention_heads", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "deberta-v2", "relative_attention": true, "pos_att_type": "c2p|p2p"}`, "pos_att_type", gpu.ErrUnsupported, zcerr.Unsupported},
		{`{"model_type": "deberta-v2", "relative_attention": true, "position_buckets": 2}`, "position_buckets", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "deberta-v2", "relative_attention": true, "max_relative_positions": 1000000000}`, "max_relative_positions", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "deberta-v2", "conv_kernel_size": 4}`, "conv_kernel_size", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "deberta-v2", "type_vocab_size": -1}`, "type_vocab_size", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "modernbert", "global_attn_every_n_layers": 0}`, "global_attn_every_n_layers", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "modernbert", "local_attention": -128}`, "local_attention", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "modernbert", "hidden_size": 36, "num_attention_heads": 12}`, "num_attention_heads", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "modernbert", "global_rope_theta": 0}`, "global_rope_theta", gpu.ErrShape, zcerr.Invalid},
		{`{"model_type": "modernbert", "classifier_pooling": "max"}`, "classifier_pooling", gpu.ErrUnsupported, zcerr.Unsupported},
	} {
		_, err := ParseConfig([]byte(c.json))
		var e *ConfigError
		if !errors.As(err, &e) || e.Key != c.key || !errors.Is(err, c.is) || zcerr.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.key) {
			t.Errorf("%s: %v, want an error of kind %v that names %s", c.json, err, c.kind, c.key)
		}
	}
	if _, err := ParseConfig([]byte(`{"hidden_size": "large"}`)); err == nil {
		t.Error("a string was taken as a size")
	}
}

func TestConfigIsKeptAsItWas(t *testing.T) {
	path := golden.Tree(t, "intents", "config.json")
	c := readConfig(t, path)
	if n := c.keys.shared().labels(); n != 5 || c.Task() != Classify {
		t.Errorf("%d labels for %s, want 5", n, c.Task())
	}
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal(file, &want)); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %s", b)
	}
}

func TestRoles(t *testing.T) {
	for name, want := range map[string]tensor.Role{
		"bert.embeddings.word_embeddings.weight":              tensor.Lookup,
		"embeddings.position_embeddings.weight":               tensor.Lookup,
		"embeddings.token_type_embeddings.weight":             tensor.Lookup,
		"embeddings.LayerNorm.weight":                         tensor.Other,
		"embeddings.LayerNorm.gamma":                          tensor.Other,
		"embeddings.position_ids":                             tensor.Other,
		"encoder.layer.0.attention.self.query.weight":         tensor.Linear,
		"encoder.layer.0.attention.self.query.bias":           tensor.Other,
		"bert.encoder.layer.11.attention.output.dense.weight": tensor.Linear,
		"pooler.dense.weight":                                 tensor.Linear,
		"classifier.weight":                                   tensor.Linear,
		"classifier.bias":                                     tensor.Other,
	} {
		if got := Roles(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func tiny(t *testing.T) (*Config, Views) {
	t.Helper()
	dir := golden.Tree(t, "tiny", "bert")
	return readConfig(t, filepath.Join(dir, "config.json")), read(t, filepath.Join(dir, "model.safetensors"))
}

func TestLoadReports(t *testing.T) {
	c, views := tiny(t)
	delete(views, "encoder.layer.1.output.dense.bias")
	views["embeddings.position_ids"] = tensor.View{DType: tensor.I64, Shape: tensor.Shape{1, 50}, Data: make([]byte, 400)}
	views["cls.predictions.bias"] = views["pooler.dense.bias"]
	views["pooler.dense.weight"] = views["embeddings.word_embeddings.weight"]
	views["encoder.layer.0.output.dense.bias"] = tensor.View{DType: tensor.I64, Shape: tensor.Shape{36}, Data: make([]byte, 288)}
	_, err := Load(cpu.Default(), c, views)
	var e *nn.StateError
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	if len(e.Missing) != 1 || e.Missing[0] != "encoder.layer.1.output.dense.bias" || len(e.Unexpected) != 1 || e.Unexpected[0] != "cls.predictions.bias" || len(e.Wrong) != 2 {
		t.Errorf("got %+v", e)
	}
	for _, want := range []string{"load pooler.dense.weight", "[36,36]", "[211,36]", "load encoder.layer.0.output.dense.bias", "I64"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in: %v", want, err)
		}
	}
}

func TestOldNames(t *testing.T) {
	c, views := tiny(t)
	want := encode(t, c, views)
	old := Views{}
	for n, v := range views {
		n = strings.Replace(n, "LayerNorm.weight", "LayerNorm.gamma", 1)
		n = strings.Replace(n, "LayerNorm.bias", "LayerNorm.beta", 1)
		old["bert."+n] = v
	}
	got := encode(t, c, old)
	for i := range want {
		if got[i] != want[i] {
			t.Fatal("old names give another answer")
		}
	}
	m, err := Load(cpu.Default(), c, old)
	if err != nil {
		t.Fatal(err)
	}
	s := m.Spec()
	if len(s.Params) != len(old) || s.Kind != "bert" {
		t.Errorf("%d params of kind %s, want %d", len(s.Params), s.Kind, len(old))
	}
	for _, p := range s.Params {
		if v, ok := old[p.Name]; !ok || &v.Data[0] != &p.Tensor.Data[0] || p.Role != Roles(p.Name) {
			t.Errorf("%s is not that of the checkpoint", p.Name)
		}
	}
}

func encode(t *testing.T, c *Config, v Views) []float32 {
	t.Helper()
	m, err := Load(cpu.Default(), c, v)
	if err != nil {
		t.Fatal(err)
	}
	h, err := m.Encode(context.Background(), NewBatch([][]int32{{1, 2, 3}, {4}}))
	return values(t, h, err)
}

func TestBatchErrors(t *testing.T) {
	c, views := tiny(t)
	m, err := Load(cpu.Default(), c, views)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		b    Batch
		text int
		want string
	}{
		{"id", NewBatch([][]int32{{1}, {2, 211}}), 1, "token id 211, vocab_size is 211"},
		{"negative id", NewBatch([][]int32{{-1}}), 0, "token id -1"},
		{"long", NewBatch([][]int32{{1}, {2}, make([]int32, 51)}), 2, "51 tokens, the model takes 50 (max_position_embeddings)"},
		{"empty text", NewBatch([][]int32{{1}, {}}), 1, "no tokens"},
		{"type", Batch{IDs: []int32{1}, Starts: []int{0, 1}, TypeIDs: []int32{3}}, 0, "type id 3, type_vocab_size is 3"},
		{"position", Batch{IDs: []int32{1}, Starts: []int{0, 1}, Positions: []int32{50}}, 0, "position 50"},
		{"mask", Batch{IDs: []int32{1}, Starts: []int{0, 1}, Mask: []int32{1, 1}}, -1, "2 mask for 1 tokens"},
		{"no starts", Batch{IDs: []int32{1}}, -1, "starts"},
		{"starts end early", Batch{IDs: []int32{1, 2}, Starts: []int{0, 1}}, -1, "starts"},
		{"starts fall", Batch{IDs: []int32{1, 2}, Starts: []int{0, 9, 2}}, 0, "starts at 0 and ends at 9"},
	} {
		_, err := m.Encode(context.Background(), tt.b)
		var e *BatchError
		if !errors.As(err, &e) || e.Text != tt.text || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := m.Classify(context.Background(), NewBatch(nil)); !errors.Is(err, gpu.ErrUnsupported) {
		t.Errorf("classify without a classifier: %v", err)
	}
	if h, err := m.Encode(context.Background(), NewBatch(nil)); err != nil || !h.Shape().Equal(tensor.Shape{0, 36}) {
		t.Errorf("no texts: %v, %v", h, err)
	}
	if err := m.Embed(context.Background(), make([]float32, 3), NewBatch([][]int32{{1}})); err == nil {
		t.Error("embedded into too little room")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := m.Encode(ctx, NewBatch([][]int32{{1}})); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// Weights of 16 bits give what the same values give in F32.
func TestLowPrecision(t *testing.T) {
	c, views := tiny(t)
	low, wide := Views{}, Views{}
	for n, v := range views {
		f := floats(t, v)
		raw, back := make([]byte, 2*len(f)), make([]float32, len(f))
		for i, x := range f {
			top := math.Float32bits(x) >> 16
			raw[2*i], raw[2*i+1] = byte(top), byte(top>>8)
			back[i] = math.Float32frombits(top << 16)
		}
		low[n] = tensor.View{DType: tensor.BF16, Shape: v.Shape, Data: raw}
		w, err := tensor.FromFloat32s(v.Shape, back)
		if err != nil {
			t.Fatal(err)
		}
		wide[n] = w
	}
	got, want := encode(t, c, low), encode(t, c, wide)
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("value %d is %v in BF16, %v widened before", i, got[i], want[i])
		}
	}
}

// Whatever the shape of the batch and the number of threads, a model that has warmed up allocates nothing on the kernels, and
// in plain Go no more than a few closures for each layer.
func TestEmbedSteadyState(t *testing.T) {
	if testrace.Enabled {
		t.Skip("the race detector allocates")
	}
	c, views := tiny(t)
	for _, tier := range cpu.Tiers() {
		for _, threads := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d threads", tier, threads), func(t *testing.T) {
				m, err := Load(device(t, tier, gpu.Options{Threads: threads}), c, views)
				if err != nil {
					t.Fatal(err)
				}
				var batches []Batch
				for i := range 7 {
					var ids [][]int32
					for j := range 1 + i*3%5 {
						ids = append(ids, make([]int32, 1+(i*5+j*11)%30))
					}
					batches = append(batches, NewBatch(ids))
				}
				dst, n := make([]float32, 5*36), 0
				embed := func() {
					b := batches[n%len(batches)]
					n++
					if err := m.Embed(context.Background(), dst[:b.Len()*36], b); err != nil {
						t.Fatal(err)
					}
				}
				for range 5 * len(batches) {
					embed()
				}
				got := testing.AllocsPerRun(1000, embed)
				limit := 0.0
				if tier == "go" {
					limit = float64(20 + 8*c.sizes.Layers)
				}
				if got > limit {
					t.Errorf("%v allocations per call, more than %v", got, limit)
				}
			})
		}
	}
}
