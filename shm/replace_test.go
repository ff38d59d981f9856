package shm

import (
	"io"
	"os"
	"testing"
)

// keeper keeps descriptors as a service manager does.
type keeper struct{ kept map[string]*os.File }

func (k *keeper) Keep(name string, f *os.File) error {
	own, err := reopen(f)
	k.kept[name] = own
	return err
}
func (k *keeper) Drop(name string) error {
	if f := k.kept[name]; f != nil {
		delete(k.kept, name)
		return f.Close()
	}
	return nil
}
func (k *keeper) Sync() error { return nil }
func (k *keeper) Room() int   { return 100 }

// TestReplace holds for every backing: a name goes from one whole file to another, and who has the old one keeps it.
func TestReplace(t *testing.T) {
	k := &keeper{map[string]*os.File{}}
	mem, _ := NewMemfd(k, nil)
	path, err := os.MkdirTemp("/dev/shm", "zcstore-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(path)
	dir, err := OpenDir(path, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []Backing{dir, mem} {
		write := func(text string) error {
			w, err := b.Create(int64(len(text)))
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			if _, err := w.WriteAt([]byte(text), 0); err != nil {
				t.Fatal(err)
			}
			if text == "taken" {
				return w.Publish("t-1")
			}
			return w.Replace("t-1")
		}
		read := func(b Backing) string {
			f, err := b.Open("t-1")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			s, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			return string(s)
		}
		if err := write("first"); err != nil {
			t.Fatal(err)
		}
		old, err := b.Open("t-1")
		if err != nil {
			t.Fatal(err)
		}
		defer old.Close()
		if write("taken") == nil {
			t.Errorf("%s: Publish took a name that another file has", b.Kind())
		}
		if err := write("second"); err != nil {
			t.Fatal(err)
		}
		if got := read(b); got != "second" {
			t.Errorf("%s: after Replace the file is %q", b.Kind(), got)
		}
		if s, err := io.ReadAll(old); string(s) != "first" {
			t.Errorf("%s: who had the old file reads %q (%v)", b.Kind(), s, err)
		}
		if names, err := b.Names(); err != nil || len(names) != 1 {
			t.Errorf("%s: left are %v (%v)", b.Kind(), names, err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	var kept []Kept
	for name, f := range k.kept {
		kept = append(kept, Kept{name, f})
	}
	if len(kept) != 1 {
		t.Errorf("the keeper has %d descriptors, want the new file's alone", len(kept))
	}
	next, refused := NewMemfd(&keeper{map[string]*os.File{}}, kept)
	defer next.Close()
	if len(refused) > 0 {
		t.Fatal(refused)
	}
	f, err := next.Open("t-1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s, _ := io.ReadAll(f); string(s) != "second" {
		t.Errorf("the next process has %q", s)
	}
}
