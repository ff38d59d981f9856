package store

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// evictGrace is how long after a start that found versions in memory nothing is evicted: workers of the daemon before are
// taking their leases anew.
const evictGrace = 5 * time.Second

// reserveOrEvict is reserve that makes room when it must, the least recently used first: it drops forms, which can be made
// again, then takes versions out of memory that are on disk. Never one that somebody holds or that is pinned.
func (p *Put) reserveOrEvict() error {
	for {
		err := p.reserve()
		if err == nil || zcerr.KindOf(err) != zcerr.NoSpace || p.lay == nil || !p.s.evictOne(uint64(p.lay.size)) {
			return err
		}
		p.unreserve()
	}
}

// unreserve takes back what a reserve that failed has done.
func (p *Put) unreserve() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.reserved -= p.reserved
	p.countLocked(-int64(p.reserved))
	p.s.filling -= p.filling
	p.reserved, p.filling = 0, 0
	if p.w != nil {
		p.w.Abort()
		p.w = nil
	}
}

// evictOne drops the least recently used form, or else takes the least recently used version out of memory. It does nothing,
// and says so, when all that may go together would not make room for need bytes.
func (s *Store) evictOne(need uint64) bool {
	s.mu.Lock()
	forms := len(s.idleFormsLocked())
	s.mu.Unlock()
	if s.data == nil && forms == 0 {
		return false
	}
	s.waitForLeases()
	room, err := s.Room()
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list, idle := s.evictableLocked(), s.idleFormsLocked()
	all := list
	for _, f := range idle {
		all = append(all, f.version)
	}
	if len(all) == 0 || room.Free+s.freeableLocked(all) < need {
		return false
	}
	if len(idle) > 0 {
		s.log.Info("dropped a form", zap.Stringer("digest", idle[0].key.source), zap.String("form", string(idle[0].key.form)), zap.Uint64("bytes", idle[0].bytes))
		s.dropFormLocked(idle[0])
		return true
	}
	v := list[0]
	s.log.Info("evicted from memory", zap.Stringer("digest", v.digest), zap.Uint64("bytes", v.bytes))
	s.forgetVersionLocked(v)
	s.wakeCompactor()
	return true
}

// waitForLeases waits for the grace after a start to be over.
func (s *Store) waitForLeases() {
	if s.adopted == 0 { // nobody can have held anything
		return
	}
	left := time.Until(s.started.Add(s.opt.Grace))
	if left <= 0 {
		return
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.life.Done():
	}
}

// evictableLocked lists the versions that may be evicted, the least recently used first.
func (s *Store) evictableLocked() []*version {
	var out []*version
	for d, v := range s.versions {
		if s.disk[d] == nil || s.disk[d].v == nil || v.leases > 0 || s.wanted[d] > 0 || s.pinnedLocked(d) || !s.namedLocked(d) {
			continue
		}
		if slices.ContainsFunc(v.segs, func(sg *segment) bool { return sg.pins > 0 }) { // a put shares its bytes
			continue
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b *version) int {
		if s.disk[a.digest].used < s.disk[b.digest].used {
			return -1
		}
		return 1
	})
	return out
}

// freeableLocked is what evicting all of list would give back.
func (s *Store) freeableLocked(list []*version) uint64 {
	n := uint64(0)
	refs := map[*segment]int{}
	for _, v := range list {
		n += v.tableUse.Blocks
		for _, sg := range v.segs {
			if refs[sg]++; refs[sg] == sg.refs {
				n += sg.use.Blocks
			}
		}
	}
	return n
}
