package store

import (
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// plan opens the put and decides which tensors are taken from other versions, whose segments it pins.
func (p *Put) plan() error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := p.checkTargetLocked(); err != nil {
		return err
	}
	if p.kept == nil && s.openPuts >= s.opt.MaxPuts {
		return zcerr.New(zcerr.Limit, "%d puts are open, the limit is %d", s.openPuts, s.opt.MaxPuts).WithHint("wait for one to end, or start the daemon with a larger --max-puts")
	}
	s.openPuts++
	if len(p.pending) == 0 && s.versions[p.digest] != nil {
		p.existed = true
		s.wanted[p.digest]++ // it stays in memory until it has its name
		return nil
	}
	p.shareLocked()
	return nil
}

// checkTargetLocked refuses an explicit tag that points at other bytes.
func (s *Store) checkTargetLocked(r ref.Ref, d manifest.Digest, replace bool) error {
	if r.Tag == "" || replace {
		return nil
	}
	m := s.models[r.Name]
	if m == nil {
		return nil
	}
	if old, ok := m.tags[r.Tag]; ok && old != d {
		asked := d.Short()
		if d == (manifest.Digest{}) { // of a put with pending rows
			asked = "these bytes"
		}
		return zcerr.New(zcerr.Conflict, "%s:%s points at %s already, not at %s", r.Name, r.Tag, old.Short(), asked).
			WithHint("move the tag with --replace; a put to the bare name %s makes a new version beside it", r.Name)
	}
	return nil
}

// checkTargetLocked refuses a put that its tag will refuse. The digest of one with pending rows is not known, but when a row
// is of a size that nothing stored has, it is no stored version's.
func (p *Put) checkTargetLocked() error {
	if len(p.pending) > 0 {
		if p.s.data != nil || len(p.s.lost) > 0 {
			return nil // it may be one on disk, or the repair of a damaged one; the commit knows
		}
		sizes := p.s.sizesLocked()
		for _, row := range p.pending {
			if size := uint64(p.man.Tensors[row].Bytes()); size >= dedupBytes && !sizes[size] {
				return p.s.checkTargetLocked(p.ref, manifest.Digest{}, p.replace)
			}
		}
		return nil
	}
	return p.s.checkTargetLocked(p.ref, p.digest, p.replace)
}

// shareLocked takes what other versions have, and lists what is wanted.
func (p *Put) shareLocked() {
	reuse := p.chooseSegmentsLocked()
	index := map[*segment]int{}
	p.locs = make([]table.Location, len(p.man.Tensors))
	shared := make([]bool, len(p.man.Tensors))
	share := func(row int, at place) {
		k, ok := index[at.seg]
		if !ok {
			k = len(p.segs)
			index[at.seg] = k
			p.segs = append(p.segs, at.seg)
			at.seg.pins++
		}
		p.locs[row] = table.Location{Segment: k, Offset: at.offset}
		p.sharedBytes += uint64(p.man.Tensors[row].Bytes())
		shared[row] = true
	}
	for i := range p.man.Tensors {
		t := &p.man.Tensors[i]
		if at, ok := p.s.content[t.SHA256]; ok && t.Bytes() >= dedupBytes && reuse[at.seg] { // a pending row's zeros are nobody's
			share(i, at)
		}
	}
	small := p.s.smallLocked(index)
	for i := range p.man.Tensors {
		t := &p.man.Tensors[i]
		if at, ok := small[t.SHA256]; ok && t.Bytes() > 0 && t.Bytes() < dedupBytes {
			share(i, at)
		}
		if !shared[i] {
			p.wanted = append(p.wanted, i)
			p.wantedBytes += uint64(t.Bytes())
		}
	}
}

// smallLocked is where the small tensors of these segments lie.
func (s *Store) smallLocked(segs map[*segment]int) map[manifest.Digest]place {
	small := map[manifest.Digest]place{}
	if len(segs) == 0 {
		return small
	}
	for _, v := range s.versions {
		for _, r := range v.small {
			if _, ok := segs[r.seg]; ok {
				small[r.sum] = r.place
			}
		}
	}
	return small
}

// chooseSegmentsLocked picks the segments to share with other versions: those with the most bytes in common, few enough
// for a worker to map, and none of which most is dead.
func (p *Put) chooseSegmentsLocked() map[*segment]bool {
	common := map[*segment]uint64{}
	for i := range p.man.Tensors {
		t := &p.man.Tensors[i]
		if size := uint64(t.Bytes()); size >= dedupBytes {
			if at, ok := p.s.content[t.SHA256]; ok {
				common[at.seg] += size
			}
		}
	}
	live := map[*segment]uint64{} // most bytes that any one version uses: a lower bound
	for _, v := range p.s.versions {
		for k, sg := range v.segs {
			live[sg] = max(live[sg], v.used[k])
		}
	}
	chosen := map[*segment]bool{}
	for len(chosen) < maxSegments-1 {
		var best *segment
		for sg, n := range common {
			if max(live[sg], n) < sg.use.Size/2 || chosen[sg] {
				continue
			}
			if best == nil || n > common[best] || (n == common[best] && sg.id < best.id) {
				best = sg
			}
		}
		if best == nil {
			break
		}
		chosen[best] = true
	}
	return chosen
}
