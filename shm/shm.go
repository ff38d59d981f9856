// Package shm keeps read-only runs of bytes in shared memory: named files of a private tmpfs directory.
//
// A segment is made in a file without a name (O_TMPFILE), whose blocks are reserved before the first byte is written
// (reserve), and gets its name only when it is whole ([Writer.Publish], a link). A half-written segment therefore cannot
// exist: a crash at any point leaves nothing. A published segment is never written, truncated or punched again; deleting is
// unlinking, and whoever has it mapped keeps valid bytes.
//
// # Trust
//
// A file of a plain tmpfs cannot be sealed. Readers get an O_RDONLY descriptor of a 0400 file in a 0700 directory, which
// stops every other uid; a process of the daemon's own uid, and root, could still reopen it for writing.
package shm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// PageSize is what the data of a segment is aligned to.
const PageSize = 4096

const tmpfsMagic = 0x01021994

// NoSpaceError says that bytes do not fit the file system of a directory.
type NoSpaceError struct {
	Dir        string
	Need, Have uint64 // bytes
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%d bytes needed, %d free in shared memory", e.Need, e.Have)
}

// Dir is a directory of segments: the shm backing. It is safe for concurrent use.
type Dir struct {
	path         string
	root         *os.Root
	f            *os.File // the directory itself, for *at calls
	handout      *os.File // the same directory through a read-only bind mount; nil: none
	huge, noswap bool     // of the mount: pages of 2 MiB for whoever allocates as Create does; none is ever swapped out
}

var _ Backing = (*Dir)(nil)

// OpenDir opens a directory of segments, making it (0700) when it is missing. It refuses a symbolic link, a directory of
// another uid, one that others may enter, and, unless anyFS, one that is not on a tmpfs.
func OpenDir(path string, anyFS bool) (*Dir, error) {
	err := call("mkdir", func() error { return os.Mkdir(path, 0o700) })
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make segment directory: %w", err)
	}
	made := err == nil
	var fd int
	err = call("open-dir", func() (err error) {
		fd, err = unix.Open(path, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open segment directory %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := checkDir(f, path, anyFS); err != nil {
		f.Close()
		if made {
			os.Remove(path)
		}
		return nil, err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd)) // not path: it could have changed
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open segment directory: %w", err)
	}
	d := &Dir{path: path, root: root, f: f}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil {
		d.huge = mountHas(st.Dev, "huge=within_size") || mountHas(st.Dev, "huge=always")
		d.noswap = mountHas(st.Dev, "noswap")
	}
	return d, nil
}

func checkDir(f *os.File, path string, anyFS bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("segment directory %s belongs to uid %d, not to uid %d of this process", path, st.Uid, os.Geteuid())
	}
	if st.Mode&0o077 != 0 {
		if err := f.Chmod(0o700); err != nil {
			return fmt.Errorf("segment directory %s has mode %04o: %w", path, st.Mode&0o7777, err)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", path, err)
	}
	if !anyFS && fs.Type != tmpfsMagic {
		return fmt.Errorf("segment directory %s is not on a tmpfs (file system type %#x): weights there would not be in shared memory", path, fs.Type)
	}
	return nil
}

// Path is where the directory is.
func (d *Dir) Path() string { return d.path }

// Close lets go of the directory. Segments and mappings stay.
func (d *Dir) Close() error {
	err := errors.Join(d.root.Close(), d.f.Close())
	if d.handout != nil {
		err = errors.Join(err, d.handout.Close())
	}
	return err
}

// Kind is KindShm.
func (d *Dir) Kind() string { return KindShm }

// Space is the room of the file system.
func (d *Dir) Space() (Space, error) {
	var fs unix.Statfs_t
	if err := call("statfs", func() error { return unix.Fstatfs(int(d.f.Fd()), &fs) }); err != nil {
		return Space{}, fmt.Errorf("statfs: %w", err)
	}
	block := uint64(fs.Bsize)
	s := Space{Size: fs.Blocks * block, Free: fs.Bavail * block, Taken: (fs.Blocks - fs.Bfree) * block, Own: d.ownMount()}
	if fs.Blocks == 0 { // a tmpfs without a size: the machine's memory is the limit, and the kernel counts nothing
		s.Size, s.Free = Memory()
		s.Own = false
	}
	names, err := d.Names()
	if err != nil {
		return Space{}, fmt.Errorf("list segments: %w", err)
	}
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.f.Fd()), n, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil { // else it has just gone
			s.Linked += uint64(st.Blocks) * 512
		}
	}
	return s, nil
}

// explainFull tells what is meant when a file cannot be made for want of space: no inode is left for it.
func (d *Dir) explainFull(err error) error {
	var fs unix.Statfs_t
	if !errors.Is(err, unix.ENOSPC) || unix.Fstatfs(int(d.f.Fd()), &fs) != nil || fs.Files == 0 || fs.Ffree > 0 {
		return err
	}
	return &FullError{What: "inodes", Need: 1, Fix: fmt.Sprintf("mount the file system with more than its %d: mount -o remount,nr_inodes=%d", fs.Files, max(1000, 2*fs.Files))}
}

// free is for errors: zero when it cannot be told.
func (d *Dir) free() uint64 {
	var fs unix.Statfs_t
	if unix.Fstatfs(int(d.f.Fd()), &fs) != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}

// Guarantee is that of a plain tmpfs file: it cannot be sealed.
func (d *Dir) Guarantee() Guarantee {
	g := Guarantee{OtherUIDs: ReachNever, SameUID: ReachByFD, Root: ReachByFD, SurvivesRestart: true, HugePages: d.huge, Swap: SwapNever}
	if d.handout != nil {
		g.SameUID, g.Root = ReachByName, ReachByName
	}
	if !d.noswap {
		g.Swap = MachineSwap()
	}
	return g
}

// Destroy removes the directory when it has nothing but expendable files.
func (d *Dir) Destroy(expendable ...string) error {
	if err := destroy(d, expendable); err != nil {
		return err
	}
	// Where somebody else made the directory (a mount, a parent that is not ours) it is not ours to remove.
	err := os.Remove(d.path)
	for _, fine := range []error{os.ErrNotExist, unix.ENOTEMPTY, unix.EBUSY, unix.EACCES, unix.EPERM, unix.EROFS} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	return err
}

// Lock takes the directory's lock for this process, without waiting. The lock goes with the returned file.
// When another process has it, the error is unix.EWOULDBLOCK and holder is what that process wrote into the lock file.
func (d *Dir) Lock(note string) (lock *os.File, holder string, err error) {
	var f *os.File
	err = call("open-lock", func() (err error) {
		fd, err := unix.Openat(int(d.f.Fd()), "lock", unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		if err == nil {
			f = os.NewFile(uintptr(fd), "lock")
		}
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("open lock: %w", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, "", errors.Join(errors.New("the lock is no regular file"), err)
	}
	if err := call("flock", func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
		b, _ := io.ReadAll(io.LimitReader(f, 256))
		f.Close()
		return nil, strings.TrimSpace(string(b)), err
	}
	if err := errors.Join(f.Chmod(0o600), f.Truncate(0), writeAt(f, note)); err != nil {
		f.Close()
		return nil, "", fmt.Errorf("write lock: %w", err)
	}
	return f, "", nil
}

func writeAt(f *os.File, s string) error {
	_, err := writeStep([]byte(s), func(p []byte) (int, error) { return f.WriteAt(p, 0) })
	return err
}

// Gone reports that the directory was removed, or another put in its place, since it was opened.
func (d *Dir) Gone() bool {
	var ours, now unix.Stat_t
	return unix.Fstat(int(d.f.Fd()), &ours) != nil || unix.Lstat(d.path, &now) != nil || ours.Ino != now.Ino || ours.Dev != now.Dev
}

// Names lists the files of the directory, unsorted.
func (d *Dir) Names() ([]string, error) {
	var names []string
	err := call("readdir", func() error {
		f, err := d.root.Open(".")
		if err != nil {
			return err
		}
		defer f.Close()
		names, err = f.Readdirnames(-1)
		return err
	})
	return names, err
}

// Open opens a published file for reading. A name that is a link or no regular file is refused. The caller owns the file.
func (d *Dir) Open(name string) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	var fd int
	err := call("open", func() (err error) {
		fd, err = unix.Openat(int(d.readDir().Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("what has the name of a segment is no regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Remove unlinks a file. Mappings of it stay valid. A file that is not there is no error.
func (d *Dir) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := call("unlink", func() error { return d.root.Remove(name) }); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// ReplaceFile writes a small file whole: readers see the old bytes or the new ones. Not for segments.
func (d *Dir) ReplaceFile(name string, b []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	tmp := name + ".new"
	if err := d.root.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var f *os.File
	err := call("create-new", func() (err error) {
		f, err = d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	if err != nil {
		return d.explainFull(err)
	}
	if err = f.Chmod(0o600); err == nil { // whatever the umask
		_, err = writeStep(b, f.Write)
	}
	if err == nil {
		err = call("fsync", f.Sync)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = call("rename", func() error { return d.root.Rename(tmp, name) })
	}
	if err != nil {
		d.root.Remove(tmp)
		if errors.Is(err, unix.ENOSPC) {
			return &NoSpaceError{Dir: d.path, Need: uint64(len(b)), Have: d.free()}
		}
	}
	return err
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || filepath.Base(name) != name || len(name) > 200 {
		return fmt.Errorf("%q is no name of a segment", name)
	}
	return nil
}

// Writer fills one segment that nobody else can see. It is safe for concurrent WriteAt; Publish or Abort ends it.
type Writer struct {
	f       *os.File
	size    int64
	publish func(f *os.File, name string, over bool) error // gives the whole file its name; over: also one that is taken
	once    sync.Once
}

// Create reserves size bytes, which must be over zero. Every page is allocated before it returns, so that neither a write
// nor a reader of the published segment can run out of memory. Errors: *NoSpaceError.
func (d *Dir) Create(size int64) (*Writer, error) {
	if size <= 0 {
		return nil, fmt.Errorf("a segment of %d bytes cannot be made", size)
	}
	var fd int
	err := call("create", func() (err error) {
		fd, err = unix.Openat(int(d.f.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o400)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create segment: %w", d.explainFull(err))
	}
	f := os.NewFile(uintptr(fd), "unpublished segment")
	if err := reserve(f, size, d.huge); err != nil {
		f.Close()
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) {
			return nil, &NoSpaceError{Dir: d.path, Need: uint64(size), Have: d.free()}
		}
		return nil, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	return &Writer{f: f, size: size, publish: d.link}, nil
}

// link makes a whole file read-only and gives it its name, which must be free unless over.
func (d *Dir) link(f *os.File, name string, over bool) error {
	if err := call("chmod", func() error { return f.Chmod(0o400) }); err != nil {
		return err
	}
	to := name
	if over { // a link cannot take a name from another file; a rename can
		to = name + ".new"
		if err := d.root.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	from := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	err := call("link", func() error {
		return unix.Linkat(unix.AT_FDCWD, from, int(d.f.Fd()), to, unix.AT_SYMLINK_FOLLOW)
	})
	if err != nil || !over {
		return err
	}
	if err := call("rename", func() error { return d.root.Rename(to, name) }); err != nil {
		d.root.Remove(to)
		return err
	}
	return nil
}

// WriteAt writes inside the reserved size; past it is an error. It goes through the file, never through a mapping.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > w.size || int64(len(p)) > w.size-off {
		return 0, fmt.Errorf("write of %d bytes at %d leaves the segment of %d", len(p), off, w.size)
	}
	return writeStep(p, func(p []byte) (int, error) { return w.f.WriteAt(p, off) })
}

// ReadAt reads back what was written.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	return readStep(p, func(p []byte) (int, error) { return w.f.ReadAt(p, off) })
}

// Publish makes the segment read-only and gives it its name, which must be free. It ends the writer, even on error.
func (w *Writer) Publish(name string) error { return w.end(name, false) }

// Replace is Publish for a name that another file may have: whoever opens it gets the old file or the new one, after a crash
// as well, and mappings of the old one stay valid.
func (w *Writer) Replace(name string) error { return w.end(name, true) }

func (w *Writer) end(name string, over bool) error {
	err := checkName(name)
	if err == nil {
		err = w.publish(w.f, name, over)
	}
	if cerr := w.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("publish segment: %w", err)
	}
	return nil
}

// Usage is what the kernel holds for the segment so far.
func (w *Writer) Usage() (Usage, error) { return UsageOf(w.f) }

// Abort gives the memory back. After Publish it does nothing.
func (w *Writer) Abort() { _ = w.close() }

func (w *Writer) close() (err error) {
	w.once.Do(func() { err = w.f.Close() })
	return err
}

// Usage is what the kernel holds for a file.
type Usage struct {
	Inode  uint64
	Size   uint64 // bytes
	Blocks uint64 // bytes allocated
}

// UsageOf reads a file's usage.
func UsageOf(f *os.File) (Usage, error) {
	var st unix.Stat_t
	if err := call("stat", func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return Usage{}, fmt.Errorf("stat: %w", err)
	}
	return Usage{Inode: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks) * 512}, nil
}
