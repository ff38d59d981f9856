package pickle

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(golden.Tree(t, "torch", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func read(b []byte) (*File, error) { return Read(bytes.NewReader(b), int64(len(b))) }

// expected is what torch has in the files.
func expected(t testing.TB) map[string]tensor.View {
	t.Helper()
	b := file(t, "expected.safetensors")
	h, err := safetensors.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]tensor.View{}
	for _, e := range h.Entries {
		all[e.Name] = tensor.View{DType: e.DType, Shape: e.Shape, Data: b[h.DataStart+e.Begin : h.DataStart+e.End]}
	}
	return all
}

func TestRead(t *testing.T) {
	want := expected(t)
	for name, tensors := range map[string]int{"state.pt": 20, "protocol4.pt": 20, "stream.pt": 20, "newer.pt": 2} {
		f, err := read(file(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(f.Tensors) != tensors {
			t.Errorf("%s: %d tensors, want %d", name, len(f.Tensors), tensors)
		}
		at := map[string]int64{}
		for i := range f.Tensors {
			g := &f.Tensors[i]
			w := want[g.Name]
			got := make([]byte, len(w.Data))
			if n, err := f.Data(g).ReadAt(got, 0); n != len(got) {
				t.Errorf("%s: %s: %d bytes, %v", name, g.Name, n, err)
			}
			if g.DType != w.DType || !g.Shape.Equal(w.Shape) || !bytes.Equal(got, w.Data) {
				t.Errorf("%s: %s is %v %v % x, torch has %v %v % x", name, g.Name, g.DType, g.Shape, got, w.DType, w.Shape, w.Data)
			}
			apart := g.Name == "columns" || g.Name == "turned" || g.Name == "cube"
			if g.Contiguous() == apart {
				t.Errorf("%s: %s contiguous: %v", name, g.Name, g.Contiguous())
			}
			at[g.Name] = g.Offset
		}
		if tensors == 20 && (at["plain"] != at["tied"] || at["plain"] != at["tied.view"] || at["plain"] == at["scalar"]) {
			t.Errorf("%s: ties lie at %v", name, at)
		}
		if err := f.Verify(context.Background()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	state := file(t, "state.pt")
	flipped := bytes.Clone(state)
	f, err := read(state)
	if err != nil {
		t.Fatal(err)
	}
	flipped[f.Tensors[0].Offset] ^= 1
	script := rezip(t, state, zip.Store, func(name string, b []byte) (string, []byte) { return name, b }, "state/code/__torch__.py")
	replaced := func(old, new string) []byte {
		return rezip(t, state, zip.Store, func(name string, b []byte) (string, []byte) {
			if strings.HasSuffix(name, "data.pkl") && !bytes.Contains(b, []byte(old)) {
				t.Fatalf("no %q in the pickle", old)
			}
			return name, bytes.ReplaceAll(b, []byte(old), []byte(new))
		})
	}
	for _, tt := range []struct {
		name string
		b    []byte
		kind zcerr.Kind
		says string
	}{
		{"a module", file(t, "module.pt"), zcerr.Unsupported, "names torch.nn.modules.container.Sequential"},
		{"a checkpoint", file(t, "checkpoint.pt"), zcerr.Unsupported, `"model" is a dict, not a tensor`},
		{"repeated elements", file(t, "repeated.pt"), zcerr.Unsupported, `"repeated": [3,100] has 300 elements on a storage of 3`},
		{"os.system", replaced("ccollections\nOrderedDict\n", "cos\nsystem\n"), zcerr.Unsupported, "names os.system"},
		{"another function of torch", replaced("_rebuild_tensor_v2", "_import_dotted_name"), zcerr.Unsupported, "names torch._utils._import_dotted_name"},
		{"TorchScript", script, zcerr.Unsupported, "TorchScript"},
		{"compressed", rezip(t, state, zip.Deflate, func(name string, b []byte) (string, []byte) { return name, b }), zcerr.Unsupported, "is compressed"},
		{"big-endian", rezip(t, state, zip.Store, func(name string, b []byte) (string, []byte) {
			if strings.HasSuffix(name, "byteorder") {
				b = []byte("big")
			}
			return name, b
		}), zcerr.Unsupported, `the order "big"`},
		{"a storage is missing", rezip(t, state, zip.Store, func(name string, b []byte) (string, []byte) {
			return strings.Replace(name, "data/0", "data/x", 1), b
		}), zcerr.Invalid, `tensor "plain": storage "0" is not in the file`},
		{"a storage is short", rezip(t, state, zip.Store, func(name string, b []byte) (string, []byte) {
			if strings.HasSuffix(name, "data/0") {
				b = b[:len(b)-4]
			}
			return name, b
		}), zcerr.Invalid, `storage "0" has 56 bytes, the pickle says 15 elements of F32`},
		{"no pickle", rezip(t, state, zip.Store, func(name string, b []byte) (string, []byte) { return strings.Replace(name, "data.pkl", "data", 1), b }), zcerr.Invalid, "has no data.pkl"},
		{"cut", state[:len(state)-100], zcerr.Invalid, "zip archive is damaged"},
		{"cut stream", file(t, "stream.pt")[:2000], zcerr.Invalid, "damaged"},
		{"no pickle at all", []byte("hello"), zcerr.Invalid, "no file of torch.save"},
		{"nothing", nil, zcerr.Invalid, "no file of torch.save"},
	} {
		_, err := read(tt.b)
		if zcerr.KindOf(err) != tt.kind || err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v of kind %v, want %q", tt.name, err, zcerr.KindOf(err), tt.says)
		}
	}
	f, err = read(flipped)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Verify(context.Background()); zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "state/data/0 has the checksum") {
		t.Errorf("a flipped bit: %v", err)
	}
	var g *GlobalError
	if _, err := read(file(t, "module.pt")); !errors.As(err, &g) || g.Module != "torch.nn.modules.container" {
		t.Errorf("%v", err)
	}
}

// rezip writes an archive anew, each entry as change gives it, and more empty entries.
func rezip(t testing.TB, b []byte, method uint16, change func(name string, b []byte) (string, []byte), more ...string) []byte {
	t.Helper()
	in, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	add := func(name string, b []byte) {
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: method})
		if err == nil {
			_, err = w.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range in.File {
		r, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		add(change(e.Name, all))
	}
	for _, name := range more {
		add(name, nil)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// archive is a state dict of a pickle and one storage of 64 bytes.
func archive(pickle []byte) []byte {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, e := range []struct {
		name string
		b    []byte
	}{{"a/data.pkl", pickle}, {"a/data/0", make([]byte, 64)}} {
		h := &zip.FileHeader{Name: e.name, CRC32: crc32.ChecksumIEEE(e.b), CompressedSize64: uint64(len(e.b)), UncompressedSize64: uint64(len(e.b))}
		if w, err := z.CreateRaw(h); err == nil {
			_, _ = w.Write(e.b)
		}
	}
	_ = z.Close()
	return out.Bytes()
}

// pickled is {"w": tensor of shape on storage 0 of 16 floats}.
func pickled(offset, shape, strides string) []byte {
	return []byte("\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ" +
		offset + shape + strides + "\x89}tRs.")
}

func TestPlaces(t *testing.T) {
	const big = "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40" // 2^62
	for _, tt := range []struct{ name, offset, shape, strides, says string }{
		{"all", "K\x00", "K\x04K\x04\x86", "K\x04K\x01\x86", ""},
		{"the last one", "K\x0f", "K\x01\x85", "K\x01\x85", ""},
		{"none behind the end", "K\x10", "K\x00\x85", "K\x01\x85", ""},
		{"beyond the end", "K\x01", "K\x04K\x04\x86", "K\x04K\x01\x86", "ends outside of its storage"},
		{"strides beyond the end", "K\x00", "K\x02K\x02\x86", "K\x0fK\x01\x86", "ends outside of its storage"},
		{"strides that overflow", "K\x00", "K\x03\x85", big + "\x85", "ends outside of its storage"},
		{"negative strides", "K\x05", "K\x02\x85", "J\xff\xff\xff\xff\x85", "ends outside of its storage"},
		{"negative offset", "J\xff\xff\xff\xff", "K\x01\x85", "K\x01\x85", "begins at element -1"},
		{"negative shape", "K\x00", "J\xff\xff\xff\xff\x85", "K\x01\x85", "is no shape"},
		{"a shape that overflows", "K\x00", big + big + "\x86", "K\x01K\x01\x86", "is no shape"},
		{"repeats", "K\x00", "K\x64\x85", "K\x00\x85", "it repeats some"},
		{"other ranks", "K\x00", "K\x01\x85", ")", "is called with"},
	} {
		f, err := read(archive(pickled(tt.offset, tt.shape, tt.strides)))
		switch {
		case tt.says == "" && (err != nil || len(f.Tensors) != 1):
			t.Errorf("%s: %v", tt.name, err)
		case tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.says)
		}
	}
}

// FuzzRead: no pickle panics or takes much memory, and what is accepted lies in the file.
func FuzzRead(f *testing.F) {
	state := file(f, "state.pt")
	z, err := zip.NewReader(bytes.NewReader(state), int64(len(state)))
	if err != nil {
		f.Fatal(err)
	}
	for _, e := range z.File {
		if strings.HasSuffix(e.Name, "data.pkl") {
			r, err := e.Open()
			if err != nil {
				f.Fatal(err)
			}
			b, _ := io.ReadAll(r)
			f.Add(b)
		}
	}
	f.Add(pickled("K\x00", "K\x04K\x04\x86", "K\x01K\x04\x86"))
	f.Add(file(f, "stream.pt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !bytes.HasPrefix(b, []byte(streamMagic)) {
			b = archive(b)
		}
		s, err := read(b)
		if err != nil {
			if zcerr.KindOf(err) == zcerr.Other {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		for i := range s.Tensors {
			g := &s.Tensors[i]
			n, err := tensor.SizeBytes(g.DType, g.Shape)
			if err != nil || n > len(b) {
				t.Fatalf("%s: %d bytes of %d, %v", g.Name, n, len(b), err)
			}
			if got, err := s.Data(g).ReadAt(make([]byte, n), 0); got != n {
				t.Fatalf("%s: %d bytes of %d: %v", g.Name, got, n, err)
			}
		}
	})
}
