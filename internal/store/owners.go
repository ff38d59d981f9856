package store

import (
	"strings"

	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// A file counts for the user whose put wrote it, for as long as its memory is there: stored, or deleted and held. Who shares a
// tensor that is stored pays nothing for it, and what only lies on disk costs no memory. The catalog has the owners, so that
// they outlive the daemon; files of an older catalog count for nobody.
type owner struct {
	uid   uint32
	known bool
}

func (s *Store) ownerLocked(file string) owner {
	uid, ok := s.owned[file]
	return owner{uid, ok}
}

// quotaLocked refuses what would take a put's owner over the quota. Root has none of its own: a quota is meant for everybody,
// and in a container everybody may be root. What the store does by itself is always allowed. Errors: Limit, not NoSpace:
// taking versions of others out of memory would not help.
func (p *Put) quotaLocked(need uint64) error {
	quota := p.s.opt.MaxBytesPerUID
	if quota == 0 || p.inside || !p.owner.known {
		return nil
	}
	used := p.s.ownedLocked(p.owner.uid)
	if left := quota - min(quota, used); need > left {
		return zcerr.New(zcerr.Limit, "%s needed, uid %d has %s left of its quota of %s", units.Bytes(need), p.owner.uid, units.Bytes(left), units.Bytes(quota)).
			WithHint("remove a version that this user has put ('zcctl ls', 'zcctl rm REF'), or start the daemon with a larger quota: zcstored --max-bytes-per-uid %s", sizeFlag(used+need))
	}
	return nil
}

// sizeFlag writes a size, with some room, as a flag takes it.
func sizeFlag(n uint64) string { return strings.ReplaceAll(units.Bytes(n+n/8), " ", "") }

// ownedLocked is what counts for a user: blocks of files that are stored or held, and what open puts have reserved.
func (s *Store) ownedLocked(uid uint32) uint64 {
	n := s.reservedBy[uid]
	is := func(file string) bool { return s.ownerLocked(file) == owner{uid, true} }
	for _, sg := range s.segments {
		if is(sg.file()) {
			n += sg.use.Blocks
		}
	}
	for d, v := range s.versions {
		if is(tableFile(d)) {
			n += v.tableUse.Blocks
		}
	}
	gone := map[*segment]bool{}
	for v := range s.held {
		if is(tableFile(v.digest)) {
			n += v.tableUse.Blocks
		}
		for _, sg := range v.segs {
			if !gone[sg] && s.segments[sg.id] != sg && is(sg.file()) {
				gone[sg] = true
				n += sg.use.Blocks
			}
		}
	}
	return n
}

// ownLocked notes whose the files of a put are. fresh may be nil.
func (p *Put) ownLocked(fresh *segment) {
	if !p.owner.known {
		return
	}
	p.s.owned[tableFile(p.digest)] = p.owner.uid
	if fresh != nil {
		p.s.owned[fresh.file()] = p.owner.uid
	}
}

// countLocked counts n bytes more that a put has reserved for its owner, or less.
func (p *Put) countLocked(n int64) {
	if !p.owner.known {
		return
	}
	by := p.s.reservedBy
	if by[p.owner.uid] += uint64(n); by[p.owner.uid] == 0 {
		delete(by, p.owner.uid)
	}
}

// pruneOwnersLocked forgets the owners of files that are gone for good. A version that only lies on disk keeps its own, for
// when it comes back.
func (s *Store) pruneOwnersLocked() {
	keep := map[string]bool{}
	for _, m := range s.models {
		for d := range m.created {
			keep[tableFile(d)] = true
		}
	}
	for _, sg := range s.segments {
		keep[sg.file()] = true
	}
	for v := range s.held {
		keep[tableFile(v.digest)] = true
		for _, sg := range v.segs {
			keep[sg.file()] = true
		}
	}
	for file := range s.owned {
		if !keep[file] {
			delete(s.owned, file)
		}
	}
}
