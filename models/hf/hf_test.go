package hf

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// modelDir is a copy of test/golden/intents to change.
type modelDir struct {
	t   *testing.T
	dir string
}

func newDir(t *testing.T) modelDir {
	t.Helper()
	d := modelDir{t, filepath.Join(t.TempDir(), "m")}
	if err := os.CopyFS(d.dir, os.DirFS(golden.Tree(t, "intents"))); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d modelDir) path(name string) string { return filepath.Join(d.dir, name) }

func (d modelDir) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d modelDir) read(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(d.path(name))
	d.check(err)
	return b
}

func (d modelDir) write(name, content string) {
	d.t.Helper()
	d.check(os.MkdirAll(filepath.Dir(d.path(name)), 0o700))
	d.check(os.WriteFile(d.path(name), []byte(content), 0o600))
}

func (d modelDir) remove(name string) { d.t.Helper(); d.check(os.Remove(d.path(name))) }

// edit replaces text, which must be there.
func (d modelDir) edit(name, old, new string) {
	d.t.Helper()
	s := string(d.read(name))
	if !strings.Contains(s, old) {
		d.t.Fatalf("%s has no %q", name, old)
	}
	d.write(name, strings.Replace(s, old, new, 1))
}

// set makes keys of a JSON file other values; nil takes one out.
func (d modelDir) set(name string, values map[string]any) {
	d.t.Helper()
	var m map[string]any
	d.check(json.Unmarshal(d.read(name), &m))
	for k, v := range values {
		if m[k] = v; v == nil {
			delete(m, k)
		}
	}
	b, err := json.Marshal(m)
	d.check(err)
	d.write(name, string(b))
}

func (d modelDir) pipe(name string) { d.t.Helper(); d.check(syscall.Mkfifo(d.path(name), 0o600)) }

func (d modelDir) tensors() []safetensors.Named {
	d.t.Helper()
	b := d.read("model.safetensors")
	h, err := safetensors.Parse(b)
	d.check(err)
	var out []safetensors.Named
	for _, e := range h.Entries {
		out = append(out, safetensors.Named{Name: e.Name, View: tensor.View{DType: e.DType, Shape: e.Shape, Data: b[h.DataStart+e.Begin : h.DataStart+e.End]}})
	}
	return out
}

func (d modelDir) weights(name string, list []safetensors.Named) {
	d.t.Helper()
	var b bytes.Buffer
	d.check(safetensors.Write(&b, list, nil))
	d.write(name, b.String())
}

const (
	shardA = "model-00001-of-00002.safetensors"
	shardB = "model-00002-of-00002.safetensors"
	indexF = "model.safetensors.index.json"
)

// shard splits the weights into two files, every other tensor each, and gives the index of them.
func (d modelDir) shard() map[string]string {
	d.t.Helper()
	index := map[string]string{}
	var a, b []safetensors.Named
	for i, n := range d.tensors() {
		if i%2 == 0 {
			a, index[n.Name] = append(a, n), shardA
		} else {
			b, index[n.Name] = append(b, n), shardB
		}
	}
	d.weights(shardA, a)
	d.weights(shardB, b)
	d.remove("model.safetensors")
	return index
}

func (d modelDir) index(m map[string]string) {
	d.t.Helper()
	b, err := json.Marshal(map[string]any{"weight_map": m})
	d.check(err)
	d.write(indexF, string(b))
}

// sentence makes an embedding model of it: no classifier, and modules of those names after the Transformer.
func (d modelDir) sentence(kinds ...string) {
	d.t.Helper()
	d.set("config.json", map[string]any{"architectures": []string{"BertModel"}})
	d.weights("model.safetensors", slices.DeleteFunc(d.tensors(), func(n safetensors.Named) bool { return strings.HasPrefix(n.Name, "classifier.") }))
	d.modules(append([]string{"Transformer"}, kinds...)...)
	d.write("1_Pooling/config.json", `{"word_embedding_dimension":48,"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true}`)
}

func (d modelDir) modules(kinds ...string) {
	d.t.Helper()
	list := []module{}
	for i, k := range kinds {
		m := module{Idx: i, Name: fmt.Sprint(i), Type: "sentence_transformers.models." + k}
		if k == "Pooling" {
			m.Path = "1_Pooling"
		}
		list = append(list, m)
	}
	b, err := json.Marshal(list)
	d.check(err)
	d.write("modules.json", string(b))
}

// open imports the directory; a hang is a failure and not a timeout of the whole run.
func open(t *testing.T, path string) (*Import, error) {
	t.Helper()
	type result struct {
		im  *Import
		err error
	}
	c := make(chan result, 1)
	go func() { im, err := Open(path); c <- result{im, err} }()
	select {
	case r := <-c:
		return r.im, r.err
	case <-time.After(20 * time.Second):
		t.Fatalf("Open(%s) hangs", path)
		return nil, nil
	}
}

func (d modelDir) open() *Import {
	d.t.Helper()
	im, err := open(d.t, d.dir)
	if err != nil {
		d.t.Fatalf("%v\n%s", err, zcerr.HintOf(err))
	}
	d.t.Cleanup(func() { im.Close() })
	return im
}

func (d modelDir) seal() *manifest.Sealed {
	d.t.Helper()
	s, err := d.open().Draft.Seal(context.Background(), nil)
	d.check(err)
	return s
}

// heap is what was imported, read into memory and built.
type heap struct {
	draftSource
	views []tensor.View
}

func (h *heap) Config(into any) error { return json.Unmarshal(h.n.Config, into) }

func (h *heap) Has(name string) bool { return slices.Contains(h.Names(), name) }

func (h *heap) Tensor(name string, _ tensor.Shape) (tensor.View, tensor.Role, error) {
	for _, p := range h.n.Params {
		if p.Name == name {
			return h.views[p.Tensor], h.im.Draft.Tensors[p.Tensor].Role, nil
		}
	}
	return tensor.View{}, 0, fmt.Errorf("no tensor %s", name)
}

func (h *heap) Child(name string) (models.Module, error) {
	n := h.item(name)
	return models.Build(n.Impl, &heap{draftSource: draftSource{im: h.im, n: n, path: name}, views: h.views})
}

func (d modelDir) build() *text.Pipeline {
	d.t.Helper()
	im := d.open()
	h := &heap{draftSource: draftSource{im: im, n: im.Draft.Root}}
	for _, dt := range im.Draft.Tensors {
		b, err := tensor.SizeBytes(dt.DType, dt.Shape)
		d.check(err)
		data := make([]byte, b)
		_, err = dt.Data.ReadAt(data, 0)
		d.check(err)
		v, err := tensor.New(dt.DType, dt.Shape, data)
		d.check(err)
		h.views = append(h.views, v)
	}
	m, err := models.Build(im.Draft.Root.Impl, h)
	d.check(err)
	return m.(*text.Pipeline)
}

type goldenText struct {
	Text      string  `json:"text"`
	IDs       []int32 `json:"ids"`
	Predicted string  `json:"predicted"`
}

func goldenTexts(t *testing.T) []goldenText {
	t.Helper()
	f, err := os.Open(golden.Tree(t, "intents", "golden.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []goldenText
	for s := bufio.NewScanner(f); s.Scan(); {
		var g goldenText
		if err := json.Unmarshal(s.Bytes(), &g); err != nil {
			t.Fatal(err)
		}
		out = append(out, g)
	}
	if len(out) != 300 {
		t.Fatalf("%d golden texts", len(out))
	}
	return out
}

// sameIDs fails unless the pipeline gives each golden text its ids, after change.
func sameIDs(t *testing.T, p *text.Pipeline, change func(string) string) {
	t.Helper()
	all := goldenTexts(t)
	texts := make([]string, len(all))
	for i, g := range all {
		texts[i] = change(g.Text)
	}
	enc, err := p.Tokenize(texts)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range all {
		if !slices.Equal(enc[i].IDs, g.IDs) {
			t.Fatalf("%q: got %v, want %v", texts[i], enc[i].IDs, g.IDs)
		}
	}
}

func same(s string) string { return s }

func TestImport(t *testing.T) {
	d := newDir(t)
	im := d.open()
	if im.Kind != text.Kind || len(im.Notes) != 0 {
		t.Errorf("kind %s, notes %q", im.Kind, im.Notes)
	}
	want := map[string]tensor.Role{
		"bert.embeddings.word_embeddings.weight": tensor.Lookup, "bert.embeddings.position_embeddings.weight": tensor.Lookup,
		"bert.embeddings.token_type_embeddings.weight": tensor.Lookup, "bert.embeddings.LayerNorm.weight": tensor.Other,
		"bert.embeddings.LayerNorm.bias": tensor.Other, "bert.pooler.dense.weight": tensor.Linear, "bert.pooler.dense.bias": tensor.Other,
		"classifier.weight": tensor.Linear, "classifier.bias": tensor.Other,
	}
	for l := range 2 {
		for _, n := range []string{"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"} {
			want[fmt.Sprintf("bert.encoder.layer.%d.%s.weight", l, n)] = tensor.Linear
			want[fmt.Sprintf("bert.encoder.layer.%d.%s.bias", l, n)] = tensor.Other
		}
		for _, n := range []string{"attention.output.LayerNorm", "output.LayerNorm"} {
			want[fmt.Sprintf("bert.encoder.layer.%d.%s.weight", l, n)] = tensor.Other
			want[fmt.Sprintf("bert.encoder.layer.%d.%s.bias", l, n)] = tensor.Other
		}
	}
	got := map[string]tensor.Role{}
	for _, dt := range im.Draft.Tensors {
		got[dt.Names[0]] = dt.Role
	}
	if !maps.Equal(got, want) {
		t.Errorf("roles are\n%v, want\n%v", got, want)
	}
	p := d.build()
	if c := p.Config(); c.Task != text.Classify || c.MaxLength != 48 || len(c.Labels) != 5 {
		t.Errorf("config is %+v", c)
	}
	sameIDs(t, p, same)
	all := goldenTexts(t)[:40]
	var texts []string
	for _, g := range all {
		texts = append(texts, g.Text)
	}
	answers, err := p.Classify(context.Background(), texts)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range all {
		if answers[i].Label != g.Predicted {
			t.Errorf("%q is %s, want %s", g.Text, answers[i].Label, g.Predicted)
		}
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	if err := im.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

// However the same weights lie in files, they are the same version.
func TestSameDigest(t *testing.T) {
	want := newDir(t).seal()
	for name, change := range map[string]func(d modelDir){
		"copied":     func(modelDir) {},
		"two shards": func(d modelDir) { d.index(d.shard()) },
		"rewritten":  func(d modelDir) { d.weights("model.safetensors", d.tensors()) },
		"a link": func(d modelDir) {
			d.check(os.Rename(d.path("model.safetensors"), d.path("blob")))
			d.check(os.Symlink("blob", d.path("model.safetensors")))
		},
		"spaces in configs": func(d modelDir) {
			d.write("config.json", strings.ReplaceAll(string(d.read("config.json")), "\n", "\n\t"))
		},
		"a header of odd length": func(d modelDir) {
			b := d.read("model.safetensors")
			n := binary.LittleEndian.Uint64(b)
			head := append([]byte{}, b[8:8+n]...)
			for len(head)%4 != 1 {
				head = append(head, ' ')
			}
			out := append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...)
			d.write("model.safetensors", string(append(out, b[8+n:]...)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t)
			change(d)
			if got := d.seal(); got.Digest != want.Digest {
				t.Errorf("digest %v, want %v", got.Digest, want.Digest)
			}
		})
	}
}

func TestSixteenBitsStay(t *testing.T) {
	for _, dt := range []tensor.DType{tensor.F16, tensor.BF16} {
		d := newDir(t)
		want := map[string][]byte{}
		var list []safetensors.Named
		for i, n := range d.tensors() {
			b := make([]byte, len(n.Data)/2)
			for k := range b {
				b[k] = byte(k*7 + i)
			}
			list = append(list, safetensors.Named{Name: n.Name, View: tensor.View{DType: dt, Shape: n.Shape, Data: b}})
			want[n.Name] = b
		}
		d.weights("model.safetensors", list)
		s := d.seal()
		if len(s.Manifest.Tensors) != len(want) {
			t.Errorf("%v: %d tensors, want %d", dt, len(s.Manifest.Tensors), len(want))
		}
		for i, row := range s.Manifest.Tensors {
			got := make([]byte, len(want[row.Names[0]]))
			if _, err := s.Data[i].ReadAt(got, 0); err != nil || row.DType != dt || !bytes.Equal(got, want[row.Names[0]]) {
				t.Errorf("%v: %s is %v and not stored as it was, %v", dt, row.Names, row.DType, err)
			}
		}
	}
}

func TestBareFile(t *testing.T) {
	d := newDir(t)
	im, err := open(t, d.path("model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if im.Kind != TensorsKind || im.Draft.Root.Impl != TensorsKind || len(im.Draft.Tensors) != len(d.tensors()) {
		t.Errorf("kind %s, %d tensors", im.Kind, len(im.Draft.Tensors))
	}
	for _, dt := range im.Draft.Tensors {
		if dt.Role != tensor.Other {
			t.Errorf("%s has role %v", dt.Names, dt.Role)
		}
	}
}

// vocabulary is the vocab.txt of the tokenizer.json.
func (d modelDir) vocabulary() string {
	d.t.Helper()
	var f struct {
		Model struct {
			Vocab map[string]int `json:"vocab"`
		} `json:"model"`
	}
	d.check(json.Unmarshal(d.read("tokenizer.json"), &f))
	lines := make([]string, len(f.Model.Vocab))
	for w, i := range f.Model.Vocab {
		lines[i] = w
	}
	return strings.Join(lines, "\n") + "\n"
}

func TestTokenizers(t *testing.T) {
	t.Run("vocab.txt", func(t *testing.T) {
		d := newDir(t)
		d.write("vocab.txt", d.vocabulary())
		d.remove("tokenizer.json")
		p := d.build()
		sameIDs(t, p, same)
		sameIDs(t, p, strings.ToUpper) // uncased unless the config says otherwise
		d.set("tokenizer_config.json", map[string]any{"do_lower_case": false})
		enc, err := d.build().Tokenize([]string{"STORE", "store"})
		if err != nil || slices.Equal(enc[0].IDs, enc[1].IDs) {
			t.Errorf("do_lower_case false was not heard: %v", err)
		}
		d.remove("tokenizer_config.json")
		sameIDs(t, d.build(), same)
	})
	t.Run("tokenizer.json before vocab.txt", func(t *testing.T) {
		d := newDir(t)
		d.write("vocab.txt", "hello\n")
		sameIDs(t, d.build(), same)
	})
	t.Run("lower-cased by sentence-transformers", func(t *testing.T) {
		d := newDir(t)
		d.edit("tokenizer.json", `"lowercase": true`, `"lowercase": false`)
		d.write("sentence_bert_config.json", `{"do_lower_case":false}`)
		upper := []string{"STORE"}
		enc, err := d.build().Tokenize(upper)
		if err != nil {
			t.Fatal(err)
		}
		d.write("sentence_bert_config.json", `{"do_lower_case":true}`)
		p := d.build()
		if !p.Config().Lowercase {
			t.Error("do_lower_case is lost")
		}
		lower, err := p.Tokenize(upper)
		if err != nil || slices.Equal(enc[0].IDs, lower[0].IDs) {
			t.Errorf("got %v cased and lower-cased, %v", lower[0].IDs, err)
		}
		if upper[0] != "STORE" {
			t.Error("the caller's texts were changed")
		}
		sameIDs(t, p, same)
		sameIDs(t, p, strings.ToUpper)
	})
	t.Run("none", func(t *testing.T) {
		d := newDir(t)
		d.remove("tokenizer.json")
		if notes := d.open().Notes; len(notes) != 1 || !strings.Contains(notes[0], "no tokenizer") {
			t.Errorf("notes are %q", notes)
		}
		p := d.build()
		_, err := p.Tokenize([]string{"hello"})
		if zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(fmt.Sprint(err), "token ids") {
			t.Errorf("got %v", err)
		}
		if p.Model() == nil {
			t.Error("no model to give ids to")
		}
	})
}

func TestMaxLength(t *testing.T) {
	for _, tt := range []struct {
		name      string
		positions any
		tokenizer any
		sentence  string
		want      int // 0: refused
	}{
		{"the model's", 48, nil, "", 48},
		{"the tokenizer's", 48, 20, "", 20},
		{"the tokenizer's, without limit", 48, 1e30, "", 48},
		{"the tokenizer's, of no use", 48, 0, "", 48},
		{"smaller for sentences", 48, 20, `{"max_seq_length":12}`, 12},
		{"larger for sentences than the tokenizer's", 48, 20, `{"max_seq_length":40}`, 40},
		{"all there is", 48, 20, `{"max_seq_length":48}`, 48},
		{"the least", 48, nil, `{"max_seq_length":3}`, 3},
		{"not said for sentences", 48, 20, `{"max_seq_length":null}`, 20},
		{"more than the model has", 48, nil, `{"max_seq_length":49}`, 0},
		{"too few for a word", 48, nil, `{"max_seq_length":2}`, 0},
		{"no text", 48, nil, `{"max_seq_length":"12"}`, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDir(t)
			d.set("config.json", map[string]any{"max_position_embeddings": tt.positions})
			d.set("tokenizer_config.json", map[string]any{"model_max_length": tt.tokenizer})
			if tt.sentence != "" {
				d.write("sentence_bert_config.json", tt.sentence)
			}
			if tt.want == 0 {
				if _, err := open(t, d.dir); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "max_seq_length is") {
					t.Errorf("got %v", err)
				}
				return
			}
			p := d.build()
			if got := p.Config().MaxLength; got != tt.want {
				t.Errorf("max_length is %d, want %d", got, tt.want)
			}
			enc, err := p.Tokenize([]string{strings.Repeat("store ", 100)})
			if err != nil || len(enc[0].IDs) != tt.want {
				t.Errorf("%d ids of a long text, want %d, %v", len(enc[0].IDs), tt.want, err)
			}
		})
	}
}

// A config without max_position_embeddings has the 512 of the original.
func TestDefaultMaxLength(t *testing.T) {
	d := newDir(t)
	d.set("config.json", map[string]any{"max_position_embeddings": nil})
	d.set("tokenizer_config.json", map[string]any{"model_max_length": nil})
	list := d.tensors()
	for i := range list {
		if strings.HasSuffix(list[i].Name, "position_embeddings.weight") {
			list[i].View = tensor.View{DType: tensor.F32, Shape: tensor.Shape{512, 48}, Data: make([]byte, 512*48*4)}
		}
	}
	d.weights("model.safetensors", list)
	if got := d.build().Config().MaxLength; got != 512 {
		t.Errorf("max_length is %d", got)
	}
}

func TestModules(t *testing.T) {
	for _, tt := range []struct {
		kinds []string
		says  string // "": accepted
	}{
		{[]string{"Transformer"}, ""},
		{[]string{"Transformer", "Pooling"}, ""},
		{[]string{"Transformer", "Pooling", "Normalize"}, ""},
		{[]string{"Transformer", "Pooling", "Dropout"}, ""},
		{[]string{"Transformer", "Pooling", "Normalize", "Normalize"}, ""},
		{[]string{"Transformer", "Normalize", "Pooling"}, "entry 1 is a Normalize after a Transformer"},
		{[]string{"Transformer", "Pooling", "Pooling"}, "entry 2 is a Pooling after a Pooling"},
		{[]string{"Pooling", "Transformer"}, "entry 0 is a Pooling"},
		{[]string{"Transformer", "Transformer"}, "entry 1 is a Transformer"},
		{[]string{"Transformer", "Pooling", "CNN"}, `"sentence_transformers.models.CNN" is not supported`},
		{[]string{"StaticEmbedding", "Pooling"}, "entry 1 is a Pooling after a StaticEmbedding"},
	} {
		t.Run(strings.Join(tt.kinds, " "), func(t *testing.T) {
			d := newDir(t)
			d.sentence()
			d.modules(tt.kinds...)
			if tt.says != "" {
				if _, err := open(t, d.dir); zcerr.KindOf(err) != zcerr.Unsupported || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			s := d.build().Spec()
			got := []string{"Transformer"}
			for _, c := range s.Children[1:] {
				got = append(got, c.Module.Spec().Kind[3:])
			}
			if !slices.Equal(got, tt.kinds) {
				t.Errorf("steps are %v", got)
			}
			if got := d.build().Config().Task; got != text.Embed {
				t.Errorf("task is %s", got)
			}
		})
	}
	t.Run("wrong idx", func(t *testing.T) {
		d := newDir(t)
		d.sentence("Pooling")
		d.edit("modules.json", `"idx":1`, `"idx":2`)
		if _, err := open(t, d.dir); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "entry 1 has idx 2") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the Transformer in a folder", func(t *testing.T) {
		d := newDir(t)
		d.sentence("Pooling")
		want := d.seal().Digest
		for _, f := range []string{"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} {
			d.write("0_Transformer/"+f, string(d.read(f)))
			d.remove(f)
		}
		d.edit("modules.json", `"path":""`, `"path":"0_Transformer"`)
		if got := d.seal().Digest; got != want {
			t.Errorf("digest %v, want %v", got, want)
		}
		d.write("0_Transformer/sentence_bert_config.json", `{"max_seq_length":17}`)
		if got := d.build().Config().MaxLength; got != 17 {
			t.Errorf("max_length is %d, want 17", got)
		}
	})
}

func TestPooling(t *testing.T) {
	ctx, ask := context.Background(), []string{"store the parser", "help"}
	vectors := func(config string, kinds ...string) []text.Embedding {
		d := newDir(t)
		d.sentence(kinds...)
		d.write("1_Pooling/config.json", config)
		p := d.build()
		e, err := p.Embed(ctx, ask)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	const clsOld, clsNew = `{"word_embedding_dimension":48,"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}`, `{"embedding_dimension":48,"pooling_mode":"cls"}`
	const mean = `{"word_embedding_dimension":48,"pooling_mode":"mean"}`
	cls, plain := vectors(clsOld, "Pooling"), vectors(mean, "Pooling")
	again, unit := vectors(clsNew, "Pooling"), vectors(clsOld, "Pooling", "Normalize")
	for i := range ask {
		if !slices.Equal(cls[i].Vector, again[i].Vector) {
			t.Errorf("text %d: the two spellings of cls differ", i)
		}
		if slices.Equal(cls[i].Vector, plain[i].Vector) {
			t.Errorf("text %d: cls gives what mean does", i)
		}
		var n1, n2 float64
		for k, x := range cls[i].Vector {
			n1 += float64(x) * float64(x)
			n2 += float64(unit[i].Vector[k]) * float64(unit[i].Vector[k])
		}
		if n2 < 0.9999 || n2 > 1.0001 || n1 > 0.99 && n1 < 1.01 {
			t.Errorf("text %d: lengths squared are %v and, normalised, %v", i, n1, n2)
		}
	}
	// cls is the first hidden state of the encoder.
	d := newDir(t)
	d.sentence("Pooling")
	d.write("1_Pooling/config.json", clsOld)
	p := d.build()
	enc, err := p.Tokenize(ask[:1])
	if err != nil {
		t.Fatal(err)
	}
	first := firstHidden(t, p, enc[0].IDs)
	for k, x := range cls[0].Vector {
		if diff := x - first[k]; diff > 1e-5 || diff < -1e-5 {
			t.Fatalf("value %d is %v, the first hidden state has %v", k, x, first[k])
		}
	}
	for _, config := range []string{`{"pooling_mode":"sum"}`, `{"pooling_mode":["mean","sum"]}`} {
		d.write("1_Pooling/config.json", config)
		if _, err := open(t, d.dir); zcerr.KindOf(err) != zcerr.Unsupported || !strings.Contains(err.Error(), "pooling mode") {
			t.Errorf("%s: %v", config, err)
		}
	}
}
