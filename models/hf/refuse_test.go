package hf

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
)

func firstHidden(t *testing.T, p *text.Pipeline, ids []int32) []float32 {
	t.Helper()
	h, err := p.Model().Encode(context.Background(), encoder.NewBatch([][]int32{ids}))
	if err != nil {
		t.Fatal(err)
	}
	f, err := h.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return f[:p.Dim()]
}

// goWords are what no error for people may say.
var goWords = []string{"hf.", "bert.plain", "Go ", "struct", "cannot unmarshal", "[]", "map[", ":  ", "  ", "%!", " json:", "<nil>"}

const errorBytes = 600 // without the directory's own name

func (d modelDir) refused(kind zcerr.Kind, says ...string) {
	d.t.Helper()
	begin := time.Now()
	im, err := open(d.t, d.dir)
	if err == nil {
		im.Close()
		d.t.Fatal("it was accepted")
	}
	if took := time.Since(begin); took > 5*time.Second {
		d.t.Errorf("it took %v", took)
	}
	if got := zcerr.KindOf(err); got != kind {
		d.t.Errorf("kind %v, want %v: %v", got, kind, err)
	}
	msg := strings.ReplaceAll(err.Error(), d.dir, "DIR")
	for _, s := range says {
		if !strings.Contains(msg, s) {
			d.t.Errorf("%q is not in: %s", s, msg)
		}
	}
	for _, w := range goWords {
		if strings.Contains(msg, w) {
			d.t.Errorf("%q is in: %s", w, msg)
		}
	}
	if len(msg) > errorBytes {
		d.t.Errorf("%d bytes: %s", len(msg), msg)
	}
}

func TestRefused(t *testing.T) {
	config := func(key string, v any) func(modelDir) {
		return func(d modelDir) { d.set("config.json", map[string]any{key: v}) }
	}
	file := func(name, content string) func(modelDir) { return func(d modelDir) { d.write(name, content) } }
	for _, tt := range []struct {
		name  string
		spoil func(d modelDir)
		kind  zcerr.Kind
		says  []string
	}{
		{"config is a list", file("config.json", "[]"), zcerr.Invalid, []string{"DIR/config.json is a JSON array, an object is wanted"}},
		{"config is a text", file("config.json", `"x"`), zcerr.Invalid, []string{"config.json is a JSON string, an object is wanted"}},
		{"config is null", file("config.json", `null`), zcerr.Invalid, []string{"model_type is missing"}},
		{"config is empty", file("config.json", ``), zcerr.Invalid, []string{"config.json: byte 0"}},
		{"hidden_size is a text", config("hidden_size", "48"), zcerr.Invalid, []string{"DIR/config.json: hidden_size is a JSON string, a number is wanted"}},
		{"vocab_size is true", config("vocab_size", true), zcerr.Invalid, []string{"config.json: vocab_size is a JSON boolean, a number is wanted"}},
		{"vocab_size has a fraction", config("vocab_size", 400.5), zcerr.Invalid, []string{"vocab_size is 400.5, a whole number"}},
		{"hidden_act is a number", config("hidden_act", 1), zcerr.Invalid, []string{"hidden_act is a JSON number, a string is wanted"}},
		{"architectures is a text", config("architectures", "BertModel"), zcerr.Invalid, []string{"architectures is a JSON string, an array is wanted"}},
		{"id2label is a list", config("id2label", []int{1}), zcerr.Invalid, []string{"id2label is a JSON array, an object is wanted"}},
		{"modules is an object", file("modules.json", "{}"), zcerr.Invalid, []string{"DIR/modules.json is a JSON object, an array is wanted"}},
		{"idx is a text", file("modules.json", `[{"idx":"0"}]`), zcerr.Invalid, []string{"modules.json: idx is a JSON string, a number is wanted"}},
		{"modules of numbers", file("modules.json", `[7]`), zcerr.Invalid, []string{"modules.json", "is a JSON number, an object is wanted"}},
		{"index is a list", file(indexF, "[]"), zcerr.Invalid, []string{indexF + " is a JSON array, an object is wanted"}},
		{"weight_map is a list", file(indexF, `{"weight_map":[]}`), zcerr.Invalid, []string{indexF + ": weight_map is a JSON array, an object is wanted"}},
		{"pooling is a list", func(d modelDir) { d.sentence("Pooling"); d.write("1_Pooling/config.json", "[]") }, zcerr.Invalid, []string{"1_Pooling/config.json is a JSON array, an object is wanted"}},
		{"pooling is missing", func(d modelDir) { d.sentence("Pooling"); d.remove("1_Pooling/config.json") }, zcerr.Invalid, []string{"1_Pooling/config.json is not there"}},
		{"do_lower_case is a number", file("sentence_bert_config.json", `{"do_lower_case":1}`), zcerr.Invalid, []string{"do_lower_case is a JSON number, true or false is wanted"}},
		{"tokenizer is no JSON", file("tokenizer.json", "{{{"), zcerr.Invalid, []string{"DIR/tokenizer.json: file: "}},
		{"tokenizer is empty", file("tokenizer.json", "{}"), zcerr.Invalid, []string{"DIR/tokenizer.json: file: "}},
		{"tokenizer is a list", file("tokenizer.json", "[]"), zcerr.Invalid, []string{"DIR/tokenizer.json: file: "}},
		{"a normalizer that is not built", func(d modelDir) { d.edit("tokenizer.json", `"BertNormalizer"`, `"Morphology"`) }, zcerr.Unsupported, []string{"DIR/tokenizer.json: unsupported normalizer", "Morphology"}},
		{"a vocab.txt with a token twice", func(d modelDir) { d.write("vocab.txt", d.vocabulary()+"ab\n"); d.remove("tokenizer.json") }, zcerr.Invalid, []string{"DIR/vocab.txt: lines", `"ab"`}},
		{"a setting of vocab.txt that is not built", func(d modelDir) {
			d.write("vocab.txt", d.vocabulary())
			d.remove("tokenizer.json")
			d.set("tokenizer_config.json", map[string]any{"do_basic_tokenize": false})
		}, zcerr.Unsupported, []string{"DIR/tokenizer_config.json: do_basic_tokenize"}},
		{"no heads", config("num_attention_heads", 0), zcerr.Invalid, []string{"num_attention_heads is 0"}},
		{"layers below 0", config("num_hidden_layers", -1), zcerr.Invalid, []string{"num_hidden_layers is -1"}},
		{"a billion layers", config("num_hidden_layers", 1000000000), zcerr.Invalid, []string{"num_hidden_layers is 1000000000"}},
		{"65536 layers", config("num_hidden_layers", 65536), zcerr.Invalid, []string{"missing tensors: bert.encoder.layer.2.", "more"}},
		{"a vocabulary of 1e12", config("vocab_size", int64(1e12)), zcerr.Invalid, []string{"vocab_size is 1000000000000"}},
		{"a vocabulary in floating point", func(d modelDir) { d.edit("config.json", `"vocab_size": 400`, `"vocab_size": 1e12`) }, zcerr.Invalid, []string{"vocab_size is 1e12, a whole number"}},
		{"a vocabulary of 2^28", config("vocab_size", 1<<28), zcerr.Invalid, []string{"word_embeddings.weight is F32 [400,48], config.json asks for [268435456,48]"}},
		{"an epsilon below 0", config("layer_norm_eps", -1), zcerr.Invalid, []string{"layer_norm_eps is -1"}},
		{"another hidden_size", config("hidden_size", 64), zcerr.Invalid, []string{"word_embeddings.weight is F32 [400,48], config.json asks for [400,64]", "more"}},
		{"a large hidden_size", config("hidden_size", 1<<28), zcerr.Invalid, []string{"word_embeddings.weight", "more"}},
		{"another intermediate_size", config("intermediate_size", 97), zcerr.Invalid, []string{"intermediate.dense.weight is F32 [96,48], config.json asks for [97,48]"}},
		{"another architecture", config("model_type", "mamba"), zcerr.Unsupported, []string{`"mamba"`}},
		{"another head", config("architectures", []string{"BertForMultipleChoice"}), zcerr.Unsupported, []string{"BertForMultipleChoice"}},
		{"a tensor in the other shard", func(d modelDir) {
			m := d.shard()
			m["classifier.bias"] = map[string]string{shardA: shardB, shardB: shardA}[m["classifier.bias"]]
			d.index(m)
		}, zcerr.Invalid, []string{`"classifier.bias" is in shard model-0000`, indexF + " says model-0000"}},
		{"a tensor in both shards", func(d modelDir) {
			list := d.tensors()
			m := d.shard()
			d.weights(shardA, list)
			d.index(m)
		}, zcerr.Invalid, []string{"is in DIR/" + shardA + " and in DIR/" + shardB}},
		{"a tensor that the index leaves out", func(d modelDir) {
			m := d.shard()
			delete(m, "classifier.bias")
			d.index(m)
		}, zcerr.Invalid, []string{`tensor "classifier.bias" of shard model-0000`, "is not in " + indexF}},
		{"a tensor that no shard has", func(d modelDir) {
			m := d.shard()
			m["classifier.basis"] = shardA
			d.index(m)
		}, zcerr.Invalid, []string{`tensor "classifier.basis" is not in shard ` + shardA}},
		{"a missing shard", func(d modelDir) { d.index(d.shard()); d.remove(shardB) }, zcerr.Invalid, []string{"shard DIR/" + shardB + " is missing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDir(t)
			tt.spoil(d)
			d.refused(tt.kind, tt.says...)
		})
	}
}

// What is no file is neither waited for nor read.
func TestNoRegularFile(t *testing.T) {
	for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "modules.json", indexF, "sentence_bert_config.json", "1_Pooling/config.json", shardA} {
		for what, make := range map[string]func(d modelDir) error{
			"a named pipe":                func(d modelDir) error { return syscall.Mkfifo(d.path(name), 0o600) },
			"a directory":                 func(d modelDir) error { return os.Mkdir(d.path(name), 0o700) },
			"a device":                    func(d modelDir) error { return os.Symlink("/dev/zero", d.path(name)) },
			"leads back to itself":        func(d modelDir) error { return os.Symlink(filepath.Base(name), d.path(name)) },
			"a symbolic link to ../blobs": func(d modelDir) error { return os.Symlink("../blobs", d.path(name)) },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				d := newDir(t)
				if strings.HasPrefix(name, "1_") {
					d.sentence("Pooling")
				}
				if name == "vocab.txt" { // which is read where there is no tokenizer.json
					d.remove("tokenizer.json")
				}
				if name == shardA {
					d.index(d.shard())
				}
				if err := os.Remove(d.path(name)); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				d.check(make(d))
				d.refused(zcerr.Invalid, "DIR/"+name+" is ", what)
			})
		}
	}
	d := newDir(t)
	d.pipe("pipe.safetensors")
	if _, err := open(t, d.path("pipe.safetensors")); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "is no regular file (a named pipe)") {
		t.Errorf("got %v", err)
	}
	d.check(os.Symlink("loop", d.path("loop")))
	if _, err := open(t, d.path("loop")); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "leads back to itself") {
		t.Errorf("got %v", err)
	}
	if _, err := open(t, d.path("config.json/x")); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "a file stands where") {
		t.Errorf("got %v", err)
	}
	if _, err := open(t, d.path("nothing")); zcerr.KindOf(err) != zcerr.NotFound {
		t.Errorf("got %v", err)
	}
	l, err := net.Listen("unix", d.path("s"))
	d.check(err)
	defer l.Close()
	if _, err := open(t, d.path("s")); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "(a socket)") {
		t.Errorf("got %v", err)
	}
}

func TestDenied(t *testing.T) {
	err := cannotRead("/m/config.json", &os.PathError{Op: "open", Path: "/m/config.json", Err: syscall.EACCES})
	if zcerr.KindOf(err) != zcerr.Denied || err.Error() != "/m/config.json: permission denied" || !strings.Contains(zcerr.HintOf(err), fmt.Sprintf("uid %d may not read it", os.Geteuid())) {
		t.Errorf("%v %v", err, zcerr.HintOf(err))
	}
	if os.Geteuid() == 0 {
		t.Skip("root may read everything")
	}
	for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json", ""} {
		d := newDir(t)
		d.check(os.Chmod(d.path(name), 0))
		d.refused(zcerr.Denied, name, "permission denied")
		d.check(os.Chmod(d.path(name), 0o700))
	}
}
