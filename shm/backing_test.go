package shm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testMount mounts a tmpfs for the length of the test.
func testMount(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a tmpfs")
	}
	path := t.TempDir()
	if err := unix.Mount("zcstore-test", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Skipf("cannot mount a tmpfs with %s: %v", options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

// fakeKeeper is a service manager in this process. What it has when a process is killed is what Keep brought and Drop did
// not take; it says in which order.
type fakeKeeper struct {
	files  map[string]*os.File
	events []string
	room   int
	fail   string // the first event with this beginning fails, and is not done
}

func newFakeKeeper(t *testing.T) *fakeKeeper {
	k := &fakeKeeper{files: map[string]*os.File{}, room: 100}
	t.Cleanup(func() {
		for _, f := range k.files {
			f.Close()
		}
	})
	return k
}

func (k *fakeKeeper) step(event string) error {
	if k.fail != "" && strings.HasPrefix(event, k.fail) {
		k.fail = ""
		return errors.New("injected")
	}
	k.events = append(k.events, event)
	return nil
}

func (k *fakeKeeper) Keep(name string, f *os.File) error {
	if err := k.step("keep " + name); err != nil {
		return err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		k.files[name] = os.NewFile(uintptr(fd), name)
	}
	return err
}

func (k *fakeKeeper) Drop(name string) error {
	if err := k.step("drop " + name); err != nil {
		return err
	}
	if f := k.files[name]; f != nil {
		f.Close()
		delete(k.files, name)
	}
	return nil
}

func (k *fakeKeeper) Sync() error { return k.step("sync") }
func (k *fakeKeeper) Room() int   { return k.room - len(k.files) }

// kept is what the next process gets.
func (k *fakeKeeper) kept(t *testing.T) []Kept {
	t.Helper()
	var out []Kept
	for name, f := range k.files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Kept{name, os.NewFile(uintptr(fd), name)})
	}
	slices.SortFunc(out, func(a, b Kept) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func contents(t *testing.T, b Backing, name string) string {
	t.Helper()
	f, err := b.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func fill(t *testing.T, b Backing, name string, data []byte) {
	t.Helper()
	w, err := b.Create(int64(len(data)))
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

// Every backing keeps the promises of the interface.
func TestBackings(t *testing.T) {
	for kind, open := range map[string]func(t *testing.T) Backing{
		KindShm: func(t *testing.T) Backing { return testDir(t) },
		KindMemfd: func(t *testing.T) Backing {
			m, refused := NewMemfd(newFakeKeeper(t), nil)
			if len(refused) > 0 {
				t.Fatal(refused)
			}
			t.Cleanup(func() { m.Close() })
			return m
		},
	} {
		t.Run(kind, func(t *testing.T) {
			b := open(t)
			if b.Kind() != kind {
				t.Errorf("kind %q", b.Kind())
			}
			data := bytes.Repeat([]byte("weights "), 4096)
			fill(t, b, "s-1", data)
			f, err := b.Open("s-1")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if st, err := f.Stat(); err != nil || st.Mode() != 0o400 || st.Size() != int64(len(data)) {
				t.Errorf("mode %v, %v", st, err)
			}
			m, err := Map(f, len(data))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			other, err := b.Open("s-1")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			f.Seek(100, 0)
			if at, _ := other.Seek(0, 1); at != 0 {
				t.Error("two opened files share an offset")
			}
			for _, text := range []string{"one", "two", "three"} {
				if err := b.ReplaceFile("catalog", []byte(text)); err != nil {
					t.Fatal(err)
				}
				if got := contents(t, b, "catalog"); got != text {
					t.Errorf("the catalog is %q", got)
				}
			}
			names, err := b.Names()
			slices.Sort(names)
			if err != nil || !slices.Equal(names, []string{"catalog", "s-1"}) {
				t.Errorf("names %v, %v", names, err)
			}
			if space, err := b.Space(); err != nil || space.Linked != uint64(len(data))+4096 || space.Free == 0 || space.Free > space.Size {
				t.Errorf("space %+v, %v", space, err)
			}
			w, err := b.Create(8)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Publish("s-1"); !errors.Is(err, unix.EEXIST) {
				t.Errorf("a taken name: %v", err)
			}
			if err := b.Destroy("catalog"); err != nil {
				t.Error(err)
			}
			if names, _ := b.Names(); len(names) != 2 {
				t.Errorf("a backing with a segment in it was destroyed: %v are left", names)
			}
			for range 2 {
				if err := b.Remove("s-1"); err != nil {
					t.Error(err)
				}
			}
			if _, err := b.Open("s-1"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("a removed file: %v", err)
			}
			if !bytes.Equal(m.Bytes(), data) {
				t.Error("a mapping lost its bytes when the file was removed")
			}
			if err := b.Destroy("catalog"); err != nil {
				t.Error(err)
			}
		})
	}
}

// A replaced file is one or the other, wherever the process ends: the keeper has the new generation before it drops the old.
func TestMemfdReplaceKeepsOneGeneration(t *testing.T) {
	for _, fail := range []string{"", "keep catalog.2", "sync", "drop catalog.1"} {
		k := newFakeKeeper(t)
		m, _ := NewMemfd(k, nil)
		if err := m.ReplaceFile("catalog", []byte("old")); err != nil {
			t.Fatal(err)
		}
		k.fail, k.events = fail, nil
		err := m.ReplaceFile("catalog", []byte("new"))
		want := "new"
		if fail == "keep catalog.2" || fail == "sync" {
			want = "old"
		}
		if (err == nil) != (want == "new") || contents(t, m, "catalog") != want {
			t.Errorf("fail %q: %v, and it holds %q", fail, err, contents(t, m, "catalog"))
		}
		if fail == "" && !slices.Equal(k.events, []string{"keep catalog.2", "sync", "drop catalog.1"}) {
			t.Errorf("the keeper saw %v", k.events)
		}
		m.Close() // killed
		next, refused := NewMemfd(k, k.kept(t))
		if len(refused) > 0 || contents(t, next, "catalog") != want {
			t.Errorf("fail %q: the next process has %q, refused %v", fail, contents(t, next, "catalog"), refused)
		}
		if err := next.ReplaceFile("catalog", []byte("later")); err != nil || contents(t, next, "catalog") != "later" || len(k.files) != 1 {
			t.Errorf("fail %q: afterwards %v, the keeper has %d", fail, err, len(k.files))
		}
		next.Close()
	}
}

func TestMemfdRefusesAtTheKeepersLimit(t *testing.T) {
	k := newFakeKeeper(t)
	k.room = putFiles - 1
	m, _ := NewMemfd(k, nil)
	defer m.Close()
	var full *FullError
	if _, err := m.Create(1); !errors.As(err, &full) || full.Have != putFiles-1 || full.Need != putFiles {
		t.Errorf("%v", err)
	}
}

// A keeper's descriptor that anybody could still change, or that is of something else, is not taken.
func TestMemfdRefusesWhatIsNotSealed(t *testing.T) {
	memfd := func(seals int) *os.File {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(fd), "x")
	}
	open := func(path string) *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	k := newFakeKeeper(t)
	m, refused := NewMemfd(k, []Kept{
		{"s-1", memfd(0)}, {"s-2", memfd(allSeals &^ unix.F_SEAL_WRITE)}, {"s-3", memfd(allSeals &^ unix.F_SEAL_SHRINK)},
		{"s-4", memfd(allSeals &^ unix.F_SEAL_GROW)}, {"s-5", memfd(allSeals &^ unix.F_SEAL_SEAL)}, {"s-6", open("/dev/null")},
		{"s-7", open("/proc/self/exe")}, {"s-8", memfd(allSeals)}, {"", memfd(allSeals)},
	})
	defer m.Close()
	if names, _ := m.Names(); len(refused) != 8 || !slices.Equal(names, []string{"s-8"}) {
		t.Errorf("it took %v, refused %v", names, refused)
	}
	if !slices.Contains(k.events, "drop s-1") {
		t.Errorf("the keeper was told %v", k.events)
	}
}

// Case 62: whoever filled a segment may still have it mapped. Then it is not published, for the mapping would stay writable.
func TestCase62WriterKeepsItsMapping(t *testing.T) {
	m, _ := NewMemfd(nil, nil)
	defer m.Close()
	w, err := m.Create(4096)
	if err != nil {
		t.Fatal(err)
	}
	writable, err := unix.Mmap(int(w.f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Publish("s-1"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("published with a writable mapping alive: %v", err)
	}
	if names, _ := m.Names(); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
	if err := unix.Munmap(writable); err != nil {
		t.Fatal(err)
	}
	fill(t, m, "s-1", make([]byte, 4096))
}

// A reader gets another mapping: read-only, however it tries, and none that it could make writable later.
func TestMemfdMappingCannotBeMadeWritable(t *testing.T) {
	m, _ := NewMemfd(nil, nil)
	defer m.Close()
	fill(t, m, "s-1", make([]byte, 4096))
	f, err := m.Open("s-1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mp, err := Map(f, 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer mp.Close()
	if err := unix.Mprotect(mp.Bytes(), unix.PROT_READ|unix.PROT_WRITE); !errors.Is(err, unix.EACCES) {
		t.Errorf("mprotect: %v", err)
	}
}

// Case 36: a file system that is full says so before anything is written, and nothing stays of the attempt.
func TestCase36FullSharedMemory(t *testing.T) {
	path := testMount(t, "size=1m,mode=0700")
	d, err := OpenDir(filepath.Join(path, "d"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fill(t, d, "s-1", make([]byte, 512<<10))
	before, err := d.Space()
	if err != nil {
		t.Fatal(err)
	}
	var full *NoSpaceError
	if _, err := d.Create(768 << 10); !errors.As(err, &full) || full.Need != 768<<10 || full.Have != before.Free {
		t.Errorf("%v; free are %d", err, before.Free)
	}
	if after, err := d.Space(); err != nil || after != before {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	fill(t, d, "rest", make([]byte, before.Free))
	if err := d.ReplaceFile("catalog", make([]byte, 5000)); !errors.As(err, &full) {
		t.Errorf("a catalog that does not fit: %v", err)
	}
	if names, _ := d.Names(); len(names) != 2 {
		t.Errorf("left: %v", names)
	}
}

// Case 37: without an inode nothing can be made, although there is memory.
func TestCase37NoInodes(t *testing.T) {
	path := testMount(t, "size=1m,mode=0700,nr_inodes=4") // the root, the directory, and two files
	d, err := OpenDir(filepath.Join(path, "d"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	fill(t, d, "s-1", []byte("one"))
	fill(t, d, "s-2", []byte("two"))
	var full *FullError
	if _, err := d.Create(1); !errors.As(err, &full) || !strings.Contains(full.Fix, "nr_inodes=") {
		t.Errorf("create: %v", err)
	}
	if err := d.ReplaceFile("catalog", []byte("x")); !errors.As(err, &full) {
		t.Errorf("replace: %v", err)
	}
	if err := d.Remove("s-1"); err != nil {
		t.Fatal(err)
	}
	fill(t, d, "s-3", []byte("three"))
}

// Case 63: what somebody else has put where the directory belongs, or inside it, is neither followed nor waited for.
func TestCase63PlantedNames(t *testing.T) {
	base := t.TempDir()
	elsewhere := filepath.Join(base, "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(elsewhere, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := func(path string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		t.Chdir(filepath.Dir(path)) // a path of a socket is short
		return unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Base(path)})
	}
	const stranger = 65534
	plants := map[string]func(path string) error{
		"a link to a directory":        func(p string) error { return os.Symlink(elsewhere, p) },
		"a link to a file":             func(p string) error { return os.Symlink(victim, p) },
		"a link to nothing":            func(p string) error { return os.Symlink(filepath.Join(base, "nothing"), p) },
		"a fifo":                       func(p string) error { return unix.Mkfifo(p, 0o666) },
		"a socket":                     socket,
		"a file":                       func(p string) error { return os.WriteFile(p, nil, 0o666) },
		"a directory of somebody else": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, stranger, stranger)) },
		"a directory that is everyones": func(p string) error {
			return errors.Join(os.Mkdir(p, 0o777), os.Chown(p, stranger, stranger), os.Chmod(p, 0o777))
		},
	}
	for name, plant := range plants {
		t.Run(name, func(t *testing.T) {
			if strings.Contains(name, "directory") && !strings.Contains(name, "link") && os.Geteuid() != 0 {
				t.Skip("needs root, to plant as somebody else")
			}
			path := filepath.Join(base, "segments")
			defer os.RemoveAll(path)
			if err := plant(path); err != nil {
				t.Fatal(err)
			}
			if d, err := OpenDir(path, true); err == nil {
				d.Close()
				t.Error("it was taken for the segment directory")
			}
			for _, inside := range []string{"lock", "catalog", "s-1"} {
				d, err := OpenDir(filepath.Join(base, "own"), true)
				if err != nil {
					t.Fatal(err)
				}
				at := filepath.Join(d.Path(), inside)
				if err := plant(at); err != nil {
					t.Fatal(err)
				}
				if f, err := d.Open(inside); err == nil && name != "a file" {
					f.Close()
					t.Errorf("%s was opened", inside)
				}
				if lock, _, err := d.Lock("me"); err == nil {
					lock.Close()
					if inside == "lock" && name != "a file" {
						t.Error("it was taken for the lock")
					}
				}
				w, err := d.Create(1)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Publish("s-1"); inside == "s-1" && !errors.Is(err, unix.EEXIST) {
					t.Errorf("published over it: %v", err)
				}
				// A rename takes the place of a link without following it; over a directory it fails.
				if err := d.ReplaceFile("catalog", []byte("{}")); err == nil && contents(t, d, "catalog") != "{}" {
					t.Error("the catalog went somewhere else")
				}
				d.Close()
				if err := os.RemoveAll(filepath.Join(base, "own")); err != nil {
					t.Fatal(err)
				}
			}
			if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
				t.Errorf("what a link pointed at is %q now, %v", b, err)
			}
			if entries, _ := os.ReadDir(elsewhere); len(entries) != 1 {
				t.Errorf("something was made where a link points: %v", entries)
			}
		})
	}
}

func TestHandOutThroughRefuses(t *testing.T) {
	path := testMount(t, "size=1m,mode=0700")
	d, err := OpenDir(filepath.Join(path, "d"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	other := filepath.Join(path, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{other: "is not the segment directory", d.Path(): "not mounted read-only", filepath.Join(path, "missing"): "no such file"} {
		if err := d.HandOutThrough(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("hand out through %s: %v, want %q", filepath.Base(dir), err, want)
		}
	}
	if g := d.Guarantee(); g.Root != ReachByFD {
		t.Errorf("after refusals: %+v", g)
	}
}

// Case 83: whether pages may go to a swap device is said, and a mount that forbids it is known.
func TestCase83SwapIsShown(t *testing.T) {
	for options, want := range map[string]Swap{"size=1m,mode=0700,noswap": SwapNever, "size=1m,mode=0700": MachineSwap()} {
		t.Run(options, func(t *testing.T) { // a kernel before 6.4 knows no noswap, and the mount is skipped
			d, err := OpenDir(filepath.Join(testMount(t, options), "d"), false)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if got := d.Guarantee().Swap; got != want || got == SwapUnknown {
				t.Errorf("swap is %v, want %v", got, want)
			}
		})
	}
}

func TestFileSystemIsOursAlone(t *testing.T) {
	root := testMount(t, "size=1m,mode=0700")
	own := func(path string) bool {
		t.Helper()
		d, err := OpenDir(path, false)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s, err := d.Space()
		if err != nil {
			t.Fatal(err)
		}
		return s.Own
	}
	if !own(root) || !own(filepath.Join(root, "d")) {
		t.Error("a mount with nothing else on it is not known as our own")
	}
	if err := os.Mkdir(filepath.Join(root, "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	if own(filepath.Join(root, "d")) {
		t.Error("a mount with somebody else's directory on it is taken for our own")
	}
	if own(filepath.Join(testMount(t, "size=1m,mode=1777"), "d")) {
		t.Error("a mount on which everybody may make files is taken for our own")
	}
	if own(testDir(t).Path()) {
		t.Error("/dev/shm is taken for our own")
	}
}
