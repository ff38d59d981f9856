package store

import "github.com/zcstore/zcstore/models/manifest"

// Have tells which of the sizes, in bytes, and of the digests a stored tensor has. Only tensors that are looked for in other
// versions count: those of 64 KiB and more.
func (s *Store) Have(sizes []uint64, digests []manifest.Digest) (hasSize, hasDigest []bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hasSize, hasDigest = make([]bool, len(sizes)), make([]bool, len(digests))
	if len(sizes) > 0 {
		stored := s.sizesLocked()
		for i, n := range sizes {
			hasSize[i] = stored[n]
		}
	}
	for i, d := range digests {
		_, hasDigest[i] = s.content[d]
	}
	return hasSize, hasDigest
}

// sizesLocked is the sizes of all stored tensors of dedupBytes and more.
func (s *Store) sizesLocked() map[uint64]bool {
	sizes := map[uint64]bool{}
	for _, v := range s.versions {
		for _, r := range v.rows {
			sizes[r.size] = true
		}
	}
	return sizes
}
