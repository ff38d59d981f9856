package storetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Weight is a tensor that has a role.
type Weight struct {
	Name  string
	DType tensor.DType
	Role  tensor.Role
	Shape tensor.Shape
	Seed  uint64
}

// Bytes are values between -1 and 1.
func (w Weight) Bytes() []byte {
	n, _ := w.Shape.Elements()
	size := w.DType.Size()
	b := Row{"", n * size, w.Seed}.Bytes()
	for i := range n { // no exponent that is not of a small number
		switch w.DType {
		case tensor.F32:
			bits := uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2]&0x7f)<<16 | 0x3f000000 | uint32(b[4*i+3]&0x80)<<24
			b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
		case tensor.BF16:
			b[2*i+1] = 0x3f | b[2*i+1]&0x80
		}
	}
	return b
}

// Weights are tensors of all roles that a form has to know.
func Weights() []Weight {
	return []Weight{
		{"bias", tensor.F32, tensor.Other, tensor.Shape{33}, 1},
		{"half", tensor.BF16, tensor.Linear, tensor.Shape{17, 48}, 2},
		{"linear", tensor.F32, tensor.Linear, tensor.Shape{300, 70}, 3},
		{"table", tensor.F32, tensor.Lookup, tensor.Shape{100, 64}, 4},
		{"tied", tensor.F32, tensor.LookupLinear, tensor.Shape{50, 64}, 5},
		{"turned", tensor.F32, tensor.LinearT, tensor.Shape{64, 40}, 6},
	}
}

// made reports whether a role has forms.
func (w Weight) made() bool {
	return w.Role == tensor.Linear || w.Role == tensor.LinearT || w.Role == tensor.LookupLinear
}

// at is one value of a weight, of output n and input k.
func (w Weight) at(b []byte, n, k int) float32 {
	i := n*w.Shape[1] + k
	if w.Role == tensor.LinearT {
		i = k*w.Shape[1] + n
	}
	if w.DType == tensor.BF16 {
		return math.Float32frombits(uint32(b[2*i])<<16 | uint32(b[2*i+1])<<24)
	}
	return math.Float32frombits(uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2])<<16 | uint32(b[4*i+3])<<24)
}

// panels are the F32 panels of a weight, from their definition: [ceil(N/16), K, 16].
func (w Weight) panels() []byte {
	n, k := w.Shape[0], w.Shape[1]
	if w.Role == tensor.LinearT {
		n, k = k, n
	}
	b := w.Bytes()
	out := make([]byte, (n+15)/16*k*16*4)
	for o := range n {
		for i := range k {
			v := math.Float32bits(w.at(b, o, i))
			at := 4 * ((o/16*k+i)*16 + o%16)
			out[at], out[at+1], out[at+2], out[at+3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
		}
	}
	return out
}

// tinyTokenizer is a tokenizer.json of a few words.
const tinyTokenizer = `{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Whitespace"},` +
	`"post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"[UNK]":0,"one":1,"copy":2},"unk_token":"[UNK]"}}`

// WeightsDraft is a module of weights, with a tokenizer unless that is empty.
func WeightsDraft(tokenizer string, weights ...Weight) *manifest.Draft {
	d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(`{}`)}}
	for i, w := range weights {
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{w.Name}, DType: w.DType, Shape: w.Shape, Role: w.Role, Data: bytes.NewReader(w.Bytes())})
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: w.Name, Tensor: i})
	}
	d.Root.Items = append(d.Root.Items, manifest.Item{Key: "notes", Node: &manifest.Node{Kind: manifest.Value, MediaType: "text/plain", Value: []byte("no tokenizer")}})
	if tokenizer != "" {
		d.Root.Items = append(d.Root.Items, manifest.Item{Key: derive.TokenizerName, Node: &manifest.Node{Kind: manifest.Value, MediaType: "application/json", Value: []byte(tokenizer)}})
	}
	return d
}

func putWeights(t *testing.T, s Store, ref, tokenizer string, weights ...Weight) {
	t.Helper()
	if _, err := s.Put(ref, false, WeightsDraft(tokenizer, weights...)); err != nil {
		t.Fatalf("put %s: %v", ref, err)
	}
}

var packed = store.Ask{Form: derive.Packed}

// packedRight compares what was made with what has to be.
func packedRight(t *testing.T, h *Held, weights ...Weight) {
	t.Helper()
	for _, w := range weights {
		got, ok := h.Derived[w.Name]
		switch {
		case ok != w.made():
			t.Errorf("%s of role %v: packed %v", w.Name, w.Role, ok)
		case ok && !bytes.Equal(got, w.panels()):
			t.Errorf("the panels of %s are wrong", w.Name)
		case !bytes.Equal(h.Tensors[w.Name], w.Bytes()):
			t.Errorf("the plain bytes of %s are wrong", w.Name)
		}
	}
}

// forms: what is made is right, is counted once, and is what ps, show and status say.
func forms(t *testing.T, start Start) {
	s := fresh(t, start)
	putWeights(t, s, "m", tinyTokenizer, Weights()...)
	plain := must(s.AttachAs("m", store.Ask{}))(t, "attach with nothing asked")
	defer plain.Release()
	if plain.Form != derive.Plain || len(plain.Derived) != 0 {
		t.Errorf("with nothing asked: form %s, %d made", plain.Form, len(plain.Derived))
	}
	before := must(s.Status())(t, "status")
	h := must(s.AttachAs("m", store.Ask{Form: derive.Packed, Tokenizers: true}))(t, "attach")
	defer h.Release()
	packedRight(t, h, Weights()...)
	tok, err := tokenizer.Open(h.Derived[derive.TokenizerName])
	if err != nil {
		t.Fatal(err)
	}
	if e, err := tok.Encode("one copy of"); err != nil || !slices.Equal(e.IDs, []int32{1, 2, 0}) {
		t.Errorf("tokens %v, %v", e, err)
	}
	for _, form := range []derive.Form{derive.BF16, derive.Int8} {
		other := must(s.AttachAs("m", store.Ask{Form: form}))(t, string(form))
		if len(other.Derived) != 4 || other.Form != form {
			t.Errorf("%s: %d made of 4", form, len(other.Derived))
		}
		other.Release()
	}
	var names []string
	v := must(s.Show("m"))(t, "show")
	sum := uint64(0)
	for _, f := range v.Forms {
		names = append(names, string(f.Form))
		if want := map[derive.Form]int{derive.Packed: 1, derive.Tables: 1}[f.Form]; f.Holders != want || len(f.Segments) != 1 || f.Segments[0].UsedBytes != f.Bytes {
			t.Errorf("show: %+v", f)
		}
		if f.Form == derive.Packed {
			for _, w := range Weights() {
				if w.made() {
					sum += uint64(len(w.panels()))
				}
			}
			if f.Bytes != sum {
				t.Errorf("%d bytes are packed, show says %d", sum, f.Bytes)
			}
		}
	}
	if !slices.Equal(names, []string{"bf16", "int8", "packed", "tokenizer"}) {
		t.Errorf("show: forms %v", names)
	}
	after := must(s.Status())(t, "status")
	grown := uint64(0)
	for _, f := range after.Forms {
		grown += f.Bytes
		if f.Versions != 1 {
			t.Errorf("status: %+v", f)
		}
	}
	if len(after.Forms) != 4 || after.Used != before.Used+grown || after.Segments != before.Segments+4 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	var held []string
	for _, l := range must(s.Holders("m"))(t, "ps") {
		held = append(held, string(l.Form))
	}
	if !slices.Equal(held, []string{"plain", "packed"}) {
		t.Errorf("ps: %v", held)
	}
	Settled(t, s)
}

// counting counts how often a step is reached until the test ends.
func counting(t *testing.T, step string) *atomic.Int64 {
	n := &atomic.Int64{}
	t.Cleanup(failpoint.Set(func(s string) error {
		if s == step {
			n.Add(1)
		}
		return nil
	}))
	return n
}

func formMadeOnce(t *testing.T, start Start) {
	s := fresh(t, start)
	putWeights(t, s, "m", tinyTokenizer, Weights()...)
	made := counting(t, "form.filled")
	var wg sync.WaitGroup
	held := make([]*Held, 32)
	for i := range held {
		wg.Go(func() {
			h, err := s.AttachAs("m", store.Ask{Form: derive.Packed, Tokenizers: true})
			if err != nil {
				t.Error(err)
				return
			}
			held[i] = h
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, h := range held {
		if !slices.Equal(h.Inodes, held[0].Inodes) {
			t.Errorf("segments %v and %v", h.Inodes, held[0].Inodes)
		}
		packedRight(t, h, Weights()...)
		h.Release()
	}
	if n := made.Load(); n != 2 { // weights and tables
		t.Errorf("forms were made %d times, want 2", n)
	}
	Settled(t, s)
}

func formsShare(t *testing.T, start Start) {
	s := fresh(t, start)
	one, two := Weights(), Weights()
	two[2].Seed = 50
	putWeights(t, s, "one", tinyTokenizer, one...)
	putWeights(t, s, "two", tinyTokenizer, two...)
	all := store.Ask{Form: derive.Packed, Tokenizers: true}
	a := must(s.AttachAs("one", all))(t, "attach")
	b := must(s.AttachAs("two", all))(t, "attach")
	packedRight(t, a, one...)
	packedRight(t, b, two...)
	if len(a.Inodes) != 2 || len(b.Inodes) != 3 || a.Inodes[0] != b.Inodes[0] || a.Inodes[1] != b.Inodes[2] {
		t.Errorf("segments of forms: %v and %v", a.Inodes, b.Inodes)
	}
	if v := must(s.Show("two"))(t, "show"); len(v.Forms) != 2 || v.Forms[0].Segments[1].UsedBytes != uint64(len(two[2].panels())) || v.Forms[0].Segments[0].Versions != 2 {
		t.Errorf("show: %+v", v.Forms)
	}
	a.Release()
	if _, err := s.Remove("one", false); err != nil {
		t.Fatal(err)
	}
	packedRight(t, b, two...)
	again := must(s.AttachAs("two", all))(t, "attach")
	packedRight(t, again, two...)
	again.Release()
	b.Release()
	Settled(t, s)
}

func formsRefused(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "bytes", Big()...)
	putWeights(t, s, "m", "", Weights()...)
	putWeights(t, s, "numbers", "", Weight{"w", tensor.I64, tensor.Linear, tensor.Shape{40, 40}, 1})
	putWeights(t, s, "cube", "", Weight{"w", tensor.F32, tensor.Linear, tensor.Shape{4, 40, 40}, 1})
	nan := Weight{"w", tensor.F32, tensor.Linear, tensor.Shape{40, 40}, 1}
	d := WeightsDraft("", nan)
	d.Tensors[0].Data = bytes.NewReader(bytes.Repeat([]byte{0xff}, 40*40*4))
	if _, err := s.Put("nan", false, d); err != nil {
		t.Fatal(err)
	}
	putWeights(t, s, "text", `{"version":"1.0","model":{"type":"WordSalad"}}`, Weights()...)
	made := counting(t, "form.reserved")
	for _, c := range []struct {
		ref  string
		ask  store.Ask
		kind zcerr.Kind
		says string
	}{
		{"m", store.Ask{Form: "p17"}, zcerr.Invalid, `no form "p17"`},
		{"m", store.Ask{Form: derive.Tables}, zcerr.Invalid, `no form "tokenizer"`},
		{"bytes", packed, zcerr.Unsupported, "no weight is multiplied"},
		{"numbers", packed, zcerr.Unsupported, "tensor w: pack: a weight of I64"},
		{"cube", packed, zcerr.Unsupported, "not two-dimensional"},
		{"nan", store.Ask{Form: derive.Int8}, zcerr.Unsupported, "tensor w"},
		{"text", store.Ask{Tokenizers: true}, zcerr.Unsupported, "WordSalad"},
		{"none", packed, zcerr.NotFound, ""},
	} {
		for range 2 { // the second time it is remembered
			_, err := s.AttachAs(c.ref, c.ask)
			expect(t, fmt.Sprint(c.ref, c.ask), err, c.kind, c.says)
		}
	}
	if n := made.Load(); n != 1 { // of nan, which is seen only when its bytes are read
		t.Errorf("%d times something was begun in vain", n)
	}
	for _, ref := range []string{"bytes", "numbers", "nan", "text"} { // and all are served as they are
		must(s.Attach(ref))(t, ref).Release()
	}
	if h, err := s.AttachAs("m", store.Ask{Tokenizers: true}); err != nil || len(h.Derived) != 0 {
		t.Errorf("tables of what has no tokenizer: %v", err)
	} else {
		h.Release()
	}
	if st := must(s.Status())(t, "status"); len(st.Forms) != 0 || st.Leases != 0 {
		t.Errorf("left behind: %+v", st)
	}
	Settled(t, s)
}

func formsMakeRoom(t *testing.T, start Start) {
	big := []Weight{{"w", tensor.F32, tensor.Linear, tensor.Shape{1024, 256}, 1}} // 1 MiB, and as much packed
	s, stop := start(t, Options{Dir: Dir(t), MaxBytes: 5 << 19})                  // 2.5 MiB
	t.Cleanup(stop)
	putWeights(t, s, "m", "", big...)
	h := must(s.AttachAs("m", packed))(t, "attach")
	_, err := s.AttachAs("m", store.Ask{Form: derive.BF16})
	expect(t, "what does not fit", err, zcerr.NoSpace, "left of the budget")
	if v := must(s.Show("m"))(t, "show"); len(v.Forms) != 1 || v.Forms[0].Holders != 1 {
		t.Errorf("a form that is held was dropped, in vain: %+v", v.Forms)
	}
	packedRight(t, h, big...)
	h.Release()
	// Now nobody holds it.
	must(s.AttachAs("m", store.Ask{Form: derive.BF16}))(t, "attach when there is room to make").Release()
	if v := must(s.Show("m"))(t, "show"); len(v.Forms) != 1 || v.Forms[0].Form != derive.BF16 {
		t.Errorf("in memory: %+v", v.Forms)
	}
	again := must(s.AttachAs("m", packed))(t, "made again")
	packedRight(t, again, big...)
	again.Release()
	Put(t, s, "n", Row{"x", 1 << 20, 2}) // pushes the form out, and no version
	if st := must(s.Status())(t, "status"); len(st.Forms) != 0 || st.Versions != 2 {
		t.Errorf("after a put that needs room: %+v", st)
	}
	Settled(t, s)
}

func formsAndRemove(t *testing.T, start Start) {
	s := fresh(t, start)
	putWeights(t, s, "m", tinyTokenizer, Weights()...)
	used := must(s.Status())(t, "status").Used
	h := must(s.AttachAs("m", store.Ask{Form: derive.Packed, Tokenizers: true}))(t, "attach")
	used2 := must(s.Status())(t, "status").Used
	rm := must(s.Remove("m", false))(t, "rm")
	if rm.Freed != 0 || rm.Held != used2 || used2 <= used {
		t.Errorf("held by a lease: %+v of %d", rm, used2)
	}
	st := must(s.Status())(t, "status")
	if st.Used != 0 || st.Held != used2 || len(st.Forms) != 0 {
		t.Errorf("after rm: %+v", st)
	}
	packedRight(t, h, Weights()...)
	h.Release()
	Settled(t, s)
	if st := must(s.Status())(t, "status"); st.Held != 0 {
		t.Errorf("after the last lease: %+v", st)
	}
	putWeights(t, s, "m", tinyTokenizer, Weights()...)
	must(s.AttachAs("m", packed))(t, "attach").Release()
	if rm := must(s.Remove("m", false))(t, "rm"); rm.Freed == 0 || rm.Held != 0 {
		t.Errorf("held by nobody: %+v", rm)
	}
	Settled(t, s)
}

// formsAndRestart: what was made is taken over, since workers may have it mapped.
func formsAndRestart(t *testing.T, start Start) {
	dir := Dir(t)
	s, stop := start(t, Options{Dir: dir})
	all := store.Ask{Form: derive.Packed, Tokenizers: true}
	putWeights(t, s, "m", tinyTokenizer, Weights()...)
	h := must(s.AttachAs("m", all))(t, "attach")
	inodes := h.Inodes
	h.Release()
	before := must(s.Status())(t, "status")
	stop()
	s, stop = start(t, Options{Dir: dir})
	t.Cleanup(stop)
	made := counting(t, "form.filled")
	after := must(s.Status())(t, "status")
	if after.Used != before.Used || fmt.Sprint(after.Forms) != fmt.Sprint(before.Forms) || after.Segments != before.Segments {
		t.Errorf("before %+v, after %+v", before, after)
	}
	h = must(s.AttachAs("m", all))(t, "attach")
	defer h.Release()
	packedRight(t, h, Weights()...)
	if made.Load() != 0 || !slices.Equal(h.Inodes, inodes) && before.Backing != "memfd" { // which are opened anew
		t.Errorf("made again %d times; segments %v, then %v", made.Load(), inodes, h.Inodes)
	}
	Settled(t, s)
}

// formDamaged: verify finds it and drops it, the version is served as before, and the next attach has it made again.
func formDamaged(t *testing.T, start Start) {
	s := fresh(t, start)
	putWeights(t, s, "m", "", Weights()...)
	dir := must(s.Status())(t, "status")
	if dir.Backing == shm.KindMemfd {
		return // nobody can damage it, this test included
	}
	plain, err := filepath.Glob(filepath.Join(dir.Directory, "s-*"))
	if err != nil {
		t.Fatal(err)
	}
	must(s.AttachAs("m", packed))(t, "attach").Release()
	if v := must(s.Verify("m"))(t, "verify"); len(v.Forms) != 0 || len(v.Damaged) != 0 {
		t.Errorf("a good form: %+v", v)
	}
	segs, err := filepath.Glob(filepath.Join(dir.Directory, "s-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, sg := range segs {
		if !slices.Contains(plain, sg) {
			flip(t, sg, -1)
		}
	}
	v := must(s.Verify("m"))(t, "verify")
	if len(v.Forms) != 1 || !strings.HasPrefix(v.Forms[0], "packed "+derive.Packed.Recipe()+"/") || len(v.Damaged) != 0 {
		t.Errorf("a flipped bit: %+v", v)
	}
	h := must(s.AttachAs("m", packed))(t, "attach")
	packedRight(t, h, Weights()...)
	h.Release()
	Settled(t, s)
}

// formsByMany: puts, removals and attaches in all forms of versions that share weights, in a budget that has no room for all.
// Whatever happens, what somebody holds is right, and at the end everything is accounted for.
func formsByMany(t *testing.T, start Start) {
	s, stop := start(t, Options{Dir: Dir(t), MaxBytes: 500 << 10})
	t.Cleanup(stop)
	versions := make([][]Weight, 3)
	for i := range versions {
		versions[i] = Weights()
		versions[i][2].Seed = uint64(60 + i)
	}
	var wg sync.WaitGroup
	var attached, full atomic.Int64
	for g := range 6 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 2))
			for range 40 {
				i := rng.IntN(len(versions))
				name := fmt.Sprintf("m%d", i)
				switch rng.IntN(6) {
				case 0:
					if _, err := s.Remove(name, true); err != nil && !errors.Is(err, zcerr.NotFound) {
						t.Error(err)
					}
				case 1:
					_, err := s.Put(name, false, WeightsDraft(tinyTokenizer, versions[i]...))
					if errors.Is(err, zcerr.NoSpace) {
						full.Add(1)
					} else if err != nil && !errors.Is(err, zcerr.Conflict) {
						t.Error(err)
					}
				default:
					ask := store.Ask{Form: derive.Weights[rng.IntN(4)], Tokenizers: rng.IntN(2) == 0}
					h, err := s.AttachAs(name, ask)
					switch {
					case errors.Is(err, zcerr.NoSpace):
						full.Add(1)
						continue
					case errors.Is(err, zcerr.NotFound):
						continue
					case err != nil:
						t.Error(err)
						continue
					}
					attached.Add(1)
					if h.Form != ask.Form || (h.Derived[derive.TokenizerName] != nil) != ask.Tokenizers {
						t.Errorf("asked %v, got %s and %d things that were made", ask, h.Form, len(h.Derived))
					}
					delete(h.Derived, derive.TokenizerName)
					switch h.Form {
					case derive.Packed:
						packedRight(t, h, versions[i]...)
					case derive.Plain:
						if len(h.Derived) > 0 {
							t.Error("something was made for the plain form")
						}
					default:
						if len(h.Derived) != 4 {
							t.Errorf("%d things were made for %s", len(h.Derived), h.Form)
						}
					}
					h.Release()
				}
			}
		})
	}
	wg.Wait()
	Settled(t, s)
	t.Logf("%d attached, %d times there was no room", attached.Load(), full.Load())
	if attached.Load() < 10 {
		t.Error("too few attaches succeeded for this to say anything")
	}
	for i := range versions {
		if _, err := s.Remove(fmt.Sprintf("m%d", i), true); err != nil && !errors.Is(err, zcerr.NotFound) {
			t.Error(err)
		}
	}
	if st := must(s.Status())(t, "status"); st.Used != 0 || st.Segments != 0 || len(st.Forms) != 0 {
		t.Errorf("left behind: %+v", st)
	}
}

// tagForms: a default form belongs to the tag. It stays when the tag moves, until another one is named.
func tagForms(t *testing.T, start Start) {
	dir := Dir(t)
	s, stop := start(t, Options{Dir: dir})
	one, two := Weights(), Weights()
	two[2].Seed = 50
	putWeights(t, s, "m", "", one...)
	putWeights(t, s, "m", "", two...)
	is := func(ref string, want derive.Form) {
		t.Helper()
		h := must(s.AttachAs(ref, store.Ask{}))(t, ref)
		defer h.Release()
		if h.Form != want {
			t.Errorf("%s comes as %s, want %s", ref, h.Form, want)
		}
	}
	tag := func(from, to string, form derive.Form) {
		t.Helper()
		if _, _, err := s.TagAs(from, to, true, form); err != nil {
			t.Fatal(err)
		}
	}
	tag("m:v1", "m:prod", derive.Packed)
	is("m:prod", derive.Packed)
	is("m:v1", derive.Plain)
	is("m", derive.Plain)
	is("m@"+must(s.Show("m:prod"))(t, "show").Digest.String(), derive.Plain) // by digest alone
	h := must(s.AttachAs("m:prod", store.Ask{Form: derive.Plain}))(t, "plain all the same")
	if h.Form != derive.Plain || len(h.Derived) > 0 {
		t.Errorf("asked for plain: %s", h.Form)
	}
	h.Release()
	tag("m:v2", "m:prod", "") // moves, and keeps its form
	is("m:prod", derive.Packed)
	tag("m:v2", "m:prod", derive.BF16)
	is("m:prod", derive.BF16)
	if got := must(s.Show("m:prod"))(t, "show").TagForms; len(got) != 1 || got["prod"] != derive.BF16 {
		t.Errorf("show: %v", got)
	}
	stop()
	s, stop = start(t, Options{Dir: dir})
	t.Cleanup(stop)
	is("m:prod", derive.BF16)
	tag("m:prod", "m:prod", derive.Plain)
	is("m:prod", derive.Plain)
	tag("m:v1", "m:prod", derive.Int8)
	must(s.Remove("m:prod", false))(t, "rm of the tag")
	tag("m:v1", "m:prod", "") // a new tag
	is("m:prod", derive.Plain)
	_, _, err := s.TagAs("m:v1", "m:prod", true, "p17")
	expect(t, "a form that is none", err, zcerr.Invalid, "p17")
	Settled(t, s)
}
