package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/zcstore/zcstore/internal/parallel"
	"github.com/zcstore/zcstore/models/manifest"
)

// writers is how many blobs are written and synced at once: enough for the file system to commit several in one go.
const writers = 8

// Staged is a version whose blobs are durable and stay on disk until Release, whether an index names it or not.
type Staged struct {
	*Version
	l    *Layout
	held []manifest.Digest
	once sync.Once
}

// Release lets go of the blobs: from now on only an index keeps them.
func (s *Staged) Release() {
	s.once.Do(func() {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		s.l.releaseLocked(s.held)
		s.l.collectLocked(s.held) // those of a put that failed
	})
}

// Missing is how many bytes a version would add to the disk.
func (l *Layout) Missing(m *manifest.Manifest, encoded []byte) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	need := uint64(len(encoded))
	seen := map[manifest.Digest]bool{}
	for i := range m.Tensors {
		t := &m.Tensors[i]
		size := int64(t.Bytes())
		if size >= BlobBytes && t.SHA256 != (manifest.Digest{}) { // without a digest it may be new
			if seen[t.SHA256] || l.goodLocked(t.SHA256, size) {
				continue
			}
			seen[t.SHA256] = true
		}
		need += uint64(size)
	}
	return need
}

func (l *Layout) goodLocked(d manifest.Digest, size int64) bool {
	got, ok := l.present[d]
	return ok && got == size && !l.suspect[d]
}

// Stage writes what the disk does not have of a version, and makes it durable. rows opens the plain bytes of a tensor row; it
// is called from several goroutines. No index names the version afterwards: Replace does that. Errors: zcerr.NoSpace,
// zcerr.Corrupt when a row's bytes are not those of the manifest.
func (l *Layout) Stage(ctx context.Context, m *manifest.Manifest, encoded []byte, rows func(row int) (io.Reader, error)) (_ *Staged, err error) {
	if err := l.writable(); err != nil {
		return nil, err
	}
	need := l.Missing(m, encoded)
	if free, err := l.Free(); err == nil && need > free {
		return nil, NoSpace(l.path, need, free)
	}
	s := &Staged{l: l}
	defer func() {
		if err != nil {
			s.Release()
			err = l.full(err, need)
		}
	}()
	if err := s.writeTensors(ctx, m, rows); err != nil {
		return nil, err
	}
	bundle, err := s.writeBundle(ctx, m, rows)
	if err != nil {
		return nil, err
	}
	config := descriptorOf(ConfigType, encoded)
	v, image, err := describe(m, config, bundle)
	if err != nil {
		return nil, err
	}
	if err := s.writeSmall(encoded, config); err != nil {
		return nil, err
	}
	for _, d := range v.layers {
		if d.MediaType == ocispec.MediaTypeEmptyJSON {
			if err := s.writeSmall(ocispec.DescriptorEmptyJSON.Data, d); err != nil {
				return nil, err
			}
		}
	}
	if err := s.writeSmall(image, v.image); err != nil {
		return nil, err
	}
	// Always, not only when something was written: a blob that another put has just renamed may not have its name on disk yet.
	if err := l.syncDir(blobDir, "blob"); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.versions[v.Digest] = v
	delete(l.damaged, v.Digest)
	s.Version = v
	return s, nil
}

// hold keeps a blob from being collected, and says whether it must be written.
func (s *Staged) hold(d manifest.Digest, size int64) (missing bool) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.holdLocked(d)
	return !s.l.goodLocked(d, size)
}

func (s *Staged) holdLocked(d manifest.Digest) {
	s.l.holds[d]++
	s.held = append(s.held, d)
}

func (s *Staged) writeTensors(ctx context.Context, m *manifest.Manifest, rows func(int) (io.Reader, error)) error {
	var todo []int
	seen := map[manifest.Digest]bool{}
	for i := range m.Tensors {
		t := &m.Tensors[i]
		if size := int64(t.Bytes()); size >= BlobBytes && !seen[t.SHA256] {
			seen[t.SHA256] = true
			if s.hold(t.SHA256, size) {
				todo = append(todo, i)
			}
		}
	}
	return parallel.Each(ctx, writers, len(todo), func(context.Context) func(int) error {
		return func(k int) error { return s.writeTensor(&m.Tensors[todo[k]], todo[k], rows) }
	})
}

func (s *Staged) writeTensor(t *manifest.Tensor, row int, rows func(int) (io.Reader, error)) error {
	r, err := rows(row)
	if err == nil {
		_, _, err = s.writeBlob(r, t.SHA256)
	}
	if err != nil {
		return fmt.Errorf("write tensor %q to disk: %w", t.Names[0], err)
	}
	return nil
}

// small lists the rows of the bundle, in its order.
func small(m *manifest.Manifest) []int {
	var out []int
	for i := range m.Tensors {
		if size := m.Tensors[i].Bytes(); size > 0 && size < BlobBytes {
			out = append(out, i)
		}
	}
	return out
}

func (s *Staged) writeBundle(ctx context.Context, m *manifest.Manifest, rows func(int) (io.Reader, error)) (*ocispec.Descriptor, error) {
	list := small(m)
	if len(list) == 0 {
		return nil, nil
	}
	// Its digest is known only when it is written; what is there already is then written over with the same bytes.
	got, size, err := s.writeBlob(&rowsReader{ctx: ctx, list: list, open: func(row int) (io.Reader, error) {
		r, err := rows(row)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", m.Tensors[row].Names[0], err)
		}
		return r, nil
	}}, manifest.Digest{})
	if err != nil {
		return nil, fmt.Errorf("write the small tensors to disk: %w", err)
	}
	return &ocispec.Descriptor{MediaType: BundleType, Digest: toOCI(got), Size: size}, nil
}

func (s *Staged) writeSmall(b []byte, d ocispec.Descriptor) error {
	want, err := fromOCI(d.Digest)
	if err != nil {
		return err
	}
	if !s.hold(want, d.Size) {
		return nil
	}
	_, _, err = s.writeBlob(bytes.NewReader(b), want)
	return err
}

// rowsReader gives the bytes of rows back to back.
type rowsReader struct {
	ctx  context.Context
	list []int
	open func(row int) (io.Reader, error)
	cur  io.Reader
}

func (r *rowsReader) Read(p []byte) (int, error) {
	for {
		if r.cur == nil {
			if err := r.ctx.Err(); err != nil {
				return 0, err
			}
			if len(r.list) == 0 {
				return 0, io.EOF
			}
			var err error
			if r.cur, err = r.open(r.list[0]); err != nil {
				return 0, err
			}
			r.list = r.list[1:]
		}
		n, err := r.cur.Read(p)
		if err == io.EOF {
			r.cur, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}
