package derive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }

// values are small numbers of a dtype.
func values(d tensor.DType, n int) []byte {
	b := make([]byte, n*d.Size())
	for i := range n {
		v := math.Float32bits(float32(i%251)/64 - 1.5)
		switch d {
		case tensor.F32:
			binary.LittleEndian.PutUint32(b[4*i:], v)
		case tensor.BF16:
			binary.LittleEndian.PutUint16(b[2*i:], uint16(v>>16))
		case tensor.F16:
			binary.LittleEndian.PutUint16(b[2*i:], uint16(0x3000+i%1024))
		}
	}
	return b
}

// What is read in pieces of any size is what pack makes as a whole.
func TestPanelsInPieces(t *testing.T) {
	for _, form := range []Form{Packed, BF16, Int8} {
		for _, d := range []tensor.DType{tensor.F32, tensor.F16, tensor.BF16} {
			for _, role := range []tensor.Role{tensor.Linear, tensor.LinearT, tensor.LookupLinear} {
				s := Source{Name: "w", DType: d, Role: role, Shape: tensor.Shape{50, 37}}
				data := values(d, 50*37)
				f, err := pack.ParseForm(recipes[form].name)
				if err != nil {
					t.Fatal(err)
				}
				p, err := pack.Of(f, d, role, s.Shape)
				if err != nil {
					t.Fatal(err)
				}
				want := make([]byte, p.Bytes())
				if err := p.Pack(want, data); err != nil {
					t.Fatal(err)
				}
				for _, piece := range []int{1, 7, 64, p.PanelBytes() - 1, p.PanelBytes(), p.PanelBytes() + 1, 3*p.PanelBytes() - 5, 1 << 20} {
					m, err := form.Make(s, data)
					if err != nil {
						t.Fatal(err)
					}
					if size, err := tensor.SizeBytes(m.DType, m.Shape); err != nil || size != len(want) {
						t.Fatalf("%v %v has %d bytes, want %d: %v", m.DType, m.Shape, size, len(want), err)
					}
					var got []byte
					buf := make([]byte, piece)
					for err == nil {
						var n int
						n, err = m.Read(buf)
						got = append(got, buf[:n]...)
					}
					if !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
						t.Errorf("%s of %v %v, read by %d bytes: %d bytes, %v", form, d, role, piece, len(got), err)
					}
				}
				m, err := form.Make(s, data)
				if err != nil {
					t.Fatal(err)
				}
				if err := iotest.TestReader(m, want); err != nil {
					t.Errorf("%s of %v %v: %v", form, d, role, err)
				}
			}
		}
	}
}

// An error in the middle of a weight is one of its reader, whatever the pieces, and nothing is said to have been read with it.
func TestWhatCannotBeRounded(t *testing.T) {
	s := Source{Name: "tensor h.0.w", DType: tensor.F32, Role: tensor.Linear, Shape: tensor.Shape{64, 16}}
	data := values(tensor.F32, 64*16)
	copy(data[40*16*4:], []byte{0xff, 0xff, 0xff, 0x7f}) // of the third panel
	for _, piece := range []int{100, 1 << 20} {
		m, err := Int8.Make(s, data)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{m.Reader}, make([]byte, piece))
		if !errors.Is(err, zcerr.Unsupported) || !strings.Contains(err.Error(), "tensor h.0.w: ") || zcerr.HintOf(err) == "" || n > 2*int64(m.Shape[1]*64) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestRefused(t *testing.T) {
	ok := Source{Name: "w", DType: tensor.F32, Role: tensor.Linear, Shape: tensor.Shape{4, 4}}
	with := func(f func(*Source)) Source { s := ok; f(&s); return s }
	for name, c := range map[string]struct {
		form Form
		s    Source
		data []byte
		kind zcerr.Kind
	}{
		"another dtype":          {Packed, with(func(s *Source) { s.DType = tensor.I64 }), make([]byte, 128), zcerr.Unsupported},
		"another rank":           {Packed, with(func(s *Source) { s.Shape = tensor.Shape{2, 2, 4} }), make([]byte, 64), zcerr.Unsupported},
		"too few bytes":          {Packed, ok, make([]byte, 63), zcerr.Unsupported},
		"panels without end":     {Packed, with(func(s *Source) { s.Shape = tensor.Shape{1, 2 << 20} }), make([]byte, 8<<20), zcerr.Unsupported},
		"int8 of too many":       {Int8, with(func(s *Source) { s.Shape = tensor.Shape{1, 1<<16 + 1} }), make([]byte, 4*(1<<16+1)), zcerr.Unsupported},
		"plain":                  {Plain, ok, make([]byte, 64), zcerr.Invalid},
		"no such form":           {"p17", ok, make([]byte, 64), zcerr.Invalid},
		"no tokenizer":           {Tables, Source{Name: TokenizerName}, []byte("{}"), zcerr.Unsupported},
		"a tokenizer too large":  {Tables, Source{Name: TokenizerName}, make([]byte, maxTokenizerBytes+1), zcerr.Unsupported},
		"a tokenizer of nothing": {Tables, Source{Name: TokenizerName}, nil, zcerr.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.form.Make(c.s, c.data); !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
		})
	}
	for _, name := range []string{"", "p17", "tokenizer", "Plain"} {
		if _, err := Parse(name); !errors.Is(err, zcerr.Invalid) || !strings.Contains(zcerr.HintOf(err), "plain, packed, bf16, int8") {
			t.Errorf("form %q: %v", name, err)
		}
	}
}

// Keys are apart where the bytes that are made may be.
func TestKeys(t *testing.T) {
	base := Source{Name: "w", SHA256: [32]byte{1}, DType: tensor.F32, Role: tensor.Linear, Shape: tensor.Shape{4, 8}}
	seen := map[string]string{}
	add := func(what, key string) {
		if other, dup := seen[key]; dup {
			t.Errorf("%s has the key of %s: %s", what, other, key)
		}
		seen[key] = what
		if Name(0) <= key || Name(99) <= key { // the order of a tensor's names: the key is the first
			t.Errorf("%s does not come after %s", Name(0), key)
		}
	}
	for _, f := range []Form{Packed, BF16, Int8} {
		for what, change := range map[string]func(*Source){
			"itself": func(*Source) {}, "other bytes": func(s *Source) { s.SHA256[0]++ }, "another shape": func(s *Source) { s.Shape = tensor.Shape{8, 4} },
			"another role": func(s *Source) { s.Role = tensor.LinearT }, "another dtype": func(s *Source) { s.DType = tensor.BF16; s.Shape = tensor.Shape{4, 16} },
		} {
			s := base
			change(&s)
			add(fmt.Sprint(f, " ", what), f.Key(s))
		}
		s := base
		s.Name = "another name"
		if f.Key(s) != f.Key(base) {
			t.Errorf("%s: the key depends on the name", f)
		}
	}
	add("tables", Tables.Key(Source{SHA256: [32]byte{1}}))
}

func TestWhatFormsAreMadeOf(t *testing.T) {
	square, none := tensor.Shape{4, 4}, tensor.Shape{0, 4}
	for _, f := range []Form{Packed, BF16, Int8, Plain, Tables} {
		for role, want := range map[tensor.Role]bool{tensor.Linear: true, tensor.LinearT: true, tensor.LookupLinear: true, tensor.Lookup: false, tensor.Other: false, tensor.Conv: false} {
			if got := f.OfTensor(role, square); got != (want && f != Plain && f != Tables) {
				t.Errorf("%s of role %v: %v", f, role, got)
			}
			if f.OfTensor(role, none) {
				t.Errorf("%s of nothing", f)
			}
		}
		if got := f.OfValue(TokenizerName); got != (f == Tables) || f.OfValue("vocab.txt") {
			t.Errorf("%s of a tokenizer: %v", f, got)
		}
	}
}

// FuzzMake: whatever is put, a recipe gives as many bytes as it said, the same ones again, or an error of a kind.
func FuzzMake(f *testing.F) {
	f.Add(uint8(0), uint8(0), uint8(0), uint16(17), uint16(5), []byte{0, 0, 0x80, 0x3f})
	f.Add(uint8(1), uint8(1), uint8(1), uint16(33), uint16(64), []byte{0xff, 0x7f, 1})
	f.Add(uint8(2), uint8(2), uint8(2), uint16(1), uint16(300), []byte{0, 0x7c})
	f.Add(uint8(3), uint8(0), uint8(0), uint16(0), uint16(0), []byte(`{"version":"1.0","model":{"type":"WordLevel","unk_token":"u","vocab":{"u":0}}}`))
	f.Add(uint8(3), uint8(0), uint8(0), uint16(0), uint16(0), []byte(`{"version":"1.0","model":{"type":"BPE","merges":["a b"],"vocab":{"a":0,"b":1,"ab":9}},"added_tokens":[]}`))
	forms := []Form{Packed, BF16, Int8, Tables}
	dtypes := []tensor.DType{tensor.F32, tensor.F16, tensor.BF16, tensor.U8}
	roles := []tensor.Role{tensor.Linear, tensor.LinearT, tensor.LookupLinear, tensor.Other}
	f.Fuzz(func(t *testing.T, form, dtype, role uint8, n, k uint16, data []byte) {
		s := Source{Name: "x"}
		if forms[form%4] != Tables {
			s.DType, s.Role, s.Shape = dtypes[dtype%4], roles[role%4], tensor.Shape{int(n % 100), int(k % 300)}
			if len(data) > 0 {
				size, _ := tensor.SizeBytes(s.DType, s.Shape)
				data = bytes.Repeat(data, size/len(data)+1)[:size]
			}
		}
		made := func() ([]byte, Made, error) {
			m, err := forms[form%4].Make(s, data)
			if err != nil {
				return nil, m, err
			}
			b, err := io.ReadAll(m)
			return b, m, err
		}
		b, m, err := made()
		if err != nil {
			if k := zcerr.KindOf(err); k != zcerr.Unsupported {
				t.Fatalf("%v: %v", k, err)
			}
			return
		}
		if size, err := tensor.SizeBytes(m.DType, m.Shape); err != nil || size != len(b) {
			t.Fatalf("%d bytes for %v %v", len(b), m.DType, m.Shape)
		}
		if again, _, err := made(); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("made again it is something else (%v)", err)
		}
		if forms[form%4] == Tables {
			if _, err := tokenizer.Open(b); err != nil {
				t.Fatal(err)
			}
		}
	})
}
