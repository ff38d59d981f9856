package golden

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// recorder stands in for a test, so that a skip and a failure can be told apart.
type recorder struct {
	testing.TB
	skipped, failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Skipf(string, ...any)  { r.skipped = true; runtime.Goexit() }
func (r *recorder) Fatalf(string, ...any) { r.failed = true; runtime.Goexit() }
func (r *recorder) Fatal(...any)          { r.failed = true; runtime.Goexit() }

func try(f func(testing.TB)) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestPath(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("ZCSTORE_GOLDEN", dir)
	t.Setenv("ZCSTORE_REQUIRE_GOLDEN", "")
	if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Path(t, "a"); got != filepath.Join(dir, "a") {
		t.Errorf("got %s", got)
	}
	missing := func(tb testing.TB) { Path(tb, "no", "such") }
	if r := try(missing); !r.skipped || r.failed {
		t.Errorf("a missing file did not skip: %+v", r)
	}
	t.Setenv("ZCSTORE_REQUIRE_GOLDEN", "1")
	if r := try(missing); !r.failed || r.skipped {
		t.Errorf("a required file that is missing did not fail: %+v", r)
	}
}

func TestTree(t *testing.T) {
	Tree(t, "README.md")
	if r := try(func(tb testing.TB) { Tree(tb, "no-such") }); !r.failed {
		t.Error("a missing committed file did not fail")
	}
}
