package store

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/memlimit"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// linear is a version of one weight that has so many bytes, and as many packed.
func linear(size int, seed uint64) *manifest.Draft {
	d := draft(row{"w", size, seed})
	d.Tensors[0].DType, d.Tensors[0].Shape, d.Tensors[0].Role = tensor.F32, tensor.Shape{size / 4096, 1024}, tensor.Linear
	return d
}

func attachPacked(t *testing.T, s *Store, target string) *Lease {
	t.Helper()
	l, files, err := s.AttachAs(target, Holder{}, Ask{Form: derive.Packed})
	if err != nil {
		t.Fatalf("attach %s packed: %v", target, err)
	}
	closeAll(files)
	if len(l.Derived) != 1 || len(files) != 4 {
		t.Fatalf("%d forms in %d files", len(l.Derived), len(files))
	}
	return l
}

func formsOf(t *testing.T, s *Store, name string) (out []string) {
	t.Helper()
	for _, f := range state(t, s, name).Forms {
		out = append(out, string(f.Form))
	}
	return out
}

// Room is made by forms first, the least recently used before others, then by versions that the disk has; and all comes back.
func TestFormsGoBeforeVersions(t *testing.T) {
	h := newHost(t)
	h.opt.MaxBytes = 5*256<<10 + 100<<10
	s := h.open()
	a, b := sealed(t, linear(256<<10, 1)), sealed(t, linear(256<<10, 2))
	put(t, s, "a", a)
	put(t, s, "b", b)
	for _, name := range []string{"a", "b", "a"} { // the form of b is the older one now
		s.Release(attachPacked(t, s, name).ID)
	}
	put(t, s, "c", sealed(t, draft(row{"x", 256 << 10, 3}, row{"y", 100 << 10, 4})))
	if got := len(formsOf(t, s, "a")) + 10*len(formsOf(t, s, "b")); got != 1 || !state(t, s, "a").Resident || !state(t, s, "b").Resident {
		t.Errorf("after one put: forms of a %v, of b %v", formsOf(t, s, "a"), formsOf(t, s, "b"))
	}
	put(t, s, "d", sealed(t, draft(row{"x", 600 << 10, 5})))
	if state(t, s, "b").Resident || len(formsOf(t, s, "a")) != 0 || !state(t, s, "a").Resident {
		t.Error("the least recently used version and the last form are still there, or more went than had to")
	}
	s.Release(attachPacked(t, s, "b").ID) // from disk, and made again
	readBack(t, s, "b", b)
	check(t, s)
	// A version whose form is held stays, as the form does.
	l := attachPacked(t, s, "a")
	for i := range 4 {
		put(t, s, "e", sealed(t, draft(row{"x", 300 << 10, uint64(10 + i)})))
	}
	if !state(t, s, "a").Resident || len(formsOf(t, s, "a")) != 1 {
		t.Error("what a lease holds is gone")
	}
	s.Release(l.ID)
	check(t, s)
}

// Somebody removed the files of a form behind the daemon's back.
func TestFormsAreMadeAgainWhenTheirFilesAreGone(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	put(t, s, "m", sealed(t, linear(256<<10, 1)))
	s.Release(attachPacked(t, s, "m").ID)
	files, err := filepath.Glob(filepath.Join(path, formPrefix+"*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	s.Release(attachPacked(t, s, "m").ID)
	check(t, s)
}

// What a daemon of another release made is swept away, and so is what is no form at all.
func TestFormsOfOtherReleasesAreNotTakenOver(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	put(t, s, "m", sealed(t, linear(256<<10, 1)))
	s.Release(attachPacked(t, s, "m").ID)
	files, err := filepath.Glob(filepath.Join(path, formPrefix+"*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	s.Close()
	// The same with another version in the keys, and right otherwise.
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	d, err := manifest.ParseDigest("sha256:" + strings.TrimPrefix(filepath.Base(files[0]), formPrefix))
	if err != nil {
		t.Fatal(err)
	}
	man, segs, locs, err := parseTable(b, d)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Replace(man.Tensors[0].Names[0], derive.Packed.Recipe(), "p16-f32.0", 1)
	man.Tensors[0].Names[0], man.Root.Params[0].Name = key, key
	if _, d, err = man.Encode(); err != nil {
		t.Fatal(err)
	}
	if b, err = table.Encode(man, d, segs, locs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, formFile(d)), b, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, formPrefix+"4567"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if got := formsOf(t, s, "m"); len(got) != 0 {
		t.Errorf("taken over: %v", got)
	}
	if left, _ := filepath.Glob(filepath.Join(path, formPrefix+"*")); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	check(t, s)
}

// What takes much private memory is only made where there is that much.
func TestScratchIsAdmitted(t *testing.T) {
	s := open(t, testPath(t))
	d := draft(row{"x", 100, 1})
	vocab := map[string]int{"u": 0, strings.Repeat("a", 400_000): 1}
	b, err := json.Marshal(vocab)
	if err != nil {
		t.Fatal(err)
	}
	d.Root.Items = append(d.Root.Items, manifest.Item{Key: derive.TokenizerName, Node: &manifest.Node{Kind: manifest.Value, MediaType: "application/json",
		Value: []byte(`{"version":"1.0","model":{"type":"WordLevel","unk_token":"u","vocab":` + string(b) + `}}`)}})
	put(t, s, "m", sealed(t, d))
	s.memLimits = func() ([]memlimit.Limit, error) {
		return []memlimit.Limit{{Name: "the host's memory", Max: 100 << 30, Free: marginMemory + 30<<20}}, nil
	}
	_, _, err = s.AttachAs("m", Holder{}, Ask{Tokenizers: true})
	if !errors.Is(err, zcerr.NoSpace) || !strings.Contains(err.Error(), "compile tokenizer.json") || !strings.Contains(err.Error(), "30.0 MiB free in the host's memory") {
		t.Errorf("got %v", err)
	}
	check(t, s)
}

// A recipe that panics ends one attach and nothing else.
func TestPanicOfARecipeIsAnError(t *testing.T) {
	s := open(t, testPath(t))
	err := func() (err error) {
		defer recovered(s.log, formKey{}, &err)
		var none []int
		return errors.New(string(rune(none[3])))
	}()
	if !errors.Is(err, zcerr.Unsupported) || zcerr.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
}

// fsck knows forms: one that is whole is no finding, one that is damaged is.
func TestFsckReadsForms(t *testing.T) {
	h := newHost(t)
	h.opt.Data = ""
	s := h.open()
	put(t, s, "m", sealed(t, linear(256<<10, 1)))
	s.Release(attachPacked(t, s, "m").ID)
	made := ""
	for _, sg := range s.forms[formKey{state(t, s, "m").Digest, derive.Packed}].segs {
		made = filepath.Join(h.opt.Dir, sg.file())
	}
	s.Close()
	if r := h.check(false); len(r.Findings) != 0 {
		t.Errorf("a whole form: %+v", r.Findings)
	}
	if err := os.Chmod(made, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(made, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.check(false); len(r.Findings) != 1 || r.Findings[0].What != "form" || !strings.Contains(r.Findings[0].Problem, "p16-f32.1/") {
		t.Errorf("a damaged form: %+v", r.Findings)
	}
}

// How fast forms are made, beside a put of the same bytes.
func BenchmarkMakeForm(b *testing.B) {
	const size = 128 << 20
	path := testPath(b)
	s, err := Open(Options{Dir: path})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	d := draft()
	for i := range 8 { // weights of 16 MiB
		one := linear(size/8, uint64(i))
		one.Tensors[0].Names = []string{string(rune('a' + i))}
		d.Tensors = append(d.Tensors, one.Tensors[0])
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: one.Tensors[0].Names[0], Tensor: i})
	}
	v := sealed(b, d)
	put(b, s, "m", v)
	for _, form := range []derive.Form{derive.Packed, derive.BF16} { // random bits are no finite numbers, as int8 wants them
		b.Run(string(form), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				l, files, err := s.AttachAs("m", Holder{}, Ask{Form: form})
				if err != nil {
					b.Fatal(err)
				}
				closeAll(files)
				s.Release(l.ID)
				b.StopTimer()
				s.mu.Lock()
				s.dropFormLocked(s.forms[formKey{v.Digest, form}])
				s.mu.Unlock()
				b.StartTimer()
			}
		})
	}
}

// A compaction moves a version to other files, and its forms stay: they know it by its digest.
func TestFormsOutliveACompaction(t *testing.T) {
	s := open(t, testPath(t))
	with := func(name string, rows ...row) *manifest.Sealed {
		d := draft(append(rows, row{name, 100, 9})...)
		w := linear(256<<10, 77)
		d.Tensors = append(d.Tensors, w.Tensors[0])
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: "w", Tensor: len(d.Tensors) - 1})
		return sealed(t, d)
	}
	put(t, s, "m:old", with("a", rowsOf("b", 20, 256<<10, 1)...))
	put(t, s, "m:new", with("c"))
	attach := func() {
		t.Helper()
		l, files, err := s.AttachAs("m:new", Holder{}, Ask{Form: derive.Packed})
		if err != nil {
			t.Fatal(err)
		}
		closeAll(files)
		s.Release(l.ID)
	}
	attach()
	s.mu.Lock()
	before := s.forms[formKey{s.models["m"].tags["new"], derive.Packed}]
	s.mu.Unlock()
	if _, err := s.Remove("m:old", false); err != nil {
		t.Fatal(err)
	}
	settledStore(t, s)
	attach()
	s.mu.Lock()
	after := s.forms[formKey{s.models["m"].tags["new"], derive.Packed}]
	s.mu.Unlock()
	if before == nil || before != after {
		t.Errorf("the form was %p, it is %p", before, after)
	}
	check(t, s)
}
