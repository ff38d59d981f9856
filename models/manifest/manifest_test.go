package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/shm/tensor"
)

func f32(names ...string) DraftTensor {
	return DraftTensor{Names: names, DType: tensor.F32, Shape: tensor.Shape{2, 2}, Role: tensor.Linear, Data: bytes.NewReader(make([]byte, 16))}
}

func filled(b byte, names ...string) DraftTensor {
	t := f32(names...)
	t.Data = bytes.NewReader(bytes.Repeat([]byte{b}, 16))
	return t
}

// twoLayers is a struct of two linear modules, a value, and the first module once more.
func twoLayers(a, b DraftTensor) *Draft {
	mod := func(i int) *Node {
		return &Node{Kind: Module, Impl: "nn.Linear", Config: json.RawMessage(`{"bias":false}`), Params: []Param{{"weight", i}}}
	}
	return &Draft{
		Tensors: []DraftTensor{a, b},
		Root: &Node{Kind: Dict, Impl: "struct", Items: []Item{
			{"Encoder", mod(0)},
			{"Decoder", mod(1)},
			{"Temperature", &Node{Kind: Value, MediaType: "application/json", Value: []byte("0.7")}},
			{"Tied", &Node{Kind: Ref, Ref: "Encoder"}},
		}},
	}
}

func seal(t *testing.T, d *Draft) *Sealed {
	t.Helper()
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSealAndDecode(t *testing.T) {
	s := seal(t, twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight")))
	m, digest, err := Decode(s.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	if digest != s.Digest || digest != sha256.Sum256(s.Encoded) {
		t.Errorf("digests differ: %v, %v", digest, s.Digest)
	}
	if len(m.Tensors) != 2 || m.Tensors[0].Names[0] != "Decoder.weight" {
		t.Errorf("rows are not in the order of their names: %+v", m.Tensors)
	}
	for i := range m.Tensors {
		raw, _ := io.ReadAll(io.NewSectionReader(s.Data[i], 0, 16))
		if sha256.Sum256(raw) != m.Tensors[i].SHA256 {
			t.Errorf("row %d has the bytes of another", i)
		}
	}
	if m.TensorBytes() != 32 {
		t.Errorf("TensorBytes = %d", m.TensorBytes())
	}
}

func TestDigestIsLogicalContentOnly(t *testing.T) {
	base := seal(t, twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight"))).Digest
	reordered := twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight"))
	reordered.Root.Items[1], reordered.Root.Items[2] = reordered.Root.Items[2], reordered.Root.Items[1]
	if got := seal(t, reordered).Digest; got != base {
		t.Error("the order in which a struct was walked changed the digest")
	}
	for name, change := range map[string]func(*Draft){
		"a value":  func(d *Draft) { d.Root.Items[2].Node.Value = []byte("0.8") },
		"a byte":   func(d *Draft) { d.Tensors[0].Data = bytes.NewReader(append(make([]byte, 15), 1)) },
		"a shape":  func(d *Draft) { d.Tensors[0].Shape = tensor.Shape{4} },
		"a role":   func(d *Draft) { d.Tensors[0].Role = tensor.Other },
		"a name":   func(d *Draft) { d.Tensors[0].Names[0] = "Encoder.kernel" },
		"a config": func(d *Draft) { d.Root.Items[0].Node.Config = json.RawMessage(`{"bias":true}`) },
		"a kind":   func(d *Draft) { d.Root.Items[0].Node.Impl = "nn.Bilinear" },
	} {
		d := twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight"))
		change(d)
		if seal(t, d).Digest == base {
			t.Errorf("%s changed and the digest did not", name)
		}
	}
}

func TestTiedAndEqualTensorsAreOneRow(t *testing.T) {
	d := twoLayers(filled(3, "Encoder.weight"), filled(3, "Decoder.weight"))
	d.Tensors[1].Role = tensor.Lookup
	m := seal(t, d).Manifest
	if len(m.Tensors) != 1 {
		t.Fatalf("%d rows", len(m.Tensors))
	}
	row := m.Tensors[0]
	if len(row.Names) != 2 || row.Names[0] != "Decoder.weight" || row.Role != tensor.LookupLinear {
		t.Errorf("row = %+v", row)
	}
	// Equal bytes that are used in layouts with nothing in common stay apart.
	d = twoLayers(filled(3, "Encoder.weight"), filled(3, "Decoder.weight"))
	d.Tensors[1].Role = tensor.LinearT
	if m := seal(t, d).Manifest; len(m.Tensors) != 2 {
		t.Errorf("Linear and LinearT were joined: %+v", m.Tensors)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := string(seal(t, twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight"))).Encoded)
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "EOF"},
		{"not JSON", "safetensors", "invalid character"},
		{"a space", swap(`,"root"`, `, "root"`), "canonical"},
		{"trailing text", good + " ", "canonical"},
		{"unknown field", swap(`{"format":2`, `{"extra":1,"format":2`), "extra"},
		{"duplicate key", swap(`{"format":2`, `{"format":2,"format":2`), "canonical"},
		{"folded case", swap(`"dtype"`, `"DType"`), "canonical"},
		{"older format", swap(`"format":2`, `"format":1`), "format 1"},
		{"newer format", swap(`"format":2`, `"format":3`), "format 3"},
		{"no root", `{"format":2,"root":null,"tensors":[]}`, "no root"},
		{"unknown dtype", swap(`"F32"`, `"F31"`), "F31"},
		{"unknown role", swap(`"linear"`, `"bilinear"`), "bilinear"},
		{"null dimension", swap(`[2,2]`, `[null,2]`), "canonical"},
		{"negative dimension", swap(`[2,2]`, `[-2,2]`), "Decoder.weight"},
		{"overflow", swap(`[2,2]`, `[4611686018427387904,4611686018427387904]`), "overflow"},
		{"short digest", swap(`"sha256:`, `"sha256:ff`), "digest"},
		{"unknown node", swap(`"node":"ref"`, `"node":"link"`), "link"},
		{"ref to nowhere", swap(`"ref":"Encoder"`, `"ref":"Encodes"`), "Encodes"},
		{"param out of range", swap(`"tensor":1`, `"tensor":2`), "tensor 2 of 2"},
		{"unused tensor", swap(`"tensor":1`, `"tensor":0`), "belongs to no module"},
		{"config is a list", swap(`{"bias":false}`, `[]`), "config"},
		{"config spelled otherwise", swap(`{"bias":false}`, `{"z":1,"bias":false}`), "canonical"},
		{"keys out of order", swap(`"key":"Tied"`, `"key":"Aied"`), "Aied"},
		{"control character", swap(`"key":"Tied"`, "\"key\":\"Ti\\u0001d\""), "U+0001"},
		{"bad UTF-8", swap(`Encoder.weight`, "Encoder.\xffeight"), "U+FFFD"},
		{"reserved name", swap(`Encoder.weight`, "__pad__.0"), "underscores"},
		{"value without media type", swap(`"media_type":"application/json",`, ""), "media type"},
		{"deep", strings.Repeat("[", 500), "nested"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := Decode([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// withValue is a draft that has a value of n bytes beside a layer, as a directory has a tokenizer.
func withValue(n int) *Draft {
	return &Draft{
		Root: &Node{Kind: Dict, Items: []Item{
			{"layer", &Node{Kind: Module, Impl: "nn.Linear", Config: json.RawMessage(`{}`), Params: []Param{{"weight", 0}}}},
			{"tokenizer.json", &Node{Kind: Value, MediaType: "application/json", Value: bytes.Repeat([]byte("x"), n)}},
		}},
		Tensors: []DraftTensor{filled(1, "layer.weight")},
	}
}

func TestLargeValuesAreRows(t *testing.T) {
	if small := seal(t, withValue(RowValueBytes-1)); len(small.Manifest.Tensors) != 1 {
		t.Errorf("a value of %d bytes is a row", RowValueBytes-1)
	}
	d := withValue(RowValueBytes)
	s := seal(t, d)
	if len(d.Tensors) != 1 || d.Root.Items[1].Node.Params != nil {
		t.Error("the draft was changed")
	}
	if again := seal(t, d.ValueRows()); again.Digest != s.Digest {
		t.Error("a draft whose values are rows already has another digest")
	}
	if len(s.Encoded) > 2000 {
		t.Errorf("a manifest of %d bytes", len(s.Encoded))
	}
	m, _, err := Decode(s.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	n := m.Root.Items[1].Node
	row, ok := n.ValueRow()
	if !ok || n.Value != nil || n.MediaType != "application/json" {
		t.Fatalf("the node is %+v", n)
	}
	r := m.Tensors[row]
	if r.Names[0] != `["tokenizer.json"]` || r.DType != tensor.U8 || r.Bytes() != RowValueBytes || r.SHA256 != sha256.Sum256(d.Root.Items[1].Node.Value) {
		t.Errorf("the row is %+v", r)
	}
	raw, err := io.ReadAll(io.NewSectionReader(s.Data[row], 0, RowValueBytes+1))
	if err != nil || !bytes.Equal(raw, d.Root.Items[1].Node.Value) {
		t.Errorf("%d bytes, %v", len(raw), err)
	}

	good := string(s.Encoded)
	for _, tt := range []struct{ name, old, new, want string }{
		{"short row", "[65536]", "[65535]", "from 65536 on"},
		{"huge row", "[65536]", "[67108865]", "limit"},
		{"two dimensions", "[65536]", "[65536,1]", "row of U8"},
		{"other dtype", `"U8"`, `"F32"`, "row of U8"},
		{"other parameter", `"name":"bytes"`, `"name":"data"`, `one parameter "bytes"`},
		{"bytes and a row", `"media_type"`, `"value":"eA==","media_type"`, `one parameter "bytes"`},
		{"row out of range", `"tensor":0`, `"tensor":2`, "tensor 2 of 2"},
	} {
		if _, _, err := Decode([]byte(strings.Replace(good, tt.old, tt.new, 1))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want an error with %q", tt.name, err, tt.want)
		}
	}
	large := strings.Replace(string(seal(t, withValue(3)).Encoded), `"eHh4"`, `"`+base64.StdEncoding.EncodeToString(make([]byte, RowValueBytes))+`"`, 1)
	if _, _, err := Decode([]byte(large)); err == nil || !strings.Contains(err.Error(), "in a row") {
		t.Errorf("a large value in the tree: %v", err)
	}
}

func TestSealErrors(t *testing.T) {
	short := twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight"))
	short.Tensors[1].Data = bytes.NewReader(make([]byte, 15))
	if _, err := short.Seal(context.Background(), nil); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "Decoder.weight") {
		t.Errorf("short source: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := twoLayers(f32("a"), f32("b")).Seal(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := twoLayers(filled(1, "a"), filled(2, "a")).Seal(context.Background(), nil); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("one name for two tensors: %v", err)
	}
}

func TestJoin(t *testing.T) {
	for _, tt := range []struct{ path, key, want string }{
		{"", "Encoder", "Encoder"},
		{"heads", "fr", "heads.fr"},
		{"heads", "v1.0", `heads["v1.0"]`},
		{"heads", "", `heads[""]`},
	} {
		if got := Join(tt.path, tt.key); got != tt.want {
			t.Errorf("Join(%q, %q) = %s", tt.path, tt.key, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	s, err := twoLayers(filled(1, "Encoder.weight"), filled(2, "Decoder.weight")).Seal(context.Background(), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Encoded)
	f.Add([]byte(`{"format":1,"root":{"node":"dict"},"tensors":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, digest, err := Decode(b)
		if err != nil {
			return
		}
		again, d2, err := m.Encode()
		if err != nil || d2 != digest || !bytes.Equal(again, b) {
			t.Fatalf("decode and encode is not the identity: %v", err)
		}
	})
}
