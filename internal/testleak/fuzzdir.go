package testleak

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// FuzzDir makes a directory below parent for a fuzz target. `go test -fuzz` ends its worker processes without their cleanups,
// so theirs lie in a directory of the process that started them, which runs the same target and takes all away at its end.
func FuzzDir(f *testing.F, parent string) string {
	f.Helper()
	owner, worker := os.Getpid(), false
	if w := flag.Lookup("test.fuzzworker"); w != nil && w.Value.String() == "true" {
		owner, worker = os.Getppid(), true
	}
	base := filepath.Join(parent, fmt.Sprintf("zcf%d", owner))
	if err := os.MkdirAll(base, 0o700); err != nil {
		f.Fatal(err)
	}
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if worker {
			os.RemoveAll(dir)
			return
		}
		os.RemoveAll(base)
	})
	return dir
}
