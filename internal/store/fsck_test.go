package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

func (h *host) check(rebuild bool) *FsckReport {
	h.t.Helper()
	r, err := Fsck(context.Background(), FsckOptions{Dir: h.opt.Dir, Data: h.opt.Data, BootID: h.opt.BootID, Rebuild: rebuild})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// dirOf is the content of a directory, so that a test can say that nothing was touched.
func dirOf(t testing.TB, path string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == lockFile {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sameFiles(t testing.TB, before, after map[string]string) {
	t.Helper()
	for name, b := range before {
		if after[name] != b {
			t.Errorf("%s was changed or removed", name)
		}
	}
}

// A catalog with any bit flipped, an empty one, one of a newer release and none at all: the store refuses to open, says why and
// what to type, deletes nothing; and fsck makes a catalog of the segments with which every version is served again.
func TestCase27Catalog(t *testing.T) {
	h := newHost(t)
	h.opt.Data = ""
	s := h.open()
	a, b, c := sealed(t, draft(bigRows(1)...)), sealed(t, draft(bigRows(2)...)), sealed(t, draft(bigRows(3)...))
	put(t, s, "a", a)
	time.Sleep(2 * time.Millisecond) // the order of puts to a bare name is that of their tables' times
	put(t, s, "a", b)
	put(t, s, "org/c:prod", c)
	s.Close()
	name := filepath.Join(h.opt.Dir, catalogFile)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, content []byte, kind zcerr.Kind) {
		t.Helper()
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		before := dirOf(t, h.opt.Dir)
		s, err := Open(h.opt)
		if err == nil {
			s.Close()
			t.Fatalf("%s: the store opened", what)
		}
		if zcerr.KindOf(err) != kind || zcerr.HintOf(err) == "" {
			t.Errorf("%s: %v (%v); %s", what, err, zcerr.KindOf(err), zcerr.HintOf(err))
		}
		if kind == zcerr.Corrupt && !strings.Contains(zcerr.HintOf(err), "zcctl fsck --dir "+h.opt.Dir) {
			t.Errorf("%s: hint %q", what, zcerr.HintOf(err))
		}
		sameFiles(t, before, dirOf(t, h.opt.Dir))
	}
	kinds := map[zcerr.Kind]int{}
	for i := range good {
		for bit := range 8 {
			flipped := bytes.Clone(good)
			flipped[i] ^= 1 << bit
			if _, err := parseCatalog(flipped); err == nil {
				// A letter of a key in the other case is the only change that is none.
				if !bytes.EqualFold(flipped, good) {
					t.Fatalf("bit %d of byte %d (%q) flipped, and it is believed", bit, i, good[i])
				}
				continue
			} else if errors.Is(err, errNewer) {
				kinds[zcerr.Unsupported]++
			} else {
				kinds[zcerr.Corrupt]++
			}
		}
	}
	t.Logf("%d bits: %v", 8*len(good), kinds)
	flipped := bytes.Clone(good)
	flipped[len(good)/2] ^= 4
	refused("a flipped bit", flipped, zcerr.Corrupt)
	refused("half of it", good[:len(good)/2], zcerr.Corrupt)
	refused("a newer release", bytes.Replace(good, []byte(`"format":2`), []byte(`"format":3`), 1), zcerr.Unsupported)
	if _, err := Fsck(context.Background(), FsckOptions{Dir: h.opt.Dir, Rebuild: true}); !errors.Is(err, zcerr.Unsupported) {
		t.Errorf("rebuild of what a newer release wrote: %v", err)
	}
	refused("an empty file", nil, zcerr.Corrupt)

	r := h.check(false)
	if r.Damaged() != 1 || r.Findings[0].What != "catalog" || len(r.Versions) != 3 || r.Rebuilt {
		t.Errorf("fsck: %+v", r)
	}
	if r := h.check(true); !r.Rebuilt || len(r.Kept) != 1 {
		t.Errorf("rebuild: %+v", r)
	}
	s = h.open()
	readBack(t, s, "a:v1", a)
	readBack(t, s, "a:v2", b)
	readBack(t, s, "a", b)
	readBack(t, s, "org/c:prod", c)
	if res := put(t, s, "a", sealed(t, draft(bigRows(4)...))); fmt.Sprint(res.Version.Tags) != "[v3 latest]" {
		t.Errorf("the next put: %v", res.Version.Tags)
	}
	// Versions that share everything have no segment that says their name.
	put(t, s, "d", sealed(t, draft(row{"big", 256 << 10, 4})))
	s.Close()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.check(true)
	s = h.open()
	list, err := s.List("", false)
	if err != nil || len(list) != 5 {
		t.Fatal(list, err)
	}
	found := false
	for _, v := range list {
		found = found || v.Name == "recovered/"+v.Digest.Short()
	}
	if !found {
		t.Errorf("no recovered version in %+v", list)
	}
}

// With a disk below, a damaged catalog refuses too, and the names come from the index.
func TestCase27CatalogAboveADisk(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	if _, _, err := s.Tag("a", "a:prod", false); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.WriteFile(filepath.Join(h.opt.Dir, catalogFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(h.opt); !errors.Is(err, zcerr.Corrupt) {
		t.Fatal(err)
	}
	h.check(true)
	s = h.open()
	readBack(t, s, "a:prod", a)
	s.Close()

	// The index is lost: the catalog knows the names.
	index := filepath.Join(h.opt.Data, "index.json")
	if err := os.WriteFile(index, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(h.opt); !errors.Is(err, zcerr.Corrupt) || !strings.Contains(zcerr.HintOf(err), "zcctl fsck --data "+h.opt.Data) {
		t.Fatalf("%v; %s", err, zcerr.HintOf(err))
	}
	if r := h.check(true); r.Damaged() != 1 || len(r.Kept) != 2 {
		t.Errorf("%+v", r)
	}
	s = h.open()
	readBack(t, s, "a:prod", a)
	s.Close()
	h.reboot()
	// Both: only digests are left.
	if err := os.WriteFile(index, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.check(true)
	s = h.open()
	readBack(t, s, "recovered/"+a.Digest.Short(), a)
}

// What is wrong with a file is said by the name that the version has, nothing is deleted, and what is whole stays so.
func TestFsckNamesDamage(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(t *testing.T, s where)
		want  string
	}{
		"segment cut":     {func(t *testing.T, p where) { must(t, os.Truncate(p.segment, 8192)) }, `version a:latest: segment 0 has 8192 bytes, the table says`},
		"segment missing": {func(t *testing.T, p where) { must(t, os.Remove(p.segment)) }, "version a:latest: a segment of it is missing"},
		"segment flipped": {func(t *testing.T, p where) { flipBit(t, p.segment, p.offset+77, 1) }, `version a:latest: tensor "big": its bytes are not those of its digest`},
		"header flipped":  {func(t *testing.T, p where) { flipBit(t, p.segment, 8, 1) }, `: its header cannot be read, which a:latest does not need`},
		"table flipped":   {func(t *testing.T, p where) { flipBit(t, p.table, 100, 1) }, `version a:latest: not a table of this version: `},
		"table missing":   {func(t *testing.T, p where) { must(t, os.Remove(p.table)) }, "version a:latest: the catalog names it and its table is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.opt.Data = ""
			s := h.open()
			a, b := sealed(t, one(1)), sealed(t, one(2))
			put(t, s, "a", a)
			put(t, s, "b", b)
			file, off := s.placeOf(t, a.Digest, 0)
			s.Close()
			if r := h.check(false); len(r.Findings) != 0 || len(r.Versions) != 2 {
				t.Fatalf("before: %+v", r)
			}
			c.spoil(t, where{filepath.Join(h.opt.Dir, file), filepath.Join(h.opt.Dir, tableFile(a.Digest)), off})
			before := dirOf(t, h.opt.Dir)
			r := h.check(false)
			var all []string
			for _, f := range r.Findings {
				if !f.Note {
					all = append(all, f.What+" "+f.Name+": "+f.Problem)
				}
			}
			if len(all) != 1 || !strings.Contains(all[0], c.want) {
				t.Errorf("findings %q, want %q", all, c.want)
			}
			sameFiles(t, before, dirOf(t, h.opt.Dir))
			whole := map[manifest.Digest]bool{}
			for _, v := range r.Versions {
				whole[v.Digest] = true
			}
			if !whole[b.Digest] || whole[a.Digest] != (name == "header flipped") {
				t.Errorf("whole: %+v", r.Versions)
			}
		})
	}
}

type where struct {
	segment, table string
	offset         int64
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFsckRefusesWhileADaemonServes(t *testing.T) {
	h := newHost(t)
	h.open()
	for _, opt := range []FsckOptions{{Dir: h.opt.Dir}, {Dir: testPath(t) + "-none", Data: h.opt.Data}} {
		if _, err := Fsck(context.Background(), opt); !errors.As(err, new(*LockedError)) {
			t.Errorf("%+v: %v", opt, err)
		}
	}
}

// A tensor that two versions and three tags have, and that is damaged, is one damage; each version is named. A version that
// was evicted has no table in memory: whether it is whole, the disk says.
func TestFsckCountsADamageOnce(t *testing.T) {
	shared := row{"shared", 256 << 10, 7}
	damage := func(t *testing.T, files func(name string) bool, dir string) {
		t.Helper()
		n := 0
		for name, b := range dirOf(t, dir) {
			if !files(name) {
				continue
			}
			flipped := []byte(b)
			flipped[len(flipped)-1] ^= 1
			if err := errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, flipped, 0o600)); err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 1 {
			t.Fatalf("%d files were damaged", n)
		}
	}
	a, b := sealed(t, draft(shared)), sealed(t, draft(shared, row{"tiny", 100, 8}))
	t.Run("memory", func(t *testing.T) {
		h := newHost(t)
		h.t, h.opt.Data = t, ""
		s := h.open()
		put(t, s, "m", a)
		put(t, s, "n", b)
		s.Close()
		var largest string
		for name, b := range dirOf(t, h.opt.Dir) {
			if strings.Contains(name, "/"+segmentPrefix) && len(b) > 256<<10 {
				largest = name
			}
		}
		damage(t, func(name string) bool { return name == largest }, h.opt.Dir)
		r := h.check(false)
		if r.Damaged() != 1 || len(r.Findings) < 2 {
			t.Errorf("%d damaged: %+v", r.Damaged(), r.Findings)
		}
	})
	t.Run("disk", func(t *testing.T) {
		h := newHost(t)
		h.t = t
		s := h.open()
		put(t, s, "m", a)
		put(t, s, "n", b)
		s.evict(t, a.Digest)
		s.evict(t, b.Digest)
		s.Close()
		if r := h.check(false); r.Damaged() != 0 {
			t.Errorf("evicted: %+v", r.Findings)
		}
		hex := a.Manifest.Tensors[0].SHA256.Hex()
		damage(t, func(name string) bool { return strings.HasSuffix(name, hex) }, h.opt.Data)
		r := h.check(false)
		if r.Damaged() != 1 {
			t.Errorf("%d damaged: %+v", r.Damaged(), r.Findings)
		}
	})
}
