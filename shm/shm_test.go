package shm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	coreMain()
	os.Exit(testleak.Run(m))
}

func testDir(t *testing.T) *Dir {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "zcstore-test-shm-") // not t.Name(): another run of the tests has the same
	if err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); os.RemoveAll(path) })
	return d
}

func publish(t *testing.T, d *Dir, name string, data []byte) {
	t.Helper()
	w, err := d.Create(int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Publish(name); err != nil {
		t.Fatal(err)
	}
}

func TestPublishMapUnlink(t *testing.T) {
	d := testDir(t)
	data := bytes.Repeat([]byte("weights "), 4096)
	publish(t, d, "s", data)
	f, err := d.Open("s")
	if err != nil {
		t.Fatal(err)
	}
	st, _ := f.Stat()
	if st.Mode() != 0o400 {
		t.Errorf("mode %v", st.Mode())
	}
	m, err := Map(f, len(data))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f.Close()
	if err := d.Remove("s"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.Bytes(), data) {
		t.Error("the mapping lost its bytes at unlink")
	}
	if err := m.Populate(); err != nil {
		t.Error(err)
	}
	if names, _ := d.Names(); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
	if err := unix.Mprotect(m.Bytes(), unix.PROT_READ|unix.PROT_WRITE); !errors.Is(err, unix.EACCES) {
		t.Errorf("mprotect to writable: %v, want EACCES", err)
	}
}

func TestNothingIsSeenBeforePublish(t *testing.T) {
	d := testDir(t)
	w, err := d.Create(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := d.Names(); len(names) != 0 {
		t.Errorf("an unpublished segment has a name: %v", names)
	}
	if u, err := UsageOf(w.f); err != nil || u.Blocks < 1<<20 {
		t.Errorf("only %d bytes reserved (%v)", u.Blocks, err)
	}
	if _, err := w.WriteAt(make([]byte, 2), 1<<20-1); err == nil {
		t.Error("a write past the end was taken")
	}
	w.Abort()
	if names, _ := d.Names(); len(names) != 0 { // and with its last descriptor the file is gone
		t.Errorf("abort left %v", names)
	}
}

func TestTakenNameIsRefused(t *testing.T) {
	d := testDir(t)
	publish(t, d, "s", []byte("one"))
	w, err := d.Create(3)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Publish("s"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second publish: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "../s", strings.Repeat("x", 201)} {
		if _, err := d.Open(bad); err == nil {
			t.Errorf("Open(%q) worked", bad)
		}
	}
}

func TestSizes(t *testing.T) {
	d := testDir(t)
	for _, size := range []int64{0, -1} {
		if _, err := d.Create(size); err == nil {
			t.Errorf("Create(%d) worked", size)
		}
	}
	var full *NoSpaceError
	if _, err := d.Create(1 << 60); !errors.As(err, &full) || full.Need != 1<<60 || full.Have == 0 {
		t.Errorf("an exabyte: %v", err)
	}
}

func TestOpenDirRefuses(t *testing.T) {
	base := t.TempDir()
	if _, err := OpenDir(filepath.Join(base, "disk"), false); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("a directory on disk: %v", err)
	}
	os.Symlink(base, filepath.Join(base, "link"))
	if _, err := OpenDir(filepath.Join(base, "link"), true); err == nil {
		t.Error("a symbolic link was followed")
	}
	os.WriteFile(filepath.Join(base, "file"), nil, 0o600)
	if _, err := OpenDir(filepath.Join(base, "file"), true); err == nil {
		t.Error("a file was taken for a directory")
	}
}

func TestMapRefuses(t *testing.T) {
	d := testDir(t)
	publish(t, d, "s", []byte("short"))
	f, err := d.Open("s")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Map(f, 6); err == nil || !strings.Contains(err.Error(), "announced") {
		t.Errorf("a mapping longer than the file: %v", err)
	}
	if _, err := Map(f, 0); err == nil {
		t.Error("an empty mapping was made")
	}
	rw, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer rw.Close()
	rw.Truncate(10)
	if _, err := Map(rw, 10); err == nil || !strings.Contains(err.Error(), "writing") {
		t.Errorf("a writable descriptor: %v", err)
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	defer w.Close()
	if _, err := Map(r, 10); err == nil {
		t.Error("a pipe was mapped")
	}
}

func TestLockAndReplaceFile(t *testing.T) {
	d := testDir(t)
	lock, _, err := d.Lock("pid 1")
	if err != nil {
		t.Fatal(err)
	}
	if _, holder, err := d.Lock("pid 2"); !errors.Is(err, unix.EWOULDBLOCK) || holder != "pid 1" {
		t.Errorf("second lock: %v, holder %q", err, holder)
	}
	lock.Close()
	if again, _, err := d.Lock("pid 3"); err != nil {
		t.Errorf("lock after release: %v", err)
	} else {
		again.Close()
	}
	for _, text := range []string{"one", "two"} {
		if err := d.ReplaceFile("catalog", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := d.Open("catalog")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 3)
	f.Read(got)
	if string(got) != "two" {
		t.Errorf("catalog holds %q", got)
	}
}
