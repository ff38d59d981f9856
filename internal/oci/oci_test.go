package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	orasoci "oras.land/oras-go/v2/content/oci"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// sealed makes a version with a tensor per size; equal seeds give equal bytes.
func sealed(t testing.TB, sizes map[string]int, seed uint64) *manifest.Sealed {
	t.Helper()
	d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(fmt.Sprintf(`{"seed":%d}`, seed))}}
	for name, size := range sizes {
		b := make([]byte, size)
		rng := rand.New(rand.NewPCG(seed, uint64(size)))
		if strings.HasPrefix(name, "same") {
			rng = rand.New(rand.NewPCG(0, uint64(size)))
		}
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		d.Root.Params = append(d.Root.Params, manifest.Param{Name: name, Tensor: len(d.Tensors)})
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{name}, DType: tensor.U8, Shape: tensor.Shape{size}, Data: bytes.NewReader(b)})
	}
	s, err := d.Seal(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func open(t testing.TB, path string, opt Options) *Layout {
	t.Helper()
	l, err := Open(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func source(v *manifest.Sealed) func(int) (io.Reader, error) {
	return func(row int) (io.Reader, error) {
		return io.NewSectionReader(v.Data[row], 0, int64(v.Manifest.Tensors[row].Bytes())), nil
	}
}

// add stages a version and names it.
func add(l *Layout, v *manifest.Sealed, name, tag string) error {
	s, err := l.Stage(context.Background(), v.Manifest, v.Encoded, source(v))
	if err != nil {
		return err
	}
	defer s.Release()
	e := Entry{Name: name, Tag: tag, Version: v.Digest, Created: time.UnixMilli(1700000000123).UTC(), Next: 2}
	return l.Replace(append(l.Entries(), e))
}

func mustAdd(t testing.TB, l *Layout, v *manifest.Sealed, name, tag string) {
	t.Helper()
	if err := add(l, v, name, tag); err != nil {
		t.Fatal(err)
	}
}

// readAll reads a version back and compares every tensor.
func readAll(t testing.TB, l *Layout, v *manifest.Sealed) {
	t.Helper()
	got, err := l.Version(v.Digest)
	if err != nil {
		t.Fatal(err)
	}
	m, encoded, err := l.Manifest(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded, v.Encoded) {
		t.Fatal("the manifest differs")
	}
	var rows []int
	var want bytes.Buffer
	for i := range m.Tensors {
		rows = append(rows, i)
		r, _ := source(v)(i)
		if _, err := io.Copy(&want, r); err != nil {
			t.Fatal(err)
		}
	}
	r := l.Rows(context.Background(), got, m, rows)
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want.Bytes()) {
		t.Fatal("the bytes differ")
	}
}

func files(t testing.TB, dir string) map[string]bool {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, e := range list {
		out[e.Name()] = true
	}
	return out
}

func checkClean(t testing.TB, path string) {
	t.Helper()
	r, err := Check(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if !f.Note {
			t.Errorf("check: %+v", f)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	l := open(t, path, Options{})
	a := sealed(t, map[string]int{"big": 200 << 10, "same": 100 << 10, "small": 100, "odd": 333, "empty": 0}, 1)
	b := sealed(t, map[string]int{"big": 200 << 10, "same": 100 << 10}, 2)
	none := sealed(t, nil, 3)
	mustAdd(t, l, a, "org/model", "v1")
	mustAdd(t, l, b, "other", "v1")
	mustAdd(t, l, none, "none", "v1")
	// a: big, same, bundle, config, image; b: big, config, image; none: config, image, {}
	if n := len(files(t, filepath.Join(path, blobDir))); n != 5+3+3 {
		t.Errorf("%d blobs: equal tensors must be stored once", n)
	}
	if n := len(files(t, filepath.Join(path, tmpDir))); n != 0 {
		t.Errorf("%d temporary files are left", n)
	}
	l.Close()
	l = open(t, path, Options{})
	for _, v := range []*manifest.Sealed{a, b, none} {
		readAll(t, l, v)
	}
	e := l.Entries()[2]
	if e.Ref() != "other:v1" || e.Next != 2 || e.Created.UnixMilli() != 1700000000123 || e.Pinned || e.Owner != nil {
		t.Errorf("entry %+v", e)
	}
	v, _ := l.Version(a.Digest)
	if v.Kind != "test" || v.Tensors != 5 || v.Bytes != 300<<10+433 {
		t.Errorf("version %+v", v)
	}
	if _, err := Open(path, Options{}); !errors.As(err, new(*LockedError)) {
		t.Errorf("a second owner: %v", err)
	}
	l.Close()
	checkClean(t, path)
}

// The layout is one that other tools read: oras finds a version by its reference name and copies all of it.
func TestOrasReadsIt(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "data")
	l := open(t, path, Options{})
	v := sealed(t, map[string]int{"big": 200 << 10, "small": 100}, 1)
	mustAdd(t, l, v, "org/model", "v1")
	src, err := orasoci.NewFromFS(ctx, os.DirFS(path))
	if err != nil {
		t.Fatal(err)
	}
	dst := memory.New()
	d, err := oras.Copy(ctx, src, "org/model:v1", dst, "org/model:v1", oras.DefaultCopyOptions)
	if err != nil {
		t.Fatal(err)
	}
	b, err := content.FetchAll(ctx, dst, d)
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if m.Config.Digest != toOCI(v.Digest) || len(m.Layers) != 2 || m.ArtifactType != ArtifactType {
		t.Fatalf("manifest %s", b)
	}
	for _, layer := range append(m.Layers, m.Config) {
		if _, err := content.FetchAll(ctx, dst, layer); err != nil { // checks size and digest
			t.Errorf("%s: %v", layer.MediaType, err)
		}
	}

	// And the other way: what oras copies into a layout is found by its reference name alone.
	back := filepath.Join(t.TempDir(), "back")
	to, err := orasoci.New(back)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oras.Copy(ctx, dst, "org/model:v1", to, "pulled/model:v7", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	l2 := open(t, back, Options{})
	if e := l2.Entries(); len(e) != 1 || e[0].Ref() != "pulled/model:v7" || e[0].Version != v.Digest {
		t.Fatalf("entries %+v", e)
	}
	readAll(t, l2, v)
}

func TestRemoveCollects(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	l := open(t, path, Options{})
	a := sealed(t, map[string]int{"big": 200 << 10, "same": 100 << 10, "small": 9}, 1)
	b := sealed(t, map[string]int{"big": 200 << 10, "same": 100 << 10, "small": 9}, 2)
	mustAdd(t, l, a, "a", "v1")
	mustAdd(t, l, b, "b", "v1")
	before := len(files(t, filepath.Join(path, blobDir)))
	if err := l.Replace(l.Entries()[1:]); err != nil {
		t.Fatal(err)
	}
	readAll(t, l, b)
	if n := len(files(t, filepath.Join(path, blobDir))); n != before-4 { // big, bundle, config, image of a
		t.Errorf("%d blobs of %d are left", n, before)
	}
	if _, err := l.Version(a.Digest); !errors.Is(err, zcerr.NotFound) {
		t.Errorf("the removed version: %v", err)
	}
	// A staged version that is never named leaves nothing.
	s, err := l.Stage(context.Background(), a.Manifest, a.Encoded, source(a))
	if err != nil {
		t.Fatal(err)
	}
	s.Release()
	if n := len(files(t, filepath.Join(path, blobDir))); n != before-4 {
		t.Errorf("%d blobs after an unnamed stage", n)
	}
	l.Close()
	checkClean(t, path)
}

// What somebody else put into the layout stays, and so do its blobs.
func TestForeignDescriptorsStay(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "data")
	l := open(t, path, Options{})
	l.Close()
	o, err := orasoci.New(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := oras.PackManifest(ctx, o, oras.PackManifestVersion1_1, "application/x-other", oras.PackManifestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Tag(ctx, d, "other:1"); err != nil {
		t.Fatal(err)
	}
	l = open(t, path, Options{})
	v := sealed(t, map[string]int{"big": 100 << 10}, 1)
	mustAdd(t, l, v, "a", "v1")
	if err := l.Replace(nil); err != nil {
		t.Fatal(err)
	}
	l.Close()
	l = open(t, path, Options{}) // sweeps
	if len(l.Entries()) != 0 || len(l.foreign) == 0 {
		t.Fatalf("%d entries, %d foreign", len(l.Entries()), len(l.foreign))
	}
	o, err = orasoci.New(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oras.Copy(ctx, o, "other:1", memory.New(), "x", oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
}

var errInjected = errors.New("injected")

// Each step of a put and of a remove fails in turn. The layout is the old one or the new one, never between, and reads whole.
func TestEveryStepFails(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	old := sealed(t, map[string]int{"big": 70 << 10, "same": 66 << 10, "small": 9}, 1)
	l := open(t, base, Options{})
	mustAdd(t, l, old, "a", "v1")
	l.Close()
	next := sealed(t, map[string]int{"big": 70 << 10, "same": 66 << 10, "small": 9}, 2)
	for _, injected := range []error{errInjected, unix.EIO, unix.ENOSPC} {
		seen := map[string]bool{}
		for n := 1; ; n++ {
			path := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(path, os.DirFS(base)); err != nil {
				t.Fatal(err)
			}
			var failed error
			var name string
			at := failpoint.At(n, func(step string) error { name = step; return injected })
			restore := failpoint.Set(at.Listen)
			if l, err := Open(path, Options{}); err != nil {
				failed = err
			} else {
				if failed = add(l, next, "a", "v2"); failed == nil {
					failed = l.Replace(l.Entries()[1:])
				}
				switch {
				case name != "" && strings.Contains(name, "sync") && !isFull(injected) && l.ReadOnly() == nil:
					t.Fatalf("step %d (%s): the layout trusts a disk after a failed fsync", n, name)
				case l.ReadOnly() != nil:
					if err := add(l, next, "b", "v1"); err == nil {
						t.Fatalf("step %d (%s): written after a failed fsync", n, name)
					}
				}
				restore()
				readAll(t, l, must(l, old, next))
				l.Close()
			}
			restore()
			if !at.Hit() {
				if failed != nil {
					t.Fatalf("without a fault: %v", failed)
				}
				break
			}
			seen[name] = true
			l, err := Open(path, Options{})
			if err != nil {
				t.Fatalf("step %d (%s, %v): %v", n, name, failed, err)
			}
			for _, e := range l.Entries() {
				readAll(t, l, map[manifest.Digest]*manifest.Sealed{old.Digest: old, next.Digest: next}[e.Version])
			}
			if k := len(l.Entries()); k == 0 || k > 2 {
				t.Fatalf("step %d (%s): %d entries", n, name, k)
			}
			l.Close()
			checkClean(t, path)
			for f := range files(t, path) {
				if !strings.Contains("blobs index.json lock oci-layout reserve tmp", f) {
					t.Errorf("step %d (%s): stray %s", n, name, f)
				}
			}
		}
		t.Logf("%v at: %v", injected, len(seen))
		for _, want := range []string{"blob.create", "blob.write", "blob.sync", "blob.rename", "blob.syncdir", "blob.remove", "index.create", "index.write", "index.sync", "index.rename", "index.syncdir"} {
			if !seen["disk."+want] {
				t.Errorf("step %s never failed; did: %v", want, maps.Collect(maps.All(seen)))
			}
		}
	}
}

// must is the version that l has, of two.
func must(l *Layout, a, b *manifest.Sealed) *manifest.Sealed {
	if _, err := l.Version(a.Digest); err == nil {
		return a
	}
	return b
}

func TestDamageIsNamed(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	l := open(t, base, Options{})
	v := sealed(t, map[string]int{"big": 200 << 10, "s1": 9, "s2": 10}, 1)
	mustAdd(t, l, v, "m", "v1")
	dv, err := l.Version(v.Digest)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	big, _ := fromOCI(dv.layers[0].Digest)
	bundle, _ := fromOCI(dv.bundle().Digest)
	image, _ := fromOCI(dv.image.Digest)
	for name, c := range map[string]struct {
		file  string
		spoil func(path string) error
		want  []string
		open  string // of Open; empty: it opens
	}{
		"tensor flipped": {blobPath(big), flip, []string{`m:v1: tensor "big": blob`, "is damaged"}, ""},
		"tensor missing": {blobPath(big), os.Remove, []string{`m:v1: tensor "big": blob`, "is missing"}, ""},
		"tensor cut":     {blobPath(big), cut, []string{`m:v1: tensor "big": blob`, "is damaged"}, ""},
		"bundle flipped": {blobPath(bundle), flip, []string{"m:v1: the 2 small tensors: blob", "is damaged"}, ""},
		"image missing":  {blobPath(image), os.Remove, []string{"m:v1: its image manifest cannot be read"}, ""},
		"manifest cut":   {blobPath(v.Digest), cut, []string{"m:v1: blob", "is damaged"}, ""},
		"index empty":    {"index.json", empty, []string{"index.json is empty"}, "index.json is empty"},
		"index cut":      {"index.json", cut, []string{"index.json: unexpected end"}, "unexpected end"},
		"index missing":  {"index.json", os.Remove, []string{"index.json is missing"}, "index.json is missing"},
		"index newer":    {"index.json", newer, []string{"newer release"}, "newer release"},
		"layout missing": {"oci-layout", os.Remove, []string{"oci-layout is missing"}, "oci-layout"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "data")
			if err := os.CopyFS(path, os.DirFS(base)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(path, c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(filepath.Join(path, c.file)); err != nil {
				t.Fatal(err)
			}
			r, err := Check(context.Background(), path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, f := range r.Findings {
				if !f.Note {
					all = append(all, f.Name+": "+f.Problem)
				}
			}
			for _, w := range c.want {
				if !strings.Contains(strings.Join(all, "\n"), w) {
					t.Errorf("findings %q lack %q", all, w)
				}
			}
			n := len(files(t, filepath.Join(path, blobDir)))
			l, err := Open(path, Options{})
			if c.open != "" {
				if !strings.Contains(fmt.Sprint(err), c.open) || !strings.Contains(zcerr.HintOf(err), "fsck") {
					t.Errorf("open: %v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			} else {
				l.Close()
			}
			if got := len(files(t, filepath.Join(path, blobDir))); got != n {
				t.Errorf("opening a damaged layout deleted %d blobs", n-got)
			}
		})
	}
}

func flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(path, b, 0o600)
}
func cut(path string) error   { return os.Truncate(path, 7) }
func empty(path string) error { return os.Truncate(path, 0) }
func newer(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Replace(b, []byte(`"io.zcstore.format": "1"`), []byte(`"io.zcstore.format": "9"`), 1), 0o600)
}

func TestRebuild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	l := open(t, path, Options{})
	v := sealed(t, map[string]int{"big": 200 << 10, "s1": 9}, 1)
	mustAdd(t, l, v, "m", "v1")
	l.Close()
	if err := empty(filepath.Join(path, "index.json")); err != nil {
		t.Fatal(err)
	}
	kept, err := Rebuild(context.Background(), path, Options{}, func(v *Version) []Entry {
		return []Entry{{Name: "recovered/" + v.Digest.Short(), Tag: "v1", Next: 2}}
	})
	if err != nil || kept == "" {
		t.Fatal(kept, err)
	}
	l = open(t, path, Options{})
	if e := l.Entries(); len(e) != 1 || e[0].Name != "recovered/"+v.Digest.Short() {
		t.Fatalf("entries %+v", e)
	}
	readAll(t, l, v)
}

func FuzzParseIndex(f *testing.F) {
	d := sealed(f, map[string]int{"big": 70 << 10}, 1)
	path := filepath.Join(f.TempDir(), "data")
	l := open(f, path, Options{})
	mustAdd(f, l, d, "m", "v1")
	b, err := os.ReadFile(filepath.Join(path, "index.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:00","size":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := ParseIndex(b)
		if err != nil {
			return
		}
		out, err := encodeIndex(ix)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseIndex(out)
		if err != nil || len(again.Entries) != len(ix.Entries) {
			t.Fatalf("what was read cannot be written and read again: %v\n%s", err, out)
		}
	})
}

func FuzzParseImage(f *testing.F) {
	v := sealed(f, map[string]int{"big": 70 << 10, "s": 3}, 1)
	_, image, err := describe(v.Manifest, descriptorOf(ConfigType, v.Encoded), &ocispec.Descriptor{MediaType: BundleType, Digest: toOCI(v.Digest), Size: 3})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image)
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.zcstore.manifest.v1+json"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseImage(ocispec.Descriptor{}, b)
		if err != nil {
			return
		}
		for _, d := range append(v.layers, v.config) {
			if _, err := fromOCI(d.Digest); err != nil || d.Size < 0 {
				t.Fatalf("descriptor %+v was let through", d)
			}
		}
	})
}

// On a full disk the room that is kept goes to the index, so that a remove goes through.
func TestReserveIsForTheIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	l := open(t, path, Options{})
	mustAdd(t, l, sealed(t, map[string]int{"big": 70 << 10}, 1), "a", "v1")
	reserved := func() bool { _, err := os.Stat(filepath.Join(path, reserveFile)); return err == nil }
	if !reserved() {
		t.Fatal("no room is kept")
	}
	restore := failpoint.Set(func(step string) error {
		if strings.HasPrefix(step, "disk.index") && reserved() {
			return unix.ENOSPC // until the room is given back
		}
		return nil
	})
	err := l.Replace(nil)
	restore()
	if err != nil || len(l.Entries()) != 0 {
		t.Errorf("a remove on a full disk: %v, %d entries", err, len(l.Entries()))
	}
	if !reserved() {
		t.Error("no room is kept for the next one")
	}
}
