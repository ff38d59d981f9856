package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Somebody cuts a table while the daemon reads it through its mapping: the version is damaged, and the store lives on.
func TestCase29TableCutUnderTheDaemon(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	v, other := sealed(t, draft(row{"x", 70_000, 1})), sealed(t, draft(row{"x", 70_000, 2}))
	put(t, s, "m", v)
	put(t, s, "other", other)
	restore := failpoint.Set(func(step string) error {
		if step != "verify.table-mapped" {
			return nil
		}
		file := filepath.Join(path, tableFile(v.Digest))
		return errors.Join(os.Chmod(file, 0o600), os.Truncate(file, 0))
	})
	_, err := s.Verify(context.Background(), "m")
	restore()
	if !errors.Is(err, zcerr.Corrupt) {
		t.Fatalf("verify: %v", err)
	}
	if _, _, err := s.Attach("m", Holder{}); !errors.Is(err, zcerr.Corrupt) {
		t.Errorf("what was cut is served: %v", err)
	}
	readBack(t, s, "other", other)
	put(t, s, "m", v) // mends it
	readBack(t, s, "m", v)
}

// The same when it is read to be written elsewhere, which the store does by itself after a removal.
func TestCase29TableCutUnderACompaction(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	put(t, s, "m:old", sealed(t, draft(rowsOf("w", 20, 256<<10, 1)...)))
	a, other := sealed(t, draft(rowsOf("w", 3, 256<<10, 1)...)), sealed(t, draft(row{"x", 70_000, 2}))
	put(t, s, "m:a", a)
	put(t, s, "other", other)
	cut := make(chan error, 10)
	restore := failpoint.Set(func(step string) error {
		if step == "table.mapped" {
			file := filepath.Join(path, tableFile(a.Digest))
			cut <- errors.Join(os.Chmod(file, 0o600), os.Truncate(file, 0))
		}
		return nil
	})
	defer restore()
	if _, err := s.Remove("m:old", false); err != nil {
		t.Fatal(err)
	}
	if err := <-cut; err != nil {
		t.Fatal(err)
	}
	settledStore(t, s) // it was taken out of service
	if _, _, err := s.Attach("m:a", Holder{}); !errors.Is(err, zcerr.Corrupt) {
		t.Errorf("what was cut is served: %v", err)
	}
	readBack(t, s, "other", other)
}
