package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/oci"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// load is one version on its way from disk to memory. err is set before done is closed.
type load struct {
	done chan struct{}
	err  error
}

// loadVersion brings a version into memory, once for any number of callers at a time. Errors: NoSpace, Corrupt when the disk
// does not have the bytes any more.
func (s *Store) loadVersion(d manifest.Digest) error {
	s.mu.Lock()
	if l := s.loads[d]; l != nil {
		s.mu.Unlock()
		<-l.done
		return l.err
	}
	e := s.coldLocked(d)
	if e == nil { // resident by now, or removed: the caller looks again
		s.mu.Unlock()
		return nil
	}
	l := &load{done: make(chan struct{})}
	s.loads[d] = l
	s.mu.Unlock()
	start := time.Now()
	l.err = explainDisk(s.readVersion(s.life, e.v))
	if errors.Is(l.err, zcerr.Corrupt) {
		s.lockNames() // until a removal that is under way is over
		if s.disk[d] == e {
			s.lost[d] = l.err // until a put repairs it, nobody reads it again in vain
		} else {
			l.err = nil // it was removed while it was read, and its blobs with it: the caller looks again
		}
		s.unlockNames()
	}
	s.mu.Lock()
	delete(s.loads, d)
	s.mu.Unlock()
	if l.err == nil {
		s.log.Info("loaded from disk", zap.Stringer("digest", d), zap.Uint64("bytes", e.v.Bytes), zap.Duration("dur", time.Since(start)))
	} else {
		s.log.Error("load from disk", zap.Stringer("digest", d), zap.Error(l.err))
	}
	close(l.done)
	return l.err
}

// readVersion is a put whose bytes come from the disk: what other versions have in memory is shared, the rest is hashed on its
// way into a new segment.
func (s *Store) readVersion(ctx context.Context, v *oci.Version) error {
	m, _, err := s.data.Manifest(v)
	if err != nil {
		return err
	}
	p := &Put{s: s, man: m, digest: v.Digest, inside: true}
	defer p.Abort()
	s.mu.Lock()
	p.owner = s.ownerLocked(tableFile(v.Digest))
	p.shareLocked()
	s.mu.Unlock()
	if err := p.layOut(); err != nil {
		return err
	}
	if err := p.reserveOrEvict(); err != nil {
		return err
	}
	r := s.data.Rows(ctx, v, m, p.wanted)
	err = p.Fill(ctx, r)
	r.Close()
	if err != nil {
		return s.explainLoad(ctx, v, m, err)
	}
	if _, err := p.Settle(); err != nil {
		return err
	}
	fresh, encoded, err := p.publishSegment()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh != nil {
		defer s.unlinkIfUnusedLocked(fresh)
	}
	if s.versions[v.Digest] != nil || !s.namedLocked(v.Digest) { // put again, or removed, meanwhile
		return nil
	}
	got, err := p.publishTableLocked(fresh, encoded)
	if err != nil {
		return err
	}
	for _, m := range s.models {
		if c, ok := m.created[v.Digest]; ok {
			got.created = c
		}
	}
	s.addVersionLocked(got)
	s.touchLocked(v.Digest)
	return nil
}

// wake loads the version of a put that is only on disk, so that nothing needs to be sent. One that is damaged there is sent, and
// repairs it. The version stays in memory until done.
func (s *Store) wake(spec PutSpec) (done func(), err error) {
	done = func() {}
	if s.data == nil || len(spec.Pending) > 0 {
		return done, nil
	}
	d := manifest.Digest(sha256.Sum256(spec.Manifest))
	s.mu.Lock()
	cold := s.coldLocked(d) != nil
	s.mu.Unlock()
	if !cold {
		return done, nil
	}
	done = s.want(d)
	if err := s.loadVersion(d); err != nil && zcerr.KindOf(err) != zcerr.Corrupt {
		done()
		return nil, err
	}
	return done, nil
}

// explainLoad finds what of a version is damaged on disk, and has the next put write it again.
func (s *Store) explainLoad(ctx context.Context, v *oci.Version, m *manifest.Manifest, err error) error {
	if zcerr.KindOf(err) != zcerr.Corrupt && zcerr.KindOf(err) != zcerr.Invalid {
		return err
	}
	bad, _, herr := s.hashOnDisk(ctx, v, m)
	if herr != nil {
		return herr
	}
	if len(bad) == 0 {
		return err
	}
	return zcerr.New(zcerr.Corrupt, "tensor %q of %s is damaged on disk, and %d others", m.Tensors[bad[0]].Names[0], v.Digest.Short(), len(bad)-1).
		WithHint("put the model again; with no daemon running, 'zcctl fsck --data %s' names all that is damaged", s.data.Path())
}

// hashOnDisk reads a version's tensors on disk and gives the rows that are damaged or missing there.
func (s *Store) hashOnDisk(ctx context.Context, v *oci.Version, m *manifest.Manifest) (bad []int, bytes uint64, err error) {
	buf := make([]byte, chunkBytes)
	for i := range m.Tensors {
		r := s.data.Rows(ctx, v, m, []int{i})
		h := sha256.New()
		n, err := io.CopyBuffer(h, r, buf)
		r.Close()
		if ctx.Err() != nil {
			return nil, 0, ctx.Err()
		}
		bytes += uint64(n)
		if err != nil && zcerr.KindOf(err) != zcerr.Corrupt { // says nothing about the bytes
			return nil, 0, explainDisk(err)
		}
		var sum manifest.Digest
		h.Sum(sum[:0])
		if err != nil || sum != m.Tensors[i].SHA256 {
			s.data.Distrust(v, m, i)
			bad = append(bad, i)
		}
	}
	return bad, bytes, nil
}

// verifyCold is Verify for a version that is only on disk.
func (s *Store) verifyCold(ctx context.Context, d manifest.Digest, out *Verified) error {
	v, err := s.data.Version(d)
	if err != nil {
		return err
	}
	m, _, err := s.data.Manifest(v)
	if err != nil {
		return explainDisk(err)
	}
	bad, n, err := s.hashOnDisk(ctx, v, m)
	if err != nil {
		return err
	}
	out.Digest, out.Tensors, out.Bytes = d, len(m.Tensors), n
	for _, row := range bad {
		out.Damaged = append(out.Damaged, m.Tensors[row].Names[0])
	}
	if len(bad) > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.coldLocked(d) != nil {
			s.lost[d] = zcerr.New(zcerr.Corrupt, "tensor %q is damaged on disk", out.Damaged[0])
		}
	}
	return nil
}
