package shm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// collapsed measures how much of a file is in pages of 2 MiB, by a mapping at an address that lets them be seen.
func collapsed(t *testing.T, f *os.File, size int) uint64 {
	t.Helper()
	data, unmap, err := mapAligned(int(f.Fd()), int64(size), unix.PROT_READ)
	if err != nil {
		t.Fatal(err)
	}
	defer unmap()
	n, err := measureHuge(data)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// reserving makes large files on a plain tmpfs and in memfds, one that ends inside a page of 2 MiB among them.
func reserving(t *testing.T, check func(t *testing.T, b Backing, size int64)) {
	for name, open := range map[string]func(t *testing.T) Backing{
		KindShm: func(t *testing.T) Backing { return testDir(t) },
		KindMemfd: func(t *testing.T) Backing {
			m, _ := NewMemfd(nil, nil)
			t.Cleanup(func() { m.Close() })
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int64{collapseFrom, collapseFrom + hugePage + PageSize + 5} {
				check(t, open(t), size)
			}
		})
	}
}

// A large file is whole, zero, and takes its own size and no more, whether the kernel collapsed it or not.
func TestReserveLarge(t *testing.T) {
	t.Cleanup(func() { SetHook(nil) })
	reserving(t, func(t *testing.T, b Backing, size int64) {
		for _, injected := range []error{nil, unix.ENOMEM} {
			SetHook(func(step string) error {
				if step == "collapse" {
					return injected
				}
				return nil
			})
			w, err := b.Create(size)
			if err != nil {
				t.Fatalf("%d bytes, collapse gives %v: %v", size, injected, err)
			}
			want := uint64(size+PageSize-1) / PageSize * PageSize
			if u, err := w.Usage(); err != nil || u.Size != uint64(size) || u.Blocks != want {
				t.Errorf("%+v, %v: want %d bytes in %d", u, err, size, want)
			}
			huge := collapsed(t, w.f, int(size))
			t.Logf("%d bytes, collapse gives %v: %d in pages of 2 MiB", size, injected, huge)
			if injected != nil && huge != 0 && !kernelHuge() {
				t.Errorf("%d bytes in pages of 2 MiB, and nothing was collapsed", huge)
			}
			all := make([]byte, size)
			if _, err := w.ReadAt(all, 0); err != nil || !bytes.Equal(all, make([]byte, size)) {
				t.Errorf("a new file is not all zero: %v", err)
			}
			if _, err := w.WriteAt([]byte("end"), size-3); err != nil {
				t.Error(err)
			}
			if err := w.Publish("s-1"); err != nil {
				t.Fatal(err)
			}
			if err := b.Remove("s-1"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Where the kernel can, a large file is in pages of 2 MiB, but for its tail.
func TestReserveCollapses(t *testing.T) {
	reserving(t, func(t *testing.T, b Backing, size int64) {
		w, err := b.Create(size)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		if huge := collapsed(t, w.f, int(size)); huge == 0 {
			t.Skip("this kernel cannot collapse the pages of a file, or has none of 2 MiB")
		} else if huge%hugePage != 0 || huge > uint64(size) {
			t.Errorf("%d of %d bytes in pages of 2 MiB", huge, size)
		}
	})
}

// Case 36: also a large file that does not fit leaves nothing.
func TestCase36FullWhileCollapsing(t *testing.T) {
	path := testMount(t, "size=32m,mode=0700")
	d, err := OpenDir(filepath.Join(path, "d"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fill(t, d, "s-1", make([]byte, 5<<20))
	before, err := d.Space()
	if err != nil {
		t.Fatal(err)
	}
	var full *NoSpaceError
	for _, size := range []int64{28 << 20, 40 << 20} {
		if _, err := d.Create(size); !errors.As(err, &full) || full.Need != uint64(size) || full.Have != before.Free {
			t.Errorf("%v; free are %d", err, before.Free)
		}
		if after, err := d.Space(); err != nil || after != before {
			t.Errorf("before %+v, after %+v, %v", before, after, err)
		}
	}
}
