package failpoint

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/shm"
)

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }

// segment makes, fills and publishes one segment, and gives the first error.
func segment(d *shm.Dir) error {
	w, err := d.Create(8192)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.WriteAt(bytes.Repeat([]byte("x"), 8192), 0); err != nil {
		return err
	}
	return w.Publish("s")
}

func testDir(t *testing.T) *shm.Dir {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := shm.OpenDir(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(); os.RemoveAll(path) })
	return d
}

func TestEveryStepOfASegmentFailsAsItself(t *testing.T) {
	d := testDir(t)
	listen := At(0, nil)
	restore := Set(listen.Listen)
	err := segment(d)
	restore()
	if want := []string{"create", "fallocate", "write", "chmod", "link"}; err != nil || !slices.Equal(listen.Steps(), want) {
		t.Fatalf("steps %q, %v; want %q", listen.Steps(), err, want)
	}
	if err := d.Remove("s"); err != nil {
		t.Fatal(err)
	}
	for n := range listen.Steps() {
		at := At(n+1, func(string) error { return unix.EIO })
		restore := Set(at.Listen)
		err := segment(d)
		restore()
		if !at.Hit() || !errors.Is(err, unix.EIO) {
			t.Errorf("step %d (%s): %v", n+1, listen.Steps()[n], err)
		}
		if names, _ := d.Names(); len(names) != 0 {
			t.Errorf("step %d left %q", n+1, names)
		}
	}
}

// A call that a signal interrupts is made again.
func TestInterruptedCallsAreMadeAgain(t *testing.T) {
	d := testDir(t)
	for n := 1; ; n++ {
		at := At(n, func(string) error { return unix.EINTR })
		restore := Set(at.Listen)
		err := errors.Join(segment(d), d.Remove("s"))
		restore()
		if err != nil {
			t.Errorf("step %d: %v", n, err)
		}
		if !at.Hit() {
			break
		}
	}
}

func TestAShortWriteEndsTheWrite(t *testing.T) {
	d := testDir(t)
	defer Set(func(step string) error {
		if step == "write" {
			return shm.ErrShort
		}
		return nil
	})()
	if err := segment(d); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("got %v", err)
	}
	if err := d.ReplaceFile("catalog", []byte("12345678")); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("replace: %v", err)
	}
	if names, _ := d.Names(); len(names) != 0 {
		t.Errorf("left: %q", names)
	}
}

func TestNobodyListensAfterwards(t *testing.T) {
	at := At(1, func(string) error { return unix.EIO })
	Set(at.Listen)()
	if err := Step("x"); err != nil || at.Hit() {
		t.Errorf("a step after restore: %v", err)
	}
}
