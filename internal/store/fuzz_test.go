package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Whatever stands in the catalog: a start serves it or refuses with the kind corrupt and a hint, and a start that refuses
// deletes nothing.
func FuzzCatalog(f *testing.F) {
	base := testleak.FuzzDir(f, "/dev/shm")
	model := filepath.Join(base, "model")
	s, err := Open(Options{Dir: model})
	if err != nil {
		f.Fatal(err)
	}
	put(f, s, "a/b", sealed(f, draft(row{"x", 70_000, 1})))
	put(f, s, "a/b:prod", sealed(f, draft(row{"x", 70_000, 1})))
	s.Close()
	good, err := os.ReadFile(filepath.Join(model, catalogFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"models":{"../x":{}}}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(``))
	f.Add([]byte(`{"format":1,"models":{"m":{"next":-1,"tags":{"v1":"sha256:00"}}}}`))
	files, err := os.ReadDir(model)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, catalog []byte) {
		dir, err := os.MkdirTemp(base, "d")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		for _, e := range files {
			if e.Name() == catalogFile || e.Name() == lockFile {
				continue
			}
			if err := os.Link(filepath.Join(model, e.Name()), filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, catalogFile), catalog, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Dir: dir})
		if err == nil {
			if _, err := s.List("", true); err != nil {
				t.Error(err)
			}
			s.Close()
			return
		}
		if zcerr.KindOf(err) != zcerr.Corrupt && zcerr.KindOf(err) != zcerr.Unsupported || zcerr.HintOf(err) == "" {
			t.Errorf("kind %v, hint %q: %v", zcerr.KindOf(err), zcerr.HintOf(err), err)
		}
		for _, e := range files {
			if _, err := os.Stat(filepath.Join(dir, e.Name())); err != nil {
				t.Errorf("a start that refused deleted %s", e.Name())
			}
		}
	})
}
