package store

import (
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Pin keeps the version that a reference names in memory, whatever else needs room, or lets go of it with off. It holds for the
// version, not for the tag, which may move on; it ends with the last tag of the model that names the version. A version that is
// only on disk is loaded first. Errors: Invalid, NotFound; NoSpace and Corrupt of the load.
func (s *Store) Pin(target string, off bool) (VersionInfo, error) {
	r, err := ref.Parse(target)
	if err != nil {
		return VersionInfo{}, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	for {
		info, cold, err := s.pin(r, off)
		if err != nil || cold == nil {
			return info, err
		}
		if err := s.loadVersion(*cold); err != nil {
			return VersionInfo{}, err
		}
	}
}

func (s *Store) pin(r ref.Ref, off bool) (info VersionInfo, cold *manifest.Digest, err error) {
	s.lockNames()
	defer s.unlockNames()
	d, _, err := s.findLocked(r)
	if err != nil {
		return info, nil, err
	}
	m := s.models[r.Name]
	if !off && s.lost[d] != nil {
		_, _, err := s.resolveLocked(r)
		return info, nil, err
	}
	if !off && s.coldLocked(d) != nil {
		return info, &d, nil
	}
	if m.pinned[d] == off {
		next := m.clone()
		delete(next.pinned, d)
		if !off {
			next.pinned[d] = true
		}
		if err := s.replaceModelLocked(next); err != nil {
			return info, nil, err
		}
	}
	return s.anyInfoLocked(r.Name, d), nil, nil
}

func (s *Store) pinnedLocked(d manifest.Digest) bool {
	for _, m := range s.models {
		if m.pinned[d] {
			return true
		}
	}
	return false
}
