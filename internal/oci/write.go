package oci

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// step runs one operation on the disk, unless a test fails it there (internal/failpoint), under a name such as "disk.blob.sync".
func (l *Layout) step(name string, op func() error) error {
	for {
		err := failpoint.Step("disk." + name)
		if err == nil {
			return op()
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// errSync marks a failed fsync, after which nothing is written any more.
type errSync struct{ err error }

func (e *errSync) Error() string { return "fsync: " + e.err.Error() }
func (e *errSync) Unwrap() error { return e.err }

// sync makes a file's bytes durable. A full disk may show only here; the file is then thrown away, so that is no reason to
// trust nothing any more.
func (l *Layout) sync(f *os.File, what string) error {
	err := l.step(what+".sync", f.Sync)
	if err == nil || isFull(err) {
		return err
	}
	return l.breakDown(&errSync{err})
}

// syncDir makes the names of a directory durable.
func (l *Layout) syncDir(dir, what string) error {
	f, err := l.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := l.step(what+".syncdir", f.Sync); err != nil {
		return l.breakDown(&errSync{err})
	}
	return nil
}

func (l *Layout) breakDown(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken == nil {
		l.broken = err
		l.opt.Log.Error("the data directory is read-only until the next start", zap.Error(err))
	}
	return readOnly(l.path, err)
}

func readOnly(dir string, why error) error {
	return zcerr.New(zcerr.Other, "the data directory takes no changes until the daemon is restarted: %w", why).
		WithHint("what was acknowledged is safe and is still served; see to the disk under %s, then restart zcstored", dir)
}

// writable is nil as long as no fsync has failed.
func (l *Layout) writable() error {
	if err := l.ReadOnly(); err != nil {
		return readOnly(l.path, err)
	}
	return nil
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// full turns a full disk into what a client can act on; other errors stay as they are.
func (l *Layout) full(err error, need uint64) error {
	if err == nil || !isFull(err) {
		return err
	}
	free, _ := l.Free()
	return NoSpace(l.path, need, free)
}

// NoSpace says that a version does not fit the data directory.
func NoSpace(dir string, need, have uint64) error {
	return zcerr.New(zcerr.NoSpace, "%s needed, %s free in the data directory", units.Bytes(need), units.Bytes(have)).
		WithHint("give %s more room, or remove a version: zcctl ls, zcctl rm REF", dir)
}

// tempFile makes a file in tmp that nothing names.
func (l *Layout) tempFile(what string) (f *os.File, name string, err error) {
	name = path.Join(tmpDir, what+"-"+randomName())
	err = l.step(what+".create", func() error {
		f, err = l.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		return err
	})
	return f, name, err
}

func randomName() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// writeFile replaces a small file whole: temporary file, fsync, rename, fsync of the directory.
func (l *Layout) writeFile(name string, b []byte, what string) error {
	f, tmp, err := l.tempFile(what)
	if err != nil {
		return err
	}
	err = l.step(what+".write", func() error { _, err := f.Write(b); return err })
	if err == nil {
		err = l.sync(f, what)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = l.step(what+".rename", func() error { return l.root.Rename(tmp, name) })
	}
	if err != nil {
		l.drop(tmp)
		return err
	}
	return l.syncDir(parent(name), what)
}

// drop removes a temporary file. One that stays goes at the next start.
func (l *Layout) drop(tmp string) {
	if err := l.root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.opt.Log.Warn("remove temporary file", zap.Error(err))
	}
}

// stepWriter makes each write a step.
type stepWriter struct {
	l    *Layout
	f    *os.File
	h    hash.Hash
	size int64
}

func (w *stepWriter) Write(p []byte) (n int, err error) {
	err = w.l.step("blob.write", func() error { n, err = w.f.Write(p); return err })
	w.h.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// writeBlob copies a blob to the disk, hashing what it writes: an address that lies would be found only when the memory is
// gone. The blob has its name and its bytes are durable afterwards; the name is, once the directory is synced. With a zero
// want, any content will do, and the stage holds what it turned out to be.
func (s *Staged) writeBlob(r io.Reader, want manifest.Digest) (got manifest.Digest, size int64, err error) {
	l := s.l
	f, tmp, err := l.tempFile("blob")
	if err != nil {
		return got, 0, err
	}
	w := &stepWriter{l: l, f: f, h: sha256.New()}
	_, err = io.CopyBuffer(w, struct{ io.Reader }{r}, make([]byte, 1<<20))
	w.h.Sum(got[:0])
	if err == nil && want != (manifest.Digest{}) && got != want {
		err = zcerr.New(zcerr.Corrupt, "the bytes in memory are %s, not %s", got.Short(), want.Short()).WithHint("zcctl verify finds what is damaged; put the model again")
	}
	if err == nil {
		err = f.Chmod(0o400)
	}
	if err == nil {
		err = l.sync(f, "blob")
	}
	if err == nil { // it is in shared memory already: the page cache need not hold it once more
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.nameBlob(tmp, got, w.size, want == manifest.Digest{})
	}
	if err != nil {
		l.drop(tmp)
		return got, 0, err
	}
	return got, w.size, nil
}

// nameBlob gives a blob its name, under the lock that a collection removes blobs with.
func (s *Staged) nameBlob(tmp string, d manifest.Digest, size int64, hold bool) error {
	l := s.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.step("blob.rename", func() error { return l.root.Rename(tmp, blobPath(d)) }); err != nil {
		return err
	}
	l.present[d] = size
	delete(l.suspect, d)
	if hold {
		s.holdLocked(d)
	}
	return nil
}

// Replace makes entries what index.json names, durably, and then removes the blobs that no version uses any more. On error
// the index on disk is the old one or, after a failed fsync, one of the two; the layout is read-only then. Each version must be
// staged or in the index already.
func (l *Layout) Replace(entries []Entry) error {
	l.change.Lock()
	defer l.change.Unlock()
	if err := l.writable(); err != nil {
		return err
	}
	l.mu.Lock()
	entries, err := l.withImagesLocked(entries)
	ix := &Index{ID: l.id, Entries: entries, Foreign: l.foreign}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	b, err := encodeIndex(ix)
	if err != nil {
		return err
	}
	err = l.writeFile(ocispec.ImageIndexFile, b, "index")
	if isFull(err) { // what the reserve is for: a remove must go through on a full disk
		l.drop(reserveFile)
		err = l.writeFile(ocispec.ImageIndexFile, b, "index")
	}
	if err != nil {
		return l.full(err, uint64(len(b)))
	}
	l.mu.Lock()
	l.entries = entries
	l.collectLocked(nil)
	l.mu.Unlock()
	l.keepReserve(len(b))
	return nil
}

// withImagesLocked gives each entry the descriptor of its image manifest.
func (l *Layout) withImagesLocked(entries []Entry) ([]Entry, error) {
	old := map[manifest.Digest]ocispec.Descriptor{}
	for _, e := range l.entries {
		old[e.Version] = e.image
	}
	out := make([]Entry, len(entries))
	for i, e := range entries {
		if v := l.versions[e.Version]; v != nil {
			e.image = v.image
		} else if d, ok := old[e.Version]; ok { // damaged: its name stays until somebody removes it
			e.image = d
		} else {
			return nil, zcerr.New(zcerr.Other, "%s is to be named on disk, but %s is not there", e.Ref(), e.Version.Short())
		}
		out[i] = e
	}
	return out, nil
}

// keepReserve holds room for an index of twice the present size. Without room for it there is none, as before.
func (l *Layout) keepReserve(indexBytes int) {
	size := int64(max(64<<10, 2*indexBytes))
	if st, err := l.root.Stat(reserveFile); err == nil && st.Size() >= size {
		return
	}
	err := l.step("reserve.create", func() error {
		f, err := l.root.OpenFile(reserveFile, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fallocate(int(f.Fd()), 0, 0, size)
	})
	if err != nil {
		l.drop(reserveFile)
		l.opt.Log.Warn("no room is kept for the index", zap.Error(err))
	}
}

func parent(name string) string { return path.Dir(name) }

func blobPath(d manifest.Digest) string { return blobDir + "/" + d.Hex() }
