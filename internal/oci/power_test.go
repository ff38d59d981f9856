package oci

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/manifest"
)

// A power cut at any step: the disk is an ext4 file system in an image file. When the step comes, everything halts there, and
// the image is copied: the copy has what reached the disk, and not what was only in the page cache. The copy is mounted as the
// machine would after the cut, and has every version that was acknowledged, whole, and no half of any other.
func TestCase26PowerCut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts an ext4 image on a loop device")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4")
	}
	every, commits := 4, []int{1000}
	if os.Getenv("ZCSTORE_SOAK") != "" {
		every, commits = 1, []int{1, 5, 1000}
	}
	cuts := 0
	for _, commit := range commits {
		for n := 1; ; n += every {
			if !cutAt(t, n, commit) {
				break
			}
			cuts++
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d power cuts", cuts)
	if cuts < 10 {
		t.Errorf("only %d power cuts", cuts)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// mount mounts an image until unmount.
func mount(t *testing.T, image, dir string, commit int) (unmount func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("mount", "-o", fmt.Sprintf("loop,commit=%d", commit), image, dir).CombinedOutput()
	if err != nil {
		t.Skipf("mount on a loop device: %v\n%s", err, out)
	}
	var once sync.Once
	unmount = func() {
		once.Do(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmount: %v", err)
			}
		})
	}
	t.Cleanup(unmount)
	return unmount
}

// cutAt cuts the power at the n-th step of two puts, a retag and a removal. It reports false when there are fewer steps.
func cutAt(t *testing.T, n, commit int) bool {
	t.Helper()
	work := t.TempDir()
	image, cut := filepath.Join(work, "disk"), filepath.Join(work, "cut")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-b", "1024", "-m", "0", image)
	unmount := mount(t, image, filepath.Join(work, "mnt"), commit)
	path := filepath.Join(work, "mnt", "data")

	sizes := map[string]int{"big": 70 << 10, "same": 66 << 10, "small": 9}
	a, b, c := sealed(t, sizes, 1), sealed(t, sizes, 2), sealed(t, sizes, 3)
	l, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mustAdd(t, l, a, "a", "v1")

	var halted atomic.Bool
	var step string
	var acked, possible []string // of what a copy made now must have, and may have
	note := func(must, may []string) { acked, possible = must, may }
	note([]string{"a:v1"}, []string{"a:v1"})
	at := failpoint.At(n, func(name string) error {
		step = name
		halted.Store(true) // nobody does another step
		copyImage(t, image, cut)
		return errInjected
	})
	restore := failpoint.Set(func(name string) error {
		if halted.Load() {
			return errInjected
		}
		return at.Listen(name)
	})
	for _, op := range []struct {
		do        func() error
		must, may []string
	}{
		{func() error { return add(l, b, "b", "v1") }, []string{"a:v1", "b:v1"}, []string{"a:v1", "b:v1"}},
		{func() error { return l.Replace(retag(l.Entries(), "b", "prod")) }, []string{"a:v1", "b:prod"}, []string{"a:v1", "b:v1", "b:prod"}},
		{func() error { return l.Replace(l.Entries()[1:]) }, []string{"b:prod"}, []string{"a:v1", "b:prod"}},
		{func() error { return add(l, c, "c", "v1") }, []string{"b:prod", "c:v1"}, []string{"b:prod", "c:v1"}},
	} {
		// While it runs, what it takes away may be gone, and what it adds may be there.
		note(intersect(acked, op.must), union(possible, op.may))
		if op.do() != nil || halted.Load() {
			break
		}
		note(op.must, op.must)
	}
	restore()
	l.Close()
	unmount()
	if !at.Hit() {
		return false
	}
	defer mount(t, cut, filepath.Join(work, "after"), commit)()
	path = filepath.Join(work, "after", "data")
	l, err = Open(path, Options{})
	if err != nil {
		t.Fatalf("commit %d, power cut at step %d (%s): %v", commit, n, step, err)
	}
	var got []string
	for _, e := range l.Entries() {
		got = append(got, e.Ref())
		readAll(t, l, map[manifest.Digest]*manifest.Sealed{a.Digest: a, b.Digest: b, c.Digest: c}[e.Version])
	}
	l.Close()
	if len(intersect(acked, got)) != len(acked) || len(union(possible, got)) != len(possible) {
		t.Errorf("commit %d, power cut at step %d (%s): there is %q, must be %q, may be %q", commit, n, step, got, acked, possible)
	}
	r, err := Check(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("commit %d, power cut at step %d (%s): %+v", commit, n, step, f)
	}
	return true
}

func retag(entries []Entry, name, tag string) []Entry {
	for i := range entries {
		if entries[i].Name == name {
			entries[i].Tag = tag
		}
	}
	return entries
}

func intersect(a, b []string) (out []string) {
	for _, s := range a {
		if slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}

// copyImage copies what is on the disk now.
func copyImage(t *testing.T, from, to string) {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}
