package oci

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// openFile opens a regular file of the layout: never a link, a pipe or a device that somebody put in its place.
func (l *Layout) openFile(name string) (*os.File, int64, error) {
	var f *os.File
	err := l.step("open", func() (err error) {
		f, err = l.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (l *Layout) readSmall(name string, limit int64) ([]byte, error) {
	f, size, err := l.openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d", name, size, limit)
	}
	return io.ReadAll(io.LimitReader(&stepReader{l, f}, limit))
}

// stepReader makes each read a step.
type stepReader struct {
	l *Layout
	r io.Reader
}

func (s *stepReader) Read(p []byte) (n int, err error) {
	err = s.l.step("read", func() error { n, err = s.r.Read(p); return err })
	return n, err
}

// damagedError says that a blob is not what it was. Any other error of reading one says nothing about its bytes.
type damagedError struct{ what string }

func (e *damagedError) Error() string { return e.what }

func damaged(format string, args ...any) error { return &damagedError{fmt.Sprintf(format, args...)} }

// readBlob reads a small blob whole and checks its digest.
func (l *Layout) readBlob(d manifest.Digest, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, damaged("blob %s of %d bytes is over the limit of %d", d.Short(), size, limit)
	}
	b, err := l.readSmall(blobPath(d), limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, damaged("blob %s is missing", d.Short())
	case err != nil:
		return nil, fmt.Errorf("blob %s: %w", d.Short(), err)
	case int64(len(b)) != size:
		return nil, damaged("blob %s has %d bytes of %d", d.Short(), len(b), size)
	case manifest.Digest(sha256.Sum256(b)) != d:
		return nil, damaged("blob %s: its bytes do not have its digest", d.Short())
	}
	return b, nil
}

// readVersion reads the image manifest that an entry names, and checks that all of its blobs are there in their size. The
// bytes of the large ones are hashed when they are read.
func (l *Layout) readVersion(e Entry) (*Version, error) {
	sum, err := fromOCI(e.image.Digest)
	if err != nil {
		return nil, err
	}
	b, err := l.readBlob(sum, e.image.Size, MaxImageBytes)
	if err != nil {
		if errors.As(err, new(*damagedError)) { // to be written again, should the version be put or be in memory
			l.mu.Lock()
			l.suspect[sum] = true
			l.mu.Unlock()
		}
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	v, err := ParseImage(e.image, b)
	if err != nil {
		return nil, err
	}
	if e.Version != (manifest.Digest{}) && v.Digest != e.Version {
		return nil, fmt.Errorf("the image manifest is of version %s", v.Digest.Short())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range v.blobs() {
		sum, _ := fromOCI(d.Digest)
		size, ok := l.present[sum]
		switch {
		case !ok:
			return nil, fmt.Errorf("blob %s is missing", sum.Short())
		case size != d.Size:
			return nil, fmt.Errorf("blob %s has %d bytes of %d", sum.Short(), size, d.Size)
		}
	}
	return v, nil
}

// Manifest reads the canonical manifest of a version. Errors: zcerr.Corrupt.
func (l *Layout) Manifest(v *Version) (*manifest.Manifest, []byte, error) {
	b, err := l.readBlob(v.Digest, v.config.Size, manifest.MaxBytes)
	if err != nil {
		if errors.As(err, new(*damagedError)) {
			l.mu.Lock()
			l.suspect[v.Digest] = true
			l.mu.Unlock()
			return nil, nil, corrupt("the manifest on disk: %w", err)
		}
		return nil, nil, fmt.Errorf("read the manifest on disk: %w", err)
	}
	m, _, err := manifest.Decode(b)
	if err != nil {
		return nil, nil, corrupt("the manifest on disk: %w", err)
	}
	return m, b, nil
}

func corrupt(format string, args ...any) *zcerr.Error {
	return zcerr.New(zcerr.Corrupt, format, args...).WithHint("put the model again; zcctl fsck --data DIR, with no daemon running, names all that is damaged")
}

// Rows reads tensors of a version from disk, back to back in the order of rows. It does not check their digests: who fills a
// segment does, while the bytes are hot. Close ends it. Errors of Read: zcerr.Corrupt, naming the tensor, when a blob is
// missing or cut; others say nothing about the bytes.
func (l *Layout) Rows(ctx context.Context, v *Version, m *manifest.Manifest, rows []int) io.ReadCloser {
	r := &diskRows{l: l, v: v, m: m, at: map[int]int64{}}
	off := int64(0)
	for _, i := range small(m) {
		r.at[i] = off
		off += int64(m.Tensors[i].Bytes())
	}
	r.bundleSize = off
	r.rowsReader = rowsReader{ctx: ctx, list: rows, open: r.open}
	return r
}

type diskRows struct {
	rowsReader
	l          *Layout
	v          *Version
	m          *manifest.Manifest
	at         map[int]int64 // small row -> offset in the bundle
	bundleSize int64
	bundle     *os.File
	f          *os.File // the blob that is being read
}

func (r *diskRows) open(row int) (io.Reader, error) {
	t := &r.m.Tensors[row]
	size := int64(t.Bytes())
	fail := func(err error) error {
		if !errors.As(err, new(*damagedError)) {
			return fmt.Errorf("read tensor %q from disk: %w", t.Names[0], err)
		}
		r.l.Distrust(r.v, r.m, row)
		return corrupt("tensor %q cannot be read from disk: %w", t.Names[0], err)
	}
	if off, ok := r.at[row]; ok {
		if r.bundle == nil {
			b := r.v.bundle()
			if b == nil {
				return nil, fail(damaged("the version has no bundle of small tensors"))
			}
			sum, _ := fromOCI(b.Digest)
			f, err := r.l.openBlob(sum, r.bundleSize)
			if err != nil {
				return nil, fail(err)
			}
			r.bundle = f
		}
		return &stepReader{r.l, io.NewSectionReader(r.bundle, off, size)}, nil
	}
	if size == 0 {
		return io.LimitReader(nil, 0), nil
	}
	r.closeFile()
	f, err := r.l.openBlob(t.SHA256, size)
	if err != nil {
		return nil, fail(err)
	}
	r.f = f
	return &stepReader{r.l, f}, nil
}

func (l *Layout) openBlob(d manifest.Digest, size int64) (*os.File, error) {
	f, got, err := l.openFile(blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged("blob %s is missing", d.Short())
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d.Short(), err)
	}
	if got != size {
		f.Close()
		return nil, damaged("blob %s has %d bytes of %d", d.Short(), got, size)
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return f, nil
}

func (r *diskRows) closeFile() {
	if r.f != nil { // it is in shared memory now: the page cache need not hold it once more
		_ = unix.Fadvise(int(r.f.Fd()), 0, 0, unix.FADV_DONTNEED)
		r.f.Close()
		r.f = nil
	}
}

func (r *diskRows) Close() error {
	r.closeFile()
	if r.bundle != nil {
		r.bundle.Close()
		r.bundle = nil
	}
	return nil
}

// Distrust notes that the blob of a row was found damaged: the next Stage writes it again.
func (l *Layout) Distrust(v *Version, m *manifest.Manifest, row int) {
	sum := m.Tensors[row].SHA256
	if m.Tensors[row].Bytes() < BlobBytes {
		b := v.bundle()
		if b == nil {
			return
		}
		sum, _ = fromOCI(b.Digest)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.suspect[sum] = true
}
