package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// file is a safetensors file of a header and n data bytes.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

// entry is a tensor in a header.
func entry(name, dtype, shape string, from, to int) string {
	return fmt.Sprintf(`"%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}`, name, dtype, shape, from, to)
}

// headers are safetensors files that must be refused, each with what the error has to name.
var headers = []struct {
	name string
	data []byte
	kind zcerr.Kind
	says []string
}{
	{"empty", nil, zcerr.Invalid, []string{"header length", "0 bytes"}},
	{"cut in the length", []byte{1, 2, 3}, zcerr.Invalid, []string{"header length", "3 bytes"}},
	{"header longer than the file", append(binary.LittleEndian.AppendUint64(nil, 1000), "{}"...), zcerr.Invalid, []string{"header length", "1000 bytes", "only 2"}},
	{"header over the limit", append(binary.LittleEndian.AppendUint64(nil, 1<<40), make([]byte, 100)...), zcerr.Invalid, []string{"header length", "limit of 100000000"}},
	{"header length with the highest bit", append(binary.LittleEndian.AppendUint64(nil, 1<<63), make([]byte, 100)...), zcerr.Invalid, []string{"header length", "limit"}},
	{"no JSON", file("hello, world", 4), zcerr.Invalid, []string{"byte 8", "'h'"}},
	{"cut JSON", file(`{"a":{"dtype":"F32","shape":[1]`, 4), zcerr.Invalid, []string{"byte 39", "end of the header"}},
	{"an array", file(`[1,2]`, 0), zcerr.Invalid, []string{"byte 8", "'['"}},
	{"bytes behind the JSON", file(`{`+entry("a", "F32", "[1]", 0, 4)+`}x`, 4), zcerr.Invalid, []string{`'x' after the JSON object`}},
	{"a key twice", file(`{`+entry("a", "F32", "[1]", 0, 4)+`,`+entry("a", "F32", "[1]", 4, 8)+`}`, 8), zcerr.Invalid, []string{"duplicate key", `"a"`}},
	{"a field twice", file(`{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4), zcerr.Invalid, []string{`"a"`, "duplicate key", "dtype"}},
	{"a field in capitals", file(`{"a":{"DTYPE":"F32","shape":[1],"data_offsets":[0,4]}}`, 4), zcerr.Invalid, []string{`"a"`, "unknown key", "DTYPE"}},
	{"no dtype", file(`{"a":{"shape":[1],"data_offsets":[0,4]}}`, 4), zcerr.Invalid, []string{`"a"`, "dtype", "missing"}},
	{"unknown dtype", file(`{`+entry("a", "F128", "[1]", 0, 16)+`}`, 16), zcerr.Invalid, []string{`"a"`, "F128", "known:"}},
	{"dtype of half a byte", file(`{`+entry("a", "F4", "[2]", 0, 1)+`}`, 1), zcerr.Invalid, []string{`"a"`, "F4", "smaller than a byte"}},
	{"dtype is a number", file(`{"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}}`, 4), zcerr.Invalid, []string{`"a"`, "dtype", "want a string"}},
	{"a hole before the first", file(`{`+entry("a", "F32", "[1]", 4, 8)+`}`, 8), zcerr.Invalid, []string{`"a"`, "data_offsets", "begins at 4"}},
	{"a hole", file(`{`+entry("a", "F32", "[1]", 0, 4)+`,`+entry("b", "F32", "[1]", 8, 12)+`}`, 12), zcerr.Invalid, []string{`"b"`, "hole of 4 bytes", `"a"`}},
	{"an overlap", file(`{`+entry("a", "F32", "[2]", 0, 8)+`,`+entry("b", "F32", "[2]", 4, 12)+`}`, 12), zcerr.Invalid, []string{`"b"`, "overlaps the last 4 bytes", `"a"`}},
	{"end past the file", file(`{`+entry("a", "F32", "[4]", 0, 16)+`}`, 8), zcerr.Invalid, []string{`"a"`, "ends at 16", "8 data bytes"}},
	{"bytes behind the last", file(`{`+entry("a", "F32", "[1]", 0, 4)+`}`, 9), zcerr.Invalid, []string{`"a"`, "ends at 4", "9 data bytes"}},
	{"size is not shape times dtype", file(`{`+entry("a", "F32", "[3]", 0, 8)+`}`, 8), zcerr.Invalid, []string{`"a"`, "8 bytes", "needs 12"}},
	{"offsets turned round", file(`{`+entry("a", "F32", "[1]", 4, 0)+`}`, 4), zcerr.Invalid, []string{`"a"`, "[4,0] is no range"}},
	{"three offsets", file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}}`, 4), zcerr.Invalid, []string{`"a"`, "more than two offsets"}},
	{"a negative dimension", file(`{`+entry("a", "F32", "[-1]", 0, 4)+`}`, 4), zcerr.Invalid, []string{`"a"`, "shape", "negative number"}},
	{"a null dimension", file(`{`+entry("a", "F32", "[null]", 0, 0)+`}`, 0), zcerr.Invalid, []string{`"a"`, "shape", "want a number"}},
	{"a shape that overflows", file(`{`+entry("a", "F32", "[4294967296,4294967296,4]", 0, 0)+`}`, 0), zcerr.Invalid, []string{`"a"`, "shape"}},
	{"a number that overflows", file(`{`+entry("a", "F32", "[9223372036854775808]", 0, 4)+`}`, 4), zcerr.Invalid, []string{`"a"`, "over 9223372036854775807"}},
	{"an offset that is no integer", file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4.0]}}`, 4), zcerr.Invalid, []string{`"a"`, "data_offsets", "not an integer"}},
	{"too many dimensions", file(`{`+entry("a", "F32", "["+strings.Repeat("1,", 69)+"1]", 0, 4)+`}`, 4), zcerr.Invalid, []string{`"a"`, "dimensions"}},
	{"a control character in a name", file(`{`+entry(`a\u0007b`, "F32", "[1]", 0, 4)+`}`, 4), zcerr.Invalid, []string{"control character U+0007"}},
	{"a bare control character", file("{\"a\nb\":{}}", 4), zcerr.Invalid, []string{"byte 11", "0x0a"}},
	{"a name that is not UTF-8", file("{\"a\xff\":{}}", 4), zcerr.Invalid, []string{"byte 11", "not UTF-8"}},
	{"half a surrogate pair", file(`{"\ud800":{}}`, 4), zcerr.Invalid, []string{"surrogate"}},
	{"an empty name", file(`{`+entry("", "F32", "[1]", 0, 4)+`}`, 4), zcerr.Invalid, []string{"name is empty"}},
	{"a name over the limit", file(`{`+entry(strings.Repeat("n", 1025), "F32", "[1]", 0, 4)+`}`, 4), zcerr.Invalid, []string{"1025 bytes", "limit is 1024"}},
	{"data without a tensor", file(`{}`, 8), zcerr.Invalid, []string{"8 bytes follow"}},
	{"no tensor at all", file(`{"__metadata__":{"format":"pt"}}`, 0), zcerr.Invalid, []string{"no tensors"}},
	{"metadata that is no text", file(`{"__metadata__":{"format":1}}`, 0), zcerr.Invalid, []string{"__metadata__", "want a string"}},
}

// The kinds have these exit codes, whatever zcerr's table says.
var exits = map[zcerr.Kind]int{zcerr.Invalid: 2, zcerr.NotFound: 3, zcerr.Conflict: 4, zcerr.NoSpace: 6, zcerr.Unsupported: 10}

// refused fails unless err is of that kind, with its exit code, and says what it must.
func refused(t *testing.T, err error, kind zcerr.Kind, says []string) {
	t.Helper()
	var wrong []string
	if err == nil {
		wrong = append(wrong, "it was accepted")
	} else {
		got := zcerr.KindOf(err)
		if got != kind || got.Exit() != exits[kind] {
			wrong = append(wrong, fmt.Sprintf("%v (exit %d), want %v (exit %d): %v", got, got.Exit(), kind, exits[kind], err))
		}
		text := err.Error() + "\n" + zcerr.HintOf(err)
		for _, s := range says {
			if !strings.Contains(text, s) {
				wrong = append(wrong, fmt.Sprintf("%q is not in: %s", s, text))
			}
		}
		if strings.ContainsAny(text, "\x00\x07\x1b") || !utf8.ValidString(text) {
			wrong = append(wrong, fmt.Sprintf("the error is no text for a terminal: %q", text))
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%q", wrong)
	}
}

// bystander is a second client of the same daemon, which goes about its work.
type bystander struct {
	p    *place
	c    *client.Client
	seed uint64
}

type small struct {
	Layer *nn.Linear
	Scale float32
}

// works fails unless the daemon is at rest and serves a put and a get of this other client.
func (b *bystander) works(t *testing.T) {
	t.Helper()
	b.seed++
	want := &small{Layer: nn.NewLinear(8, 3, nn.Seed(b.seed)), Scale: float32(b.seed)}
	r, err := pipeline.Put(ctx, b.c, "bystander", want, pipeline.PutOptions{})
	if err != nil {
		t.Fatalf("another client's put: %v", err)
	}
	var got small
	m, err := pipeline.Load(ctx, b.c, r.Ref, &got, pipeline.LoadOptions{})
	if err != nil {
		t.Fatalf("another client's get: %v", err)
	}
	defer m.Close()
	for i, p := range want.Layer.Spec().Params {
		if !bytes.Equal(got.Layer.Spec().Params[i].Tensor.Data, p.Tensor.Data) || got.Scale != want.Scale {
			t.Error("another client got something else than it had put")
		}
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) { // a put that was cut is gone when the daemon has noticed
		st, err := b.c.Status(ctx)
		if err == nil && st.OpenPuts == 0 && st.Models == 1 {
			return
		}
		if err != nil || time.Since(begin) > 5*time.Second {
			t.Fatalf("%d open puts, %d models, %v; want 0, and the other client's alone", st.GetOpenPuts(), st.GetModels(), err)
		}
	}
}

func withBystander(t *testing.T) (*place, *bystander) {
	p := start(t)
	return p, &bystander{p: p, c: testdaemon.Client(t, p.socket)}
}

// importAndPut is zcctl put.
func importAndPut(c *client.Client, ref, path string) error {
	im, err := hf.Open(path)
	if err != nil {
		return err
	}
	defer im.Close()
	_, err = c.Put(ctx, ref, im.Draft, client.PutOptions{})
	return err
}

func TestMalformedSafetensors(t *testing.T) {
	p, other := withBystander(t)
	dir := t.TempDir()
	for _, tt := range headers {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, "m.safetensors")
			if err := os.WriteFile(path, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, importAndPut(p.c, "bad", path), tt.kind, append(tt.says, path))
			other.works(t)
		})
	}
}

// A model directory to spoil: test/golden/intents, a copy each.
type modelDir struct {
	t   *testing.T
	dir string
}

func (d modelDir) path(name string) string { return filepath.Join(d.dir, filepath.FromSlash(name)) }

func (d modelDir) write(name string, b []byte) {
	d.t.Helper()
	if err := os.MkdirAll(filepath.Dir(d.path(name)), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.path(name), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d modelDir) read(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(d.path(name))
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

func (d modelDir) remove(name string) {
	d.t.Helper()
	if err := os.Remove(d.path(name)); err != nil {
		d.t.Fatal(err)
	}
}

// pipe puts a named pipe where the file was.
func (d modelDir) pipe(name string) {
	d.t.Helper()
	if err := os.Remove(d.path(name)); err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	if err := syscall.Mkfifo(d.path(name), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// edit replaces text in a file; it must be there.
func (d modelDir) edit(name, old, new string) {
	d.t.Helper()
	b := d.read(name)
	if !bytes.Contains(b, []byte(old)) {
		d.t.Fatalf("%s has no %q", name, old)
	}
	d.write(name, bytes.Replace(b, []byte(old), []byte(new), 1))
}

// header changes the header of a weights file, leaving the data.
func (d modelDir) header(name string, change func(h map[string]json.RawMessage)) {
	d.t.Helper()
	b := d.read(name)
	n := 8 + binary.LittleEndian.Uint64(b)
	var h map[string]json.RawMessage
	if err := json.Unmarshal(b[8:n], &h); err != nil {
		d.t.Fatal(err)
	}
	change(h)
	text, err := json.Marshal(h)
	if err != nil {
		d.t.Fatal(err)
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	d.write(name, append(file(string(text), 0), b[n:]...))
}

// sharded makes the weights a shard with an index; files says where the index has each tensor.
func (d modelDir) sharded(files func(name string) string) {
	d.t.Helper()
	b := d.read("model.safetensors")
	var h map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+binary.LittleEndian.Uint64(b)], &h); err != nil {
		d.t.Fatal(err)
	}
	index := map[string]string{}
	for name := range h {
		if name != "__metadata__" {
			if f := files(name); f != "" {
				index[name] = f
			}
		}
	}
	text, err := json.Marshal(map[string]any{"metadata": map[string]any{}, "weight_map": index})
	if err != nil {
		d.t.Fatal(err)
	}
	d.write("model.safetensors.index.json", text)
	if err := os.Rename(d.path("model.safetensors"), d.path("model-00001-of-00001.safetensors")); err != nil {
		d.t.Fatal(err)
	}
}

const shard = "model-00001-of-00001.safetensors"

// sentence makes the directory one of sentence-transformers, with these modules after the Transformer.
func (d modelDir) sentence(modules string) {
	d.write("modules.json", []byte(`[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"}`+modules+`]`))
	d.write("1_Pooling/config.json", []byte(`{"word_embedding_dimension":48,"pooling_mode_mean_tokens":true}`))
	d.edit("config.json", "BertForSequenceClassification", "BertModel")
	b := d.read("model.safetensors")
	n := 8 + binary.LittleEndian.Uint64(b)
	var h map[string]struct {
		Dtype   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(regexp.MustCompile(`"__metadata__":\{[^}]*\},?`).ReplaceAll(b[8:n], nil), &h); err != nil {
		d.t.Fatal(err)
	}
	var entries []string // without the classifier, which no BertModel has
	var data []byte
	for name, e := range h {
		if !strings.HasPrefix(name, "classifier.") {
			shape, _ := json.Marshal(e.Shape)
			entries = append(entries, entry(name, e.Dtype, string(shape), len(data), len(data)+e.Offsets[1]-e.Offsets[0]))
			data = append(data, b[n:][e.Offsets[0]:e.Offsets[1]]...)
		}
	}
	text := "{" + strings.Join(entries, ",") + "}"
	text += strings.Repeat(" ", (8-len(text)%8)%8)
	d.write("model.safetensors", append(file(text, 0), data...))
}

const pooling = `,{"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}`

var directories = []struct {
	name  string
	spoil func(d modelDir)
	kind  zcerr.Kind
	says  []string
}{
	{"no config.json", func(d modelDir) { d.remove("config.json") }, zcerr.Invalid, []string{"has no config.json"}},
	{"config.json is cut", func(d modelDir) { d.write("config.json", d.read("config.json")[:100]) }, zcerr.Invalid, []string{"config.json", "byte 100"}},
	{"config.json is a list", func(d modelDir) { d.write("config.json", []byte("[]")) }, zcerr.Invalid, []string{"config.json", "array"}},
	{"a size is a text", func(d modelDir) { d.edit("config.json", `"vocab_size": 400`, `"vocab_size": "400"`) }, zcerr.Invalid, []string{"config.json", "vocab_size", "string"}},
	{"model_type is missing", func(d modelDir) { d.edit("config.json", "model_type", "model_kind") }, zcerr.Invalid, []string{"config.json", "model_type is missing"}},
	{"model_type is unknown", func(d modelDir) { d.edit("config.json", `"model_type": "bert"`, `"model_type": "mamba"`) }, zcerr.Unsupported, []string{"config.json", `"mamba"`, "supported are: albert, bert"}},
	{"hidden_size of another model", func(d modelDir) { d.edit("config.json", `"hidden_size": 48`, `"hidden_size": 64`) }, zcerr.Invalid, []string{"word_embeddings.weight", "[400,48]", "[400,64]"}},
	{"heads that do not divide", func(d modelDir) { d.edit("config.json", `"num_attention_heads": 4`, `"num_attention_heads": 5`) }, zcerr.Invalid, []string{"num_attention_heads is 5", "divisor of hidden_size 48"}},
	{"an unknown activation", func(d modelDir) { d.edit("config.json", `"hidden_act": "gelu"`, `"hidden_act": "snake"`) }, zcerr.Unsupported, []string{"hidden_act", "snake", "relu"}},
	{"relative positions", func(d modelDir) { d.edit("config.json", `"absolute"`, `"relative_key"`) }, zcerr.Unsupported, []string{"position_embedding_type", "relative_key"}},
	{"an unknown head", func(d modelDir) {
		d.edit("config.json", "BertForSequenceClassification", "BertForNextSentencePrediction")
	}, zcerr.Unsupported, []string{"architectures", "BertForNextSentencePrediction"}},
	{"a negative number of layers", func(d modelDir) { d.edit("config.json", `"num_hidden_layers": 2`, `"num_hidden_layers": -2`) }, zcerr.Invalid, []string{"num_hidden_layers", "-2"}},
	{"a layer too many in the config", func(d modelDir) { d.edit("config.json", `"num_hidden_layers": 2`, `"num_hidden_layers": 3`) }, zcerr.Invalid, []string{"missing", "encoder.layer.2."}},
	{"a missing tensor", func(d modelDir) {
		d.header("model.safetensors", func(h map[string]json.RawMessage) {
			h["classifier.spare"] = h["classifier.bias"]
			delete(h, "classifier.bias")
		})
	}, zcerr.Invalid, []string{"missing", "classifier.bias"}},
	{"an unexpected tensor", func(d modelDir) { d.edit("config.json", `"num_hidden_layers": 2`, `"num_hidden_layers": 1`) }, zcerr.Invalid, []string{"unexpected", "encoder.layer.1."}},
	{"weights of whole numbers", func(d modelDir) {
		d.header("model.safetensors", func(h map[string]json.RawMessage) {
			h["classifier.bias"] = bytes.Replace(h["classifier.bias"], []byte("F32"), []byte("I32"), 1)
		})
	}, zcerr.Unsupported, []string{"classifier.bias", "I32", "F32, F16 or BF16"}},
	{"weights that end early", func(d modelDir) {
		b := d.read("model.safetensors")
		d.write("model.safetensors", b[:len(b)-5])
	}, zcerr.Invalid, []string{"model.safetensors", "data bytes"}},
	{"weights that are a folder", func(d modelDir) { d.remove("model.safetensors"); d.write("model.safetensors/x", nil) }, zcerr.Invalid, []string{"model.safetensors", "no regular file"}},
	{"no weights", func(d modelDir) { d.remove("model.safetensors") }, zcerr.Invalid, []string{"neither model.safetensors nor"}},
	{"only pytorch_model.bin", func(d modelDir) { d.remove("model.safetensors"); d.write("pytorch_model.bin", []byte("PK")) }, zcerr.Invalid, []string{"pytorch_model.bin", "torch.save", "download it again"}},
	{"a shard is missing", func(d modelDir) {
		d.sharded(func(string) string { return "model-00002-of-00002.safetensors" })
	}, zcerr.Invalid, []string{"model-00002-of-00002.safetensors is missing", "index.json"}},
	{"the index leaves the directory", func(d modelDir) {
		d.sharded(func(name string) string {
			if name == "classifier.bias" {
				return "../x.safetensors"
			}
			return shard
		})
	}, zcerr.Invalid, []string{`weight_map["classifier.bias"]`, `"../x.safetensors"`}},
	{"the index names what no shard has", func(d modelDir) {
		d.sharded(func(string) string { return shard })
		d.edit("model.safetensors.index.json", `"classifier.bias"`, `"classifier.basis"`)
	}, zcerr.Invalid, []string{`"classifier.ba`, shard}},
	{"a shard has what the index does not", func(d modelDir) {
		d.sharded(func(name string) string {
			if name == "classifier.bias" {
				return ""
			}
			return shard
		})
	}, zcerr.Invalid, []string{`"classifier.bias"`, shard, "is not in"}},
	{"an empty index", func(d modelDir) { d.sharded(func(string) string { return "" }) }, zcerr.Invalid, []string{"weight_map is missing or empty"}},
	{"tokenizer.json is cut", func(d modelDir) { d.write("tokenizer.json", d.read("tokenizer.json")[:500]) }, zcerr.Invalid, []string{"tokenizer.json"}},
	{"an unsupported part of the tokenizer", func(d modelDir) { d.edit("tokenizer.json", `"WordPiece"`, `"MorphPiece"`) }, zcerr.Unsupported, []string{"tokenizer.json", "MorphPiece"}},
	{"more tokens than vocab_size", func(d modelDir) {
		d.edit("tokenizer.json", `"added_tokens": [`, `"added_tokens": [{"id":400,"content":"[NEW]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},`)
	}, zcerr.Invalid, []string{"tokenizer.json", "401 tokens", "vocab_size 400"}},
	{"tokenizer_config.json is a number", func(d modelDir) { d.write("tokenizer_config.json", []byte("7")) }, zcerr.Invalid, []string{"tokenizer_config.json", "number"}},
	{"modules.json is broken", func(d modelDir) { d.sentence(pooling); d.write("modules.json", []byte(`[{"idx":0,`)) }, zcerr.Invalid, []string{"modules.json", "byte 10"}},
	{"modules.json is empty", func(d modelDir) { d.sentence(pooling); d.write("modules.json", []byte(`[]`)) }, zcerr.Invalid, []string{"modules.json", "no modules"}},
	{"an unknown module", func(d modelDir) {
		d.sentence(`,{"idx":1,"name":"1","path":"1_CNN","type":"sentence_transformers.models.CNN"}`)
	}, zcerr.Unsupported, []string{"modules.json", "CNN", "Pooling, Dense"}},
	{"a module outside of the directory", func(d modelDir) {
		d.sentence(strings.Replace(pooling, `"1_Pooling"`, `"../1_Pooling"`, 1))
	}, zcerr.Invalid, []string{"modules.json", `"../1_Pooling"`, "leaves the directory"}},
	{"modules that begin with no Transformer", func(d modelDir) {
		d.sentence("")
		d.write("modules.json", []byte(`[{"idx":0,"name":"0","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]`))
	}, zcerr.Unsupported, []string{"modules.json", "entry 0", "Transformer"}},
	{"a pooling mode that is not built", func(d modelDir) {
		d.sentence(pooling)
		d.write("1_Pooling/config.json", []byte(`{"word_embedding_dimension":48,"pooling_mode_mean_tokens":false,"pooling_mode_median_tokens":true}`))
	}, zcerr.Unsupported, []string{"1_Pooling", "median_tokens"}},
	{"pooling of another size", func(d modelDir) {
		d.sentence(pooling)
		d.write("1_Pooling/config.json", []byte(`{"word_embedding_dimension":64,"pooling_mode_mean_tokens":true}`))
	}, zcerr.Invalid, []string{"word_embedding_dimension is 64", "hidden_size 48"}},
	{"max_seq_length is too large", func(d modelDir) {
		d.sentence(pooling)
		d.write("sentence_bert_config.json", []byte(`{"max_seq_length":512}`))
	}, zcerr.Invalid, []string{"sentence_bert_config.json", "max_seq_length is 512", "48"}},
	{"config.json is a named pipe", func(d modelDir) { d.pipe("config.json") }, zcerr.Invalid, []string{"config.json is no regular file (a named pipe)"}},
	{"weights that are a named pipe", func(d modelDir) { d.pipe("model.safetensors") }, zcerr.Invalid, []string{"model.safetensors is no regular file (a named pipe)"}},
	{"tokenizer.json is a named pipe", func(d modelDir) { d.pipe("tokenizer.json") }, zcerr.Invalid, []string{"tokenizer.json is no regular file (a named pipe)"}},
	{"modules.json is a named pipe", func(d modelDir) { d.pipe("modules.json") }, zcerr.Invalid, []string{"modules.json is no regular file (a named pipe)"}},
	{"an index that is a named pipe", func(d modelDir) { d.pipe("model.safetensors.index.json") }, zcerr.Invalid, []string{"index.json is no regular file (a named pipe)"}},
	{"a pipe instead of a directory", func(d modelDir) {
		if err := os.RemoveAll(d.dir); err != nil {
			d.t.Fatal(err)
		}
		d.pipe("")
	}, zcerr.Invalid, []string{"is no regular file (a named pipe)"}},
	{"weights that link to themselves", func(d modelDir) {
		d.remove("model.safetensors")
		if err := os.Symlink("model.safetensors", d.path("model.safetensors")); err != nil {
			d.t.Fatal(err)
		}
	}, zcerr.Invalid, []string{"model.safetensors is a symbolic link that leads back to itself"}},
	{"weights that were not downloaded", func(d modelDir) {
		d.remove("model.safetensors")
		if err := os.Symlink("../blobs/0", d.path("model.safetensors")); err != nil {
			d.t.Fatal(err)
		}
	}, zcerr.Invalid, []string{"model.safetensors is a symbolic link to ../blobs/0, which is not there"}},
	{"no attention heads", func(d modelDir) { d.edit("config.json", `"num_attention_heads": 4`, `"num_attention_heads": 0`) }, zcerr.Invalid, []string{"num_attention_heads is 0"}},
	{"65536 layers", func(d modelDir) { d.edit("config.json", `"num_hidden_layers": 2`, `"num_hidden_layers": 65536`) }, zcerr.Invalid, []string{"missing", "encoder.layer.2.", "more"}},
	{"tokenizer.json is no JSON", func(d modelDir) { d.write("tokenizer.json", []byte("{{{")) }, zcerr.Invalid, []string{"tokenizer.json"}},
	{"tokenizer.json has nothing in it", func(d modelDir) { d.write("tokenizer.json", []byte("{}")) }, zcerr.Invalid, []string{"tokenizer.json", "version"}},
	{"Normalize before Pooling", func(d modelDir) {
		d.sentence(`,{"idx":1,"name":"1","path":"2_Normalize","type":"sentence_transformers.models.Normalize"}` + strings.Replace(pooling, `"idx":1`, `"idx":2`, 1))
	}, zcerr.Unsupported, []string{"modules.json", "entry 1 is a Normalize after a Transformer"}},
	{"an empty directory", func(d modelDir) {
		all, err := os.ReadDir(d.dir)
		if err != nil {
			d.t.Fatal(err)
		}
		for _, f := range all {
			os.RemoveAll(d.path(f.Name()))
		}
	}, zcerr.Invalid, []string{"has no config.json"}},
	{"no directory", func(d modelDir) { os.RemoveAll(d.dir) }, zcerr.NotFound, []string{"is not there", "Hugging Face"}},
}

func TestMalformedDirectories(t *testing.T) {
	p, other := withBystander(t)
	source := os.DirFS(golden.Tree(t, "intents"))
	for _, tt := range directories {
		t.Run(tt.name, func(t *testing.T) {
			d := modelDir{t, filepath.Join(t.TempDir(), "model")}
			if err := os.CopyFS(d.dir, source); err != nil {
				t.Fatal(err)
			}
			tt.spoil(d)
			err := importAndPut(p.c, "bad", d.dir)
			other.works(t)
			refused(t, err, tt.kind, tt.says)
		})
	}
}

// What the cases above spoil is good before they do.
func TestUnspoiltDirectories(t *testing.T) {
	p := start(t)
	for name, change := range map[string]func(d modelDir){
		"as it is":     func(modelDir) {},
		"sharded":      func(d modelDir) { d.sharded(func(string) string { return shard }) },
		"rewritten":    func(d modelDir) { d.header("model.safetensors", func(map[string]json.RawMessage) {}) },
		"sentences":    func(d modelDir) { d.sentence(pooling) },
		"unaligned":    func(d modelDir) { d.unaligned() },
		"no tokenizer": func(d modelDir) { d.remove("tokenizer.json") },
		"other files":  func(d modelDir) { d.write("README.md", []byte("hello")) },
		"old .bin too": func(d modelDir) { d.write("pytorch_model.bin", []byte("PK")) },
		"short texts": func(d modelDir) {
			d.sentence(pooling)
			d.write("sentence_bert_config.json", []byte(`{"max_seq_length":16}`))
		},
		"an empty list": func(d modelDir) { d.write("special_tokens_map.json", []byte("{}")) },
	} {
		t.Run(name, func(t *testing.T) {
			d := modelDir{t, filepath.Join(t.TempDir(), "model")}
			if err := os.CopyFS(d.dir, os.DirFS(golden.Tree(t, "intents"))); err != nil {
				t.Fatal(err)
			}
			change(d)
			err := importAndPut(p.c, "good", d.dir)
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// unaligned gives the header an odd length, which the format allows.
func (d modelDir) unaligned() {
	b := d.read("model.safetensors")
	n := 8 + binary.LittleEndian.Uint64(b)
	d.write("model.safetensors", append(file(string(b[8:n])+"   ", 0), b[n:]...))
}

func TestMalformedReferences(t *testing.T) {
	p, other := withBystander(t)
	intents := golden.Tree(t, "intents")
	putAs := func(ref string) error { return importAndPut(p.c, ref, intents) }
	attach := func(ref string) error {
		m, err := p.c.Attach(ctx, ref)
		if err == nil {
			m.Close()
		}
		return err
	}
	remove := func(ref string) error { _, err := p.c.Remove(ctx, ref, false); return err }
	show := func(ref string) error { _, err := p.c.Show(ctx, ref); return err }
	tag := func(target string) error { _, err := p.c.Tag(ctx, "bystander", target, false); return err }
	other.works(t) // there is a bystander:v1
	digest := "sha256:" + strings.Repeat("0", 64)
	for _, tt := range []struct {
		name string
		do   func(string) error
		ref  string
		kind zcerr.Kind
		says []string
	}{
		{"put, empty", putAs, "", zcerr.Invalid, []string{"empty"}},
		{"attach, empty", attach, "", zcerr.Invalid, []string{"empty"}},
		{"put, a space", putAs, "a b", zcerr.Invalid, []string{`byte ' ' at 1`}},
		{"put, a control character", putAs, "a\x07b", zcerr.Invalid, []string{`byte '\a' at 1`}},
		{"put, not UTF-8", putAs, "a\xff", zcerr.Invalid, []string{"at 1"}},
		{"put, two colons", putAs, "a:b:c", zcerr.Invalid, []string{"a:b"}},
		{"put, an empty tag", putAs, "a:", zcerr.Invalid, []string{"tag", "empty"}},
		{"attach, a malformed digest", attach, "a@sha256:xyz", zcerr.Invalid, []string{"sha256:xyz"}},
		{"attach, another hash", attach, "a@md5:" + strings.Repeat("0", 32), zcerr.Invalid, []string{"md5"}},
		{"put, dots", putAs, "../etc/passwd", zcerr.Invalid, []string{`byte '.' at 0`}},
		{"put, dots inside", putAs, "a/../b", zcerr.Invalid, []string{`byte '.' at 0`}},
		{"put, an absolute path", putAs, "/etc/passwd", zcerr.Invalid, []string{"empty"}},
		{"put, too long", putAs, strings.Repeat("abcdefg/", 33) + "x", zcerr.Invalid, []string{"265 bytes", "255"}},
		{"put, a part too long", putAs, strings.Repeat("n", 129), zcerr.Invalid, []string{"129 bytes", "128"}},
		{"put, with a digest", putAs, "a@" + digest, zcerr.Invalid, []string{"cannot choose its digest"}},
		{"put, a tag of other bytes", putAs, "bystander:v1", zcerr.Conflict, []string{"bystander:v1", "--replace"}},
		{"attach, no such model", attach, "bystanders", zcerr.NotFound, []string{"no model bystanders", "did you mean bystander"}},
		{"attach, no such tag", attach, "bystander:prod", zcerr.NotFound, []string{"no tag prod", "v1"}},
		{"attach, no such version", attach, "bystander@" + digest, zcerr.NotFound, []string{"no version"}},
		{"show, no such model", show, "nothing", zcerr.NotFound, []string{"no model nothing", "zcctl put nothing DIR"}},
		{"remove, no such model", remove, "nothing", zcerr.NotFound, []string{"no model nothing"}},
		{"remove, bad characters", remove, "*", zcerr.Invalid, []string{`byte '*' at 0`}},
		{"tag, no tag", tag, "bystander", zcerr.Invalid, []string{"tag"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.do(tt.ref)
			other.works(t)
			refused(t, err, tt.kind, tt.says)
		})
	}
}
