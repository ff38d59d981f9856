package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/zcstore/zcstore/internal/memlimit"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/tensor"
)

func testPath(t testing.TB) string {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(path) })
	return path
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// version is a draft of one module with a tensor per entry: name -> (bytes, fill seed).
type row struct {
	name string
	size int
	seed uint64
}

func draft(rows ...row) *manifest.Draft {
	d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(`{}`)}}
	for i, r := range rows {
		b := make([]byte, r.size)
		rng := rand.New(rand.NewPCG(r.seed, 0))
		for k := range b {
			b[k] = byte(rng.Uint32())
		}
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{r.name}, DType: tensor.U8, Shape: tensor.Shape{r.size}, Data: bytes.NewReader(b)})
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: r.name, Tensor: i})
	}
	return d
}

func sealed(t testing.TB, d *manifest.Draft) *manifest.Sealed {
	t.Helper()
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func putErr(s *Store, target string, replace bool, v *manifest.Sealed) (*PutResult, error) {
	p, err := s.BeginPut(target, replace, v.Encoded)
	if err != nil {
		return nil, err
	}
	defer p.Abort()
	var parts []io.Reader
	for _, row := range p.Wanted() {
		parts = append(parts, io.NewSectionReader(v.Data[row], 0, int64(v.Manifest.Tensors[row].Bytes())))
	}
	if err := p.Fill(context.Background(), io.MultiReader(parts...)); err != nil {
		return nil, err
	}
	return p.Commit()
}

func put(t testing.TB, s *Store, target string, v *manifest.Sealed) *PutResult {
	t.Helper()
	res, err := putErr(s, target, false, v)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// readBack attaches, maps every file and compares every tensor with its source.
func readBack(t testing.TB, s *Store, target string, v *manifest.Sealed) {
	t.Helper()
	l, files, err := s.Attach(target, Holder{PID: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release(l.ID)
	compare(t, files, v)
}

// compare maps files and closes them.
func compare(t testing.TB, files []*os.File, v *manifest.Sealed) {
	t.Helper()
	maps := make([]*shm.Mapping, len(files))
	for i, f := range files {
		u, err := shm.UsageOf(f)
		if err != nil {
			t.Fatal(err)
		}
		if maps[i], err = shm.Map(f, int(u.Size)); err != nil {
			t.Fatal(err)
		}
		defer maps[i].Close()
		f.Close()
	}
	tab, err := table.Open(maps[0].Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if tab.Digest() != v.Digest || tab.Segments() != len(files)-1 {
		t.Fatalf("digest %v, want %v; %d segments for %d files", tab.Digest(), v.Digest, tab.Segments(), len(files))
	}
	for i := range v.Manifest.Tensors {
		want, _ := io.ReadAll(io.NewSectionReader(v.Data[i], 0, int64(v.Manifest.Tensors[i].Bytes())))
		row, ok := tab.Lookup(v.Manifest.Tensors[i].Names[0])
		if !ok {
			t.Fatalf("%s is not in the table", v.Manifest.Tensors[i].Names[0])
		}
		r, err := tab.Tensor(row)
		if err != nil {
			t.Fatal(err)
		}
		if r.Bytes == 0 {
			continue
		}
		got := maps[1+r.Segment].Bytes()[r.Offset : r.Offset+uint64(r.Bytes)]
		if !bytes.Equal(got, want) {
			t.Fatalf("%s differs", v.Manifest.Tensors[i].Names[0])
		}
		// The same bytes are found by any reader of safetensors.
		h, err := safetensors.Parse(maps[1+r.Segment].Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := h.Find(v.Manifest.Tensors[i].Names[0]); ok && h.DataStart+e.Begin != int64(r.Offset) {
			t.Fatalf("%s stands at %d in the header, at %d in the table", e.Name, h.DataStart+e.Begin, r.Offset)
		}
		if r.Bytes >= pageSize && r.Offset%shm.PageSize != 0 || r.Bytes >= lineSize && r.Offset%lineBytes != 0 {
			t.Errorf("%s of %d bytes lies at %d", v.Manifest.Tensors[i].Names[0], r.Bytes, r.Offset)
		}
	}
}

// check holds the store to its own accounting: what it says is used is what the directory holds, and nothing else is there.
func check(t testing.TB, s *Store) {
	t.Helper()
	st, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	files, bytes := usage(t, s)
	made := 0
	for _, f := range st.Forms {
		made += f.Versions
	}
	if bytes != st.Used || files != st.Segments+st.Versions-st.Cold+made {
		t.Errorf("status says %d bytes in %d segments, %d tables and %d of forms; the directory holds %d bytes in %d files", st.Used, st.Segments, st.Versions, made, bytes, files)
	}
	if st.OpenPuts != 0 {
		t.Errorf("%d puts are still open", st.OpenPuts)
	}
}

// usage is what the kernel has allocated for the store's files, and how many there are.
func usage(t testing.TB, s *Store) (files int, bytes uint64) {
	t.Helper()
	names, err := s.dir.Names()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !strings.HasPrefix(n, tablePrefix) && !strings.HasPrefix(n, formPrefix) && !strings.HasPrefix(n, segmentPrefix) {
			continue
		}
		f, err := s.dir.Open(n)
		if err != nil {
			t.Fatal(err)
		}
		u, err := shm.UsageOf(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		files++
		bytes += u.Blocks
	}
	return files, bytes
}

var big = []row{{"a", 1 << 20, 1}, {"b", 300_000, 2}, {"c", 200_001, 3}, {"d", 5000, 4}, {"e", 3, 5}, {"empty", 0, 0}}

func TestPutAndReadBack(t *testing.T) {
	s := open(t, testPath(t))
	v := sealed(t, draft(big...))
	res := put(t, s, "m", v)
	if res.Existed || strings.Join(res.Version.Tags, " ") != "v1 latest" || res.Version.Tensors != len(big) {
		t.Errorf("result %+v", res)
	}
	readBack(t, s, "m", v)
	readBack(t, s, "m:v1", v)
	readBack(t, s, "m@"+v.Digest.String(), v)
	check(t, s)
	again := put(t, s, "m", v)
	if !again.Existed || again.Written != 0 || strings.Join(again.Version.Tags, " ") != "v1 latest" {
		t.Errorf("the same digest again: %+v", again)
	}
	check(t, s)
}

func TestRestartAdopts(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	v1 := sealed(t, draft(big...))
	rows := append([]row(nil), big...)
	rows[0].seed = 50
	v2 := sealed(t, draft(rows...))
	put(t, s, "a/b", v1)
	put(t, s, "a/b", v2)
	if _, _, err := s.Tag("a/b:v1", "a/b:prod", false); err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	if _, err := Open(Options{Dir: path}); !errors.As(err, &locked) || !strings.Contains(locked.Holder, fmt.Sprint(os.Getpid())) {
		t.Errorf("a second daemon on the directory: %v", err)
	}
	// What a crash between publish and catalog leaves.
	w, _ := s.dir.Create(1 << 20)
	w.Publish(segmentPrefix + "feed")
	s.Close()
	s = open(t, path)
	if st, _ := s.Status(); st.Adopted != 2 || st.Versions != 2 {
		t.Errorf("adopted %+v", st)
	}
	readBack(t, s, "a/b:prod", v1)
	readBack(t, s, "a/b", v2)
	check(t, s)
	rows[2].seed = 51
	if res := put(t, s, "a/b", sealed(t, draft(rows...))); strings.Join(res.Version.Tags, " ") != "v3 latest" || res.Shared == 0 {
		t.Errorf("put after a restart: %+v", res)
	}
}

func TestDamageIsSaidAndNotServed(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	v := sealed(t, draft(big...))
	put(t, s, "good", sealed(t, draft(row{"x", 70_000, 9})))
	put(t, s, "bad", v)
	file := filepath.Join(path, tableFile(v.Digest))
	s.Close()
	b, _ := os.ReadFile(file)
	b[len(b)/2] ^= 1
	os.Chmod(file, 0o600)
	if err := os.WriteFile(file, b, 0o400); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	if _, _, err := s.Attach("bad", Holder{}); !errors.Is(err, zcerr.Corrupt) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("attach of a damaged version: %v", err)
	}
	if ls, _ := s.List("bad", false); len(ls) != 1 || ls[0].Damaged == "" {
		t.Errorf("ls: %+v", ls)
	}
	put(t, s, "bad", v) // repairs it
	readBack(t, s, "bad", v)
	check(t, s)
	s.Close()
	os.WriteFile(filepath.Join(path, catalogFile), []byte(`{"format":1,"models":{"../x":{}}}`), 0o600)
	if _, err := Open(Options{Dir: path}); !errors.Is(err, zcerr.Corrupt) {
		t.Errorf("a damaged catalog: %v", err)
	}
	if names, _ := filepath.Glob(filepath.Join(path, "s-*")); len(names) != 2 {
		t.Errorf("a damaged catalog cost segments: %v", names)
	}
}

func TestRefusals(t *testing.T) {
	s := open(t, testPath(t))
	one, two := sealed(t, draft(row{"x", 70_000, 1})), sealed(t, draft(row{"x", 70_000, 2}))
	put(t, s, "m:prod", one)
	for _, tt := range []struct {
		name string
		kind zcerr.Kind
		want string
		do   func() error
	}{
		{"a tag that points elsewhere", zcerr.Conflict, "m:prod", func() error { _, err := putErr(s, "m:prod", false, two); return err }},
		{"a bad reference", zcerr.Invalid, "'!'", func() error { _, err := putErr(s, "m!", false, one); return err }},
		{"a chosen digest", zcerr.Invalid, "choose", func() error { _, err := putErr(s, "m@"+one.Digest.String(), false, one); return err }},
		{"a bad manifest", zcerr.Invalid, "manifest", func() error { _, err := s.BeginPut("m", false, []byte("{}")); return err }},
		{"no such model", zcerr.NotFound, "no model n", func() error { _, _, err := s.Attach("n", Holder{}); return err }},
		{"no such tag", zcerr.NotFound, "no tag v9", func() error { _, err := s.Show("m:v9"); return err }},
		{"another digest", zcerr.Conflict, ", not", func() error { _, err := s.Show("m:prod@" + two.Digest.String()); return err }},
		{"rm of nothing", zcerr.NotFound, "no model", func() error { _, err := s.Remove("n", false); return err }},
		{"tag without a tag", zcerr.Invalid, "is no tag", func() error { _, _, err := s.Tag("m:prod", "m", false); return err }},
		{"short bytes", zcerr.Invalid, `"x"`, func() error {
			p, err := s.BeginPut("m", false, two.Encoded)
			if err != nil {
				return err
			}
			defer p.Abort()
			return p.Fill(context.Background(), bytes.NewReader(make([]byte, 69_999)))
		}},
		{"other bytes", zcerr.Corrupt, `"x"`, func() error {
			p, err := s.BeginPut("m", false, two.Encoded)
			if err != nil {
				return err
			}
			defer p.Abort()
			return p.Fill(context.Background(), bytes.NewReader(make([]byte, 70_000)))
		}},
		{"commit of nothing", zcerr.Invalid, "before all bytes", func() error {
			p, err := s.BeginPut("m", false, two.Encoded)
			if err != nil {
				return err
			}
			_, err = p.Commit()
			return err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.do(); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v (%v), want %v with %q", err, zcerr.KindOf(err), tt.kind, tt.want)
			}
			check(t, s)
			readBack(t, s, "m:prod", one)
		})
	}
	if _, err := putErr(s, "m:prod", true, two); err != nil {
		t.Errorf("--replace: %v", err)
	}
	readBack(t, s, "m:prod", two)
	check(t, s)
}

func TestLimitsAndBudget(t *testing.T) {
	path := testPath(t)
	s, err := Open(Options{Dir: path, MaxBytes: 200_000, MaxPuts: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := putErr(s, "m", false, sealed(t, draft(big...))); !errors.Is(err, zcerr.NoSpace) || !strings.Contains(err.Error(), "budget") {
		t.Errorf("over the budget: %v", err)
	}
	v := sealed(t, draft(row{"x", 1000, 1}))
	p1, _ := s.BeginPut("a", false, v.Encoded)
	p2, _ := s.BeginPut("b", false, v.Encoded)
	if _, err := s.BeginPut("c", false, v.Encoded); !errors.Is(err, zcerr.Limit) {
		t.Errorf("a third put: %v", err)
	}
	p1.Abort()
	p2.Abort()
	check(t, s)
}

// Puts, tags and removals of a few versions from many goroutines: whatever happens, what is there is whole and accounted for.
func TestConcurrentPutsAndRemovals(t *testing.T) {
	path := testPath(t)
	s, err := Open(Options{Dir: path, MaxPuts: 64})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var versions []*manifest.Sealed
	for i := range 4 {
		versions = append(versions, sealed(t, draft(row{"common", 200_000, 1}, row{"own", 100_000, uint64(10 + i)})))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 30 {
				v := versions[rng.IntN(len(versions))]
				name := fmt.Sprintf("m%d", rng.IntN(3))
				switch rng.IntN(4) {
				case 0:
					if _, err := s.Remove(name, true); err != nil && !errors.Is(err, zcerr.NotFound) {
						t.Error(err)
					}
				case 1:
					l, files, err := s.Attach(name, Holder{})
					if err != nil {
						if !errors.Is(err, zcerr.NotFound) {
							t.Error(err)
						}
						continue
					}
					for _, w := range versions {
						if w.Digest == l.Digest {
							compare(t, files, w)
						}
					}
					s.Release(l.ID)
				default:
					if _, err := putErr(s, name, false, v); err != nil && !errors.Is(err, zcerr.Conflict) {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	check(t, s)
	s.Close()
	s2 := open(t, path)
	check(t, s2)
	list, _ := s2.List("", false)
	for _, info := range list {
		for _, v := range versions {
			if v.Digest == info.Digest {
				readBack(t, s2, info.Name+":"+info.Tags[0], v)
			}
		}
	}
}

func TestAnEmptyStoreLeavesNothing(t *testing.T) {
	path := filepath.Join(testPath(t), "segments")
	s := open(t, path)
	put(t, s, "m", sealed(t, draft(row{"x", 100, 1})))
	s.Close()
	if _, err := os.Stat(filepath.Join(path, catalogFile)); err != nil {
		t.Errorf("a store with a version in it: %v", err)
	}
	s = open(t, path)
	if _, err := s.Remove("m", false); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("an empty store left its directory: %v", err)
	}
	// A directory with somebody else's file in it stays.
	s = open(t, path)
	os.WriteFile(filepath.Join(path, "theirs"), nil, 0o600)
	s.Close()
	if _, err := os.Stat(filepath.Join(path, "theirs")); err != nil {
		t.Error(err)
	}
}

func TestVerifyFindsEveryFlippedBit(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	v1 := sealed(t, draft(big...))
	put(t, s, "m", v1)
	rows := append([]row(nil), big...)
	rows[3].seed = 77 // shares the large tensors
	v2 := sealed(t, draft(rows...))
	put(t, s, "m", v2)
	other := sealed(t, draft(row{"x", 70_000, 5}))
	put(t, s, "other", other)
	ok, err := s.Verify(context.Background(), "m:v1")
	if err != nil || len(ok.Damaged) != 0 || ok.Tensors != len(big) || ok.Bytes != uint64(v1.Manifest.TensorBytes()) {
		t.Fatalf("a good version: %+v, %v", ok, err)
	}
	// One bit of the largest tensor, which both versions use.
	l, files, err := s.Attach("m:v1", Holder{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release(l.ID)
	m, err := shm.Map(files[0], int(l.TableBytes))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	tab, _ := table.Open(m.Bytes())
	row, _ := tab.Lookup("a")
	r, _ := tab.Tensor(row)
	seg, _ := tab.Segment(r.Segment)
	for _, f := range files {
		f.Close()
	}
	name := filepath.Join(path, segmentPrefix+seg.ID)
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	f.ReadAt(b, int64(r.Offset)+int64(r.Bytes)-1)
	b[0] ^= 0x40
	f.WriteAt(b, int64(r.Offset)+int64(r.Bytes)-1)
	f.Close()
	got, err := s.Verify(context.Background(), "m:v2")
	if err != nil || len(got.Damaged) != 1 || got.Damaged[0] != "a" {
		t.Fatalf("a damaged version: %+v, %v", got, err)
	}
	for _, target := range []string{"m:v1", "m:v2"} {
		if _, _, err := s.Attach(target, Holder{}); !errors.Is(err, zcerr.Corrupt) || !strings.Contains(err.Error(), `"a"`) {
			t.Errorf("%s is still served: %v", target, err)
		}
	}
	readBack(t, s, "other", other)
	check(t, s)
	put(t, s, "m:v1", v1) // repairs it, and takes nothing from the damaged segment
	readBack(t, s, "m:v1", v1)
	check(t, s)
}

func TestMemoryThatOthersNeedIsLeftAlone(t *testing.T) {
	s := open(t, testPath(t))
	s.memLimits = func() ([]memlimit.Limit, error) {
		return []memlimit.Limit{{Name: "host", Max: 100 << 30, Free: marginMemory + 200_000}}, nil
	}
	if _, err := putErr(s, "m", false, sealed(t, draft(big...))); !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("a put that leaves too little: %v", err)
	}
	put(t, s, "small", sealed(t, draft(row{"x", 100_000, 1})))
	check(t, s)
}

// The budget counts what open puts have reserved and what deleted versions still pin.
func TestBudgetCountsWhatIsOnItsWayAndWhatIsHeld(t *testing.T) {
	path := testPath(t)
	s, err := Open(Options{Dir: path, MaxBytes: 500_000})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	one, two := sealed(t, draft(row{"x", 300_000, 1})), sealed(t, draft(row{"x", 300_000, 2}))
	p, err := s.BeginPut("a", false, one.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginPut("b", false, two.Encoded); !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("beside an open put: %v", err)
	}
	p.Abort()
	put(t, s, "a", one)
	l, files, err := s.Attach("a", Holder{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	if _, err := s.Remove("a", false); err != nil {
		t.Fatal(err)
	}
	if _, err := putErr(s, "b", false, two); !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("beside a held version: %v", err)
	}
	s.Release(l.ID)
	put(t, s, "b", two)
	check(t, s)
}

func TestVersionRemovedDuringAPutOfTheSame(t *testing.T) {
	s := open(t, testPath(t))
	v := sealed(t, draft(row{"x", 100_000, 1}))
	put(t, s, "m", v)
	p, err := s.BeginPut("n", false, v.Encoded)
	if err != nil || !p.Existed() {
		t.Fatalf("existed %v, %v", p.Existed(), err)
	}
	if _, err := s.Remove("m", false); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(); !errors.Is(err, zcerr.Conflict) || !strings.Contains(err.Error(), "removed during") {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.List("n", true); !errors.Is(err, zcerr.NotFound) {
		t.Errorf("a name without bytes: %v", err)
	}
	check(t, s)
}

// A segment that somebody cut is found before it is read, and nothing of it is served.
func TestVerifyOfFilesThatWereCut(t *testing.T) {
	for _, prefix := range []string{segmentPrefix, tablePrefix} {
		path := testPath(t)
		s := open(t, path)
		v := sealed(t, draft(big...))
		put(t, s, "m", v)
		files, _ := filepath.Glob(filepath.Join(path, prefix+"*"))
		if err := os.Truncate(files[0], 4096); err != nil && os.Chmod(files[0], 0o600) == nil {
			err = os.Truncate(files[0], 4096)
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Verify(context.Background(), "m"); !errors.Is(err, zcerr.Corrupt) {
			t.Errorf("%s: %v", prefix, err)
		}
		if _, _, err := s.Attach("m", Holder{}); !errors.Is(err, zcerr.Corrupt) {
			t.Errorf("%s: still served: %v", prefix, err)
		}
		put(t, s, "m", v)
		readBack(t, s, "m", v)
		check(t, s)
	}
}

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }
