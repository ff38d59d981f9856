// Package golden finds the reference data that tests compare with.
//
// Small sets are committed under test/golden and always there: [Tree]. Large ones (model weights) are kept outside the
// repository: [Path] looks in $ZCSTORE_GOLDEN, then in shared/golden beside the repository. Without them a test is
// skipped and says so; with ZCSTORE_REQUIRE_GOLDEN=1 that skip is a failure.
package golden

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// Path is the path of a file or folder of the large set. It skips the test, or fails it under
// ZCSTORE_REQUIRE_GOLDEN=1, when the file is not there.
func Path(t testing.TB, parts ...string) string {
	t.Helper()
	dir := os.Getenv("ZCSTORE_GOLDEN")
	if dir == "" {
		root, err := root()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(filepath.Dir(root), "shared", "golden")
	}
	path := filepath.Join(append([]string{dir}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("ZCSTORE_REQUIRE_GOLDEN") == "1" {
			t.Fatalf("golden data is required: %v", err)
		}
		t.Skipf("golden data not found (set ZCSTORE_GOLDEN to its folder): %v", err)
	}
	return path
}

// Tree is the path of a file or folder under test/golden of this repository. The test fails when it is not there.
func Tree(t testing.TB, parts ...string) string {
	t.Helper()
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(append([]string{root, "test", "golden"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("committed golden data is missing: %v", err)
	}
	return path
}

// root is the nearest folder with a go.mod; tests run in the folder of their package.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = up
	}
}
