package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const (
	blobDir     = "blobs/sha256"
	tmpDir      = "tmp"
	lockFile    = "lock"
	reserveFile = "reserve"

	layoutText = `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`
)

// Options of a layout. The zero value says nothing.
type Options struct {
	Log *zap.Logger
}

// Layout is an image layout that this process may change. It is safe for concurrent use.
type Layout struct {
	opt  Options // immutable
	path string  // immutable
	root *os.Root
	lock *os.File

	change sync.Mutex // held by Replace: one index at a time, before mu

	mu       sync.Mutex
	id       string                       // guarded by mu
	entries  []Entry                      // guarded by mu; what index.json names
	foreign  []ocispec.Descriptor         // guarded by mu; what others put into index.json; kept
	versions map[manifest.Digest]*Version // guarded by mu; those of entries, and staged ones
	damaged  map[manifest.Digest]error    // guarded by mu; named by the index, but not readable
	present  map[manifest.Digest]int64    // guarded by mu; blobs on disk, with their size
	suspect  map[manifest.Digest]bool     // guarded by mu; present, but found damaged: to be written again
	holds    map[manifest.Digest]int      // guarded by mu; blobs that staged versions use
	broken   error                        // guarded by mu; why nothing is written any more
}

// LockedError says that another process has the directory.
type LockedError struct{ Dir, Holder string }

func (e *LockedError) Error() string {
	return fmt.Sprintf("the data directory %s is served by another daemon (%s)", e.Dir, e.Holder)
}

// Open opens a layout for this process alone, making it when the directory is empty or missing, and sweeps away what a crash
// left. It refuses a directory of another uid, and one that holds something else. Errors: *LockedError; zcerr.Corrupt when
// index.json cannot be read, and then nothing was changed.
func Open(path string, opt Options) (*Layout, error) {
	l, err := openDir(path, opt, true)
	if err != nil {
		return nil, err
	}
	if err := l.start(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func openDir(path string, opt Options, make bool) (*Layout, error) {
	if opt.Log == nil {
		opt.Log = zap.NewNop()
	}
	if make {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	l := &Layout{
		opt: opt, path: path, root: root, versions: map[manifest.Digest]*Version{}, damaged: map[manifest.Digest]error{},
		present: map[manifest.Digest]int64{}, suspect: map[manifest.Digest]bool{}, holds: map[manifest.Digest]int{},
	}
	if err := l.checkOwner(); err != nil {
		root.Close()
		return nil, err
	}
	if err := l.takeLock(); err != nil {
		root.Close()
		return nil, err
	}
	return l, nil
}

// checkOwner keeps other uids out: the blobs are everybody's weights.
func (l *Layout) checkOwner() error {
	f, err := l.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat data directory: %w", err)
	}
	if int(st.Uid) != os.Geteuid() {
		return zcerr.New(zcerr.Denied, "the data directory %s belongs to uid %d, not to uid %d of this process", l.path, st.Uid, os.Geteuid()).
			WithHint("chown it to the daemon's user, or choose another --data")
	}
	if st.Mode&0o077 != 0 {
		if err := f.Chmod(0o700); err != nil {
			return fmt.Errorf("data directory %s has mode %04o: %w", l.path, st.Mode&0o7777, err)
		}
	}
	return nil
}

func (l *Layout) takeLock() error {
	f, err := l.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open lock of the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b, _ := io.ReadAll(io.LimitReader(f, 256))
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return &LockedError{Dir: l.path, Holder: strings.TrimSpace(string(b))}
		}
		return fmt.Errorf("lock data directory: %w", err)
	}
	// The note is for people; on a full disk the lock holds without it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "pid %d", os.Getpid()), 0)
	}
	l.lock = f
	return nil
}

// start reads what there is, and makes the layout when there is nothing.
func (l *Layout) start() error {
	b, err := l.readSmall(ocispec.ImageIndexFile, MaxIndexBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return l.create()
	}
	if err != nil {
		return l.unreadable(err)
	}
	if err := checkLayoutFile(l.readSmall(ocispec.ImageLayoutFile, 4<<10)); err != nil {
		return l.unreadable(err)
	}
	ix, err := ParseIndex(b)
	if err != nil {
		return l.unreadable(err)
	}
	l.id, l.entries, l.foreign = ix.ID, ix.Entries, ix.Foreign
	if l.id == "" { // another tool made the layout; ours is in the index from the first change on
		l.id = randomName()
	}
	if err := l.makeDirs(); err != nil {
		return err
	}
	if err := l.listBlobs(); err != nil {
		return err
	}
	l.readVersions()
	if err := l.sweep(); err != nil {
		return err
	}
	l.keepReserve(len(b))
	return nil
}

// readVersions reads the image manifests that the index names.
func (l *Layout) readVersions() {
	entries := l.entries
	l.entries = nil
	for _, e := range entries {
		v, err := l.readVersion(e)
		switch {
		case err == nil:
			e.Version = v.Digest // another tool leaves it out
			l.versions[v.Digest] = v
		case e.Version == (manifest.Digest{}):
			l.opt.Log.Error("a descriptor of index.json cannot be read and is left alone", zap.String("model", e.Ref()), zap.Error(err))
			l.foreign = append(l.foreign, e.image)
			continue
		default:
			l.opt.Log.Error("version on disk is damaged", zap.String("model", e.Ref()), zap.Error(err))
			l.damaged[e.Version] = err
		}
		l.entries = append(l.entries, e)
	}
}

// create makes an empty layout in a directory that holds nothing but our lock and what a crash in here left.
func (l *Layout) create() error {
	f, err := l.root.Open(".")
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return fmt.Errorf("list data directory: %w", err)
	}
	for _, n := range names {
		switch n {
		case lockFile, tmpDir, "blobs", ocispec.ImageLayoutFile, reserveFile, "lost+found":
		default:
			return zcerr.New(zcerr.Invalid, "the data directory %s has no index.json and holds other things (%s)", l.path, n).WithHint("choose an empty directory with --data")
		}
	}
	// Blobs without an index are a layout whose index was lost, not a new one.
	if err := l.makeDirs(); err != nil {
		return err
	}
	if err := l.listBlobs(); err != nil {
		return err
	}
	if len(l.present) > 0 {
		return l.unreadable(errors.New("index.json is missing, and there are blobs"))
	}
	if err := l.emptyTmp(); err != nil {
		return err
	}
	if err := l.writeFile(ocispec.ImageLayoutFile, []byte(layoutText), "layout"); err != nil {
		return fmt.Errorf("make image layout: %w", err)
	}
	l.id = randomName()
	if err := l.Replace(nil); err != nil {
		return fmt.Errorf("make image layout: %w", err)
	}
	return nil
}

func (l *Layout) makeDirs() error {
	for _, d := range []string{"blobs", blobDir, tmpDir} {
		err := l.root.Mkdir(d, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil { // the entry itself must be on disk before anything below it counts
			err = l.syncDir(parent(d), "layout")
		}
		if err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	return nil
}

func (l *Layout) unreadable(err error) error {
	k := zcerr.Corrupt
	if errors.Is(err, ErrNewer) {
		k = zcerr.Unsupported
	}
	return zcerr.New(k, "the data directory %s cannot be read: %w", l.path, err).
		WithHint("nothing was changed. See what is whole, with no daemon running: zcctl fsck --data %s", l.path)
}

// Close lets go of the directory.
func (l *Layout) Close() error { return errors.Join(l.root.Close(), l.lock.Close()) }

// Path is where the layout is.
func (l *Layout) Path() string { return l.path }

// ID is the same for the life of the directory, wherever it is mounted.
func (l *Layout) ID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// Entries is what index.json names.
func (l *Layout) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Entry(nil), l.entries...)
}

// Version is a version that is on disk, or why it cannot be read from there.
func (l *Layout) Version(d manifest.Digest) (*Version, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.versions[d]; v != nil {
		return v, nil
	}
	if err := l.damaged[d]; err != nil {
		return nil, err
	}
	return nil, zcerr.New(zcerr.NotFound, "version %s is not on disk", d.Short())
}

// ReadOnly is why nothing is written any more, or nil.
func (l *Layout) ReadOnly() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

// Bytes is the size of all blobs on disk.
func (l *Layout) Bytes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := uint64(0)
	for _, size := range l.present {
		n += uint64(size)
	}
	return n
}

// Free is how many bytes this process may still write.
func (l *Layout) Free() (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(l.lock.Fd()), &st); err != nil {
		return 0, fmt.Errorf("statfs of the data directory: %w", err)
	}
	return st.Bavail * uint64(st.Bsize), nil
}

const tmpfsMagic = 0x01021994

// Volatile reports that the directory itself is in memory, so that no reboot is survived.
func (l *Layout) Volatile() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(l.lock.Fd()), &st) == nil && st.Type == tmpfsMagic
}
