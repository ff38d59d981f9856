package store

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zcstore/zcstore/models/manifest"
)

// pageRows is how many entries of a listing are made at a time, and so how long one holds the lock and what an unread one keeps.
const pageRows = 32

// Listing is what was stored at one moment: names, tags and versions are of that moment, and stay. What the store makes of
// them, such as who holds them and where they lie, is looked up page by page, as somebody reads. It is for one goroutine.
type Listing struct {
	s    *Store
	rows []listed
}

// listed is one version of a listing: a few words, whatever there is to say of it.
type listed struct {
	m    *model // never changed once it is in the store
	d    manifest.Digest
	v    *version // nil: it was not in memory
	disk *onDisk  // nil: it was not on disk
	lost error
	gone bool // no tag names it
}

// Listing begins a list of the versions of a model, or of all when name is empty, sorted by name and age. With all, also
// deleted ones that leases hold. Errors: NotFound for a name that is not stored.
func (s *Store) Listing(name string, all bool) (*Listing, error) {
	l, err := s.snapshot(name, all)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(l.rows, func(a, b listed) int { // not under the lock
		return cmp.Or(strings.Compare(a.m.name, b.m.name), a.created().Compare(b.created()), compareDigests(a.d, b.d))
	})
	return l, nil
}

func (s *Store) snapshot(name string, all bool) (*Listing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &Listing{s: s}
	for n, m := range s.models {
		if name != "" && n != name {
			continue
		}
		for d := range m.created {
			l.rows = append(l.rows, listed{m: m, d: d, v: s.versions[d], disk: s.coldLocked(d), lost: s.lost[d]})
		}
	}
	if all {
		seen := map[*version]bool{}
		for _, lease := range s.leases {
			if n, _, _ := strings.Cut(lease.Ref, ":"); s.goneLocked(lease.v) && !seen[lease.v] && (name == "" || n == name) {
				seen[lease.v] = true
				l.rows = append(l.rows, listed{m: newModel(n), d: lease.v.digest, v: lease.v, gone: true})
			}
		}
	}
	if name != "" && len(l.rows) == 0 {
		return nil, s.noModelLocked(name)
	}
	return l, nil
}

func (r listed) created() time.Time {
	if c, ok := r.m.created[r.d]; ok || r.v == nil {
		return c
	}
	return r.v.created
}

// Next makes the next entries, a few at a time. There are none at the end.
func (l *Listing) Next() []VersionInfo {
	n := min(len(l.rows), pageRows)
	page := l.rows[:n]
	l.rows = l.rows[n:]
	out := make([]VersionInfo, 0, n)
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	for _, r := range page {
		out = append(out, l.s.listedLocked(r))
	}
	return out
}

func (s *Store) listedLocked(r listed) VersionInfo {
	if now := s.versions[r.d]; now != nil && !r.gone {
		r.v = now
	}
	switch {
	case r.v != nil:
		info := s.infoLocked(r.m, r.v)
		info.Deleted = r.gone
		info.Resident = r.gone || s.versions[r.d] == r.v
		return info
	case r.disk != nil:
		return s.coldInfoLocked(r.m, r.d, r.disk)
	}
	return VersionInfo{Name: r.m.name, Tags: r.m.tagsOf(r.d), Digest: r.d, Created: r.created(), Damaged: fmt.Sprint(r.lost)}
}

// List is all of a Listing.
func (s *Store) List(name string, all bool) ([]VersionInfo, error) {
	l, err := s.Listing(name, all)
	if err != nil {
		return nil, err
	}
	var out []VersionInfo
	for page := l.Next(); len(page) > 0; page = l.Next() {
		out = append(out, page...)
	}
	return out, nil
}

// Holding is a list of leases. It is for one goroutine.
type Holding struct {
	s   *Store
	ids []uint64
}

// Holding begins a list of every lease there is now, or of those on one model, oldest first.
func (s *Store) Holding(name string) *Holding {
	s.mu.Lock()
	h := &Holding{s: s}
	for id, l := range s.leases {
		if n, _, _ := strings.Cut(l.Ref, ":"); name == "" || n == name {
			h.ids = append(h.ids, id)
		}
	}
	s.mu.Unlock()
	slices.Sort(h.ids)
	return h
}

// Next gives the next leases that are still there, a few at a time. There are none at the end.
func (h *Holding) Next() []LeaseInfo {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	var out []LeaseInfo
	for len(out) < pageRows && len(h.ids) > 0 {
		if l := h.s.leases[h.ids[0]]; l != nil {
			out = append(out, LeaseInfo{Lease: *l, Deleted: h.s.goneLocked(l.v)})
		}
		h.ids = h.ids[1:]
	}
	return out
}

// Holders is all of a Holding.
func (s *Store) Holders(name string) []LeaseInfo {
	var out []LeaseInfo
	h := s.Holding(name)
	for page := h.Next(); len(page) > 0; page = h.Next() {
		out = append(out, page...)
	}
	return out
}
