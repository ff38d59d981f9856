package table

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/shm/tensor"
)

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

// sample is a version with a nested tree, a value, a ref, a tie, a scalar and an empty tensor.
func sample(t testing.TB, tensors int) (*manifest.Manifest, manifest.Digest) {
	t.Helper()
	d := &manifest.Draft{}
	mod := &manifest.Node{Kind: manifest.Module, Impl: "bert", Config: json.RawMessage(`{"hidden_size":8}`)}
	for i := range tensors {
		name := fmt.Sprintf("layer.%d.weight", i)
		data := []byte{byte(i), byte(i >> 8), byte(i >> 16), 0, 0, 0, 0, 0}
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{name}, DType: tensor.F32, Shape: tensor.Shape{1, 2}, Role: tensor.Linear, Data: bytes.NewReader(data)})
		mod.Params = append(mod.Params, manifest.Param{Name: name, Tensor: i})
	}
	add := func(shape tensor.Shape, names ...string) {
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: names, DType: tensor.I64, Shape: shape, Data: zeros{}})
		mod.Params = append(mod.Params, manifest.Param{Name: names[0], Tensor: len(d.Tensors) - 1})
	}
	add(tensor.Shape{}, "scalar")
	add(tensor.Shape{0, 3}, "empty")
	add(tensor.Shape{2, 1}, "tied", "alias")
	d.Root = &manifest.Node{Kind: manifest.Dict, Impl: "struct", Items: []manifest.Item{
		{Key: "heads", Node: &manifest.Node{Kind: manifest.Dict, Impl: "map", Items: []manifest.Item{
			{Key: "fr", Node: &manifest.Node{Kind: manifest.List, Items: []manifest.Item{{Key: "0", Node: mod}}}},
		}}},
		{Key: "labels", Node: &manifest.Node{Kind: manifest.Value, MediaType: "application/json", Value: []byte(`["a"]`)}},
		{Key: "nothing", Node: &manifest.Node{Kind: manifest.Value, MediaType: "text/plain", Value: []byte{}}},
		{Key: "same", Node: &manifest.Node{Kind: manifest.Ref, Ref: "heads.fr.0"}},
	}}
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s.Manifest, s.Digest
}

func encode(t testing.TB, m *manifest.Manifest, digest manifest.Digest) ([]byte, []Segment, []Location) {
	t.Helper()
	segs := []Segment{{"first", 1 << 20}, {"second", 1 << 30}}
	locs := make([]Location, len(m.Tensors))
	at := uint64(4096)
	for i := range locs {
		locs[i] = Location{Segment: i % 2, Offset: at}
		at += uint64(m.Tensors[i].Bytes())
	}
	b, err := Encode(m, digest, segs, locs)
	if err != nil {
		t.Fatal(err)
	}
	return b, segs, locs
}

func TestRoundTrip(t *testing.T) {
	m, digest := sample(t, 40)
	b, segs, locs := encode(t, m, digest)
	tab, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := tab.Verify(); err != nil {
		t.Error(err)
	}
	m2, segs2, locs2, err := tab.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(segs, segs2) || !reflect.DeepEqual(locs, locs2) {
		t.Error("segments or locations changed")
	}
	if _, d2, err := m2.Encode(); err != nil || d2 != digest {
		t.Errorf("digest %v, %v", d2, err)
	}
}

func TestLookups(t *testing.T) {
	m, digest := sample(t, 300)
	b, _, locs := encode(t, m, digest)
	tab, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Tensors {
		for _, name := range m.Tensors[i].Names {
			row, ok := tab.Lookup(name)
			if !ok || row != i {
				t.Fatalf("Lookup(%s) = %d, %v, want %d", name, row, ok, i)
			}
		}
		r, err := tab.Tensor(i)
		if err != nil {
			t.Fatal(err)
		}
		if r.Location != locs[i] || r.DType != m.Tensors[i].DType || !r.Shape.Equal(m.Tensors[i].Shape) || r.Role != m.Tensors[i].Role || r.SHA256 != m.Tensors[i].SHA256 || r.Bytes != m.Tensors[i].Bytes() {
			t.Fatalf("row %d = %+v, want %+v", i, r, m.Tensors[i])
		}
	}
	for _, missing := range []string{"", "layer", "layer.300.weight", "zzz"} {
		if _, ok := tab.Lookup(missing); ok {
			t.Errorf("Lookup(%q) found something", missing)
		}
	}
	heads, _ := tab.Root().Child("heads")
	fr, _ := heads.Child("fr")
	mod, ok := fr.Child("0")
	if !ok || mod.Impl() != "bert" || string(mod.Config()) != `{"hidden_size":8}` || mod.Kind() != manifest.Module {
		t.Fatalf("module = %+v", mod)
	}
	if row, ok := mod.Find("layer.7.weight"); !ok || m.Tensors[row].Names[0] != "layer.7.weight" {
		t.Errorf("Find = %d, %v", row, ok)
	}
	if _, ok := mod.Find("layer.7"); ok {
		t.Error("Find took a prefix")
	}
	if kids := tab.Root().Children(); len(kids) != 4 || kids[1].Key() != "labels" || string(kids[1].Value()) != `["a"]` || kids[3].Ref() != "heads.fr.0" {
		t.Errorf("children = %+v", kids)
	}
}

func TestEncodeRefuses(t *testing.T) {
	m, digest := sample(t, 1)
	segs := []Segment{{"s", 4096}}
	for _, tt := range []struct {
		name string
		loc  Location
		want string
	}{
		{"no such segment", Location{1, 0}, "segment 1 of 1"},
		{"past the end", Location{0, 4095}, "leaves"},
		{"offset overflow", Location{0, 1<<64 - 4}, "leaves"},
	} {
		locs := make([]Location, len(m.Tensors))
		for i := range locs {
			locs[i] = tt.loc
		}
		if _, err := Encode(m, digest, segs, locs); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if _, err := Encode(m, digest, segs, nil); err == nil {
		t.Error("no locations were accepted")
	}
}

// Every single bit flip is found, by the checksum or earlier, and no accessor panics on it.
func TestEveryBitFlipIsFound(t *testing.T) {
	m, digest := sample(t, 3)
	b, _, _ := encode(t, m, digest)
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if tab, err := Open(b); err == nil {
				walk(tab)
				_, _, _, _ = tab.Manifest()
				if tab.Verify() == nil {
					t.Errorf("flip of bit %d in byte %d passes the checksum", bit, i)
				}
			} else if !errors.Is(err, ErrFormat) {
				t.Errorf("byte %d: %v", i, err)
			}
			b[i] ^= 1 << bit
		}
	}
}

// walk calls every accessor on everything the table says it has.
func walk(tab *Table) {
	for i := -1; i <= min(tab.Segments(), 100); i++ {
		tab.Segment(i)
	}
	for i := -1; i <= min(tab.Tensors(), 100); i++ {
		tab.Tensor(i)
		tab.TensorNames(i)
	}
	tab.Lookup("layer.1.weight")
	tab.Lookup("")
	budget := 1000
	var visit func(n Node)
	visit = func(n Node) {
		if budget--; budget < 0 {
			return
		}
		_, _, _, _, _, _ = n.Kind(), n.Key(), n.Impl(), n.Config(), n.Value(), n.MediaType()
		for k := -1; k <= min(n.Params(), 100); k++ {
			n.Param(k)
		}
		n.Find("weight")
		for _, c := range n.Children() {
			visit(c)
		}
	}
	visit(tab.Root())
}

func FuzzOpen(f *testing.F) {
	m, digest := sample(f, 2)
	b, _, _ := encode(f, m, digest)
	f.Add(b)
	f.Add(b[:headerSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		tab, err := Open(b)
		if err != nil {
			return
		}
		walk(tab)
		_ = tab.Each(func(i int, r Tensor) {
			if sg, err := tab.Segment(r.Segment); r.Bytes > 0 && (err != nil || r.Offset > sg.Bytes || uint64(r.Bytes) > sg.Bytes-r.Offset) {
				t.Fatalf("row %d leaves its segment: %v in %v, %v", i, r, sg, err)
			}
		})
		_, _, _, _ = tab.Manifest()
	})
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{200, 100_000} {
		m, digest := sample(b, n)
		data, _, _ := encode(b, m, digest)
		b.Run(fmt.Sprint(n, "-tensors"), func(b *testing.B) {
			for b.Loop() {
				if _, err := Open(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

var _ io.ReaderAt = zeros{}
