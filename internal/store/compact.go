package store

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// When versions are removed whose tensors others share, their segments stay for what is shared, and the rest of them is dead
// weight. Compaction writes the shared tensors anew and lets such a segment go. A digest says nothing of where bytes lie, so
// the version stays what it is; who has the old files mapped keeps them until it lets go.

// compactFrom is the dead bytes from which a segment is worth it, if they are also most of it.
const compactFrom = 1 << 20

// compactor compacts whenever it is woken, until ctx ends.
func (s *Store) compactor(ctx context.Context) {
	defer close(s.compacted)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.compact:
		}
		for ctx.Err() == nil && s.compactOne(ctx) {
		}
	}
}

// wakeCompactor has the compactor look for mostly dead segments, soon.
func (s *Store) wakeCompactor() {
	select {
	case s.compact <- struct{}{}:
	default: // it will look anyway
	}
}

// compactOne moves one version out of one mostly dead segment. It reports whether to go on: false when there is none, and
// when there is no room for a copy, which the next removal may make.
func (s *Store) compactOne(ctx context.Context) bool {
	s.mu.Lock()
	v, sg := s.mostlyDeadLocked()
	s.mu.Unlock()
	if v == nil {
		return false
	}
	start := time.Now()
	err := s.move(ctx, v, sg)
	log := s.log.With(zap.Stringer("digest", v.digest), zap.Uint64("segment_bytes", sg.use.Size), zap.Duration("dur", time.Since(start)))
	switch {
	case err == nil:
		log.Info("compacted")
		return true
	case ctx.Err() != nil:
	case zcerr.KindOf(err) == zcerr.Corrupt:
		log.Error("compaction found damage", zap.Error(err))
		s.quarantine(v, nil, err)
		return true
	case zcerr.KindOf(err) == zcerr.Conflict: // the version went meanwhile
		return true
	default:
		log.Warn("compaction waits", zap.Error(err))
	}
	return false
}

// mostlyDeadLocked finds a segment of which most is dead and that nobody is about to use, and of the versions in it the one
// with most bytes there.
func (s *Store) mostlyDeadLocked() (*version, *segment) {
	live := s.liveLocked()
	var found *version
	var in *segment
	var most uint64
	for _, v := range s.versions {
		for k, sg := range v.segs {
			dead := sg.use.Size - min(sg.use.Size, live[sg])
			if sg.pins > 0 || dead < compactFrom || dead <= live[sg] {
				continue
			}
			if found == nil || sg == in && v.used[k] > most || sg != in && sg.id < in.id {
				found, in, most = v, sg, v.used[k]
			}
		}
	}
	return found, in
}

// liveLocked is how many bytes of each segment stored versions use. Large tensors may be used by several and count once;
// small ones belong to the one version that the segment was written for.
func (s *Store) liveLocked() map[*segment]uint64 {
	live, small := map[*segment]uint64{}, map[*segment]uint64{}
	seen := map[place]bool{}
	for _, v := range s.versions {
		own := map[*segment]uint64{}
		for k, sg := range v.segs {
			own[sg] = v.used[k]
		}
		for _, r := range v.rows {
			own[r.seg] -= r.size
			if !seen[r.place] {
				seen[r.place] = true
				live[r.seg] += r.size
			}
		}
		for sg, n := range own {
			small[sg] = max(small[sg], n)
		}
	}
	for sg, n := range small {
		live[sg] += n
	}
	return live
}

// move writes what v has in a segment anew, and replaces v's table by one that points there. What another version's move has
// written already is shared. Errors: Conflict when v is no longer stored as it was, NoSpace, Corrupt.
func (s *Store) move(ctx context.Context, v *version, from *segment) error {
	p, oldLocs, err := s.planMove(v, from)
	if err != nil {
		return err
	}
	defer s.unpin(from)
	defer p.Abort()
	if err := p.layOut(); err != nil {
		return err
	}
	if err := p.reserve(); err != nil {
		return err
	}
	if len(p.wanted) > 0 {
		f, err := s.dir.Open(from.file())
		if errors.Is(err, os.ErrNotExist) {
			return zcerr.New(zcerr.Corrupt, "a segment was removed behind the daemon's back: %w", err)
		}
		if err != nil { // it passes; what is stored is whole
			return err
		}
		defer f.Close()
		var rows []io.Reader
		for _, row := range p.wanted {
			rows = append(rows, io.NewSectionReader(f, int64(oldLocs[row].Offset), int64(p.man.Tensors[row].Bytes())))
		}
		if err := p.Fill(ctx, io.MultiReader(rows...)); err != nil {
			return err
		}
		if _, err := p.Settle(); err != nil {
			return err
		}
	}
	fresh, encoded, err := p.publishSegment()
	if err != nil {
		return err
	}
	failpoint.Reached("compact.segment-published")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.versions[v.digest] != v {
		err = zcerr.New(zcerr.Conflict, "the version was removed during its compaction")
	}
	var moved *version
	if err == nil {
		moved, err = p.publishTableLocked(fresh, encoded)
	}
	if err != nil {
		if fresh != nil {
			s.unlinkIfUnusedLocked(fresh)
		}
		return err
	}
	failpoint.Reached("compact.table-published")
	s.swapLocked(v, moved)
	return nil
}

// unpin lets go of segments that were kept in their place, and unlinks those that nothing uses any more.
func (s *Store) unpin(segs ...*segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unpinLocked(segs...)
}

func (s *Store) unpinLocked(segs ...*segment) {
	for _, sg := range segs {
		sg.pins--
		s.unlinkIfUnusedLocked(sg)
	}
}

// planMove makes the put that writes v without a segment, which it pins. It belongs to the store, not to a client.
func (s *Store) planMove(v *version, from *segment) (*Put, []table.Location, error) {
	man, locs, err := s.readTable(v)
	if err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.versions[v.digest] != v {
		return nil, nil, zcerr.New(zcerr.Conflict, "the version was removed")
	}
	from.pins++ // its file stays where it can be opened
	p := &Put{s: s, man: man, digest: v.digest, inside: true, owner: s.ownerLocked(tableFile(v.digest)), locs: make([]table.Location, len(locs))}
	use := func(sg *segment, offset uint64) table.Location {
		k := slices.Index(p.segs, sg)
		if k < 0 {
			k = len(p.segs)
			p.segs = append(p.segs, sg)
			sg.pins++
		}
		return table.Location{Segment: k, Offset: offset}
	}
	for row := range man.Tensors { // what lies elsewhere stays there, and those segments are among the few a worker may map
		if at := locs[row]; man.Tensors[row].Bytes() > 0 && v.segs[at.Segment] != from {
			p.locs[row] = use(v.segs[at.Segment], at.Offset)
		}
	}
	for row := range man.Tensors {
		size := uint64(man.Tensors[row].Bytes())
		at, elsewhere := s.content[man.Tensors[row].SHA256]
		switch {
		case size > 0 && v.segs[locs[row].Segment] != from:
		case size >= dedupBytes && elsewhere && at.seg != from && (slices.Contains(p.segs, at.seg) || len(p.segs) < maxSegments-1):
			p.locs[row] = use(at.seg, at.offset)
		default:
			p.wanted = append(p.wanted, row)
			p.wantedBytes += size
		}
	}
	return p, locs, nil
}

// swapLocked puts a version in the place of itself in other files. Leases on the old one keep its files.
func (s *Store) swapLocked(old, moved *version) {
	moved.created = old.created
	s.addVersionLocked(moved) // first, so that the segments both use stay
	s.dropLocked(old)
	for _, r := range moved.rows { // found here from now on, not in what others still have of the old segment
		s.content[r.sum] = r.place
	}
}
