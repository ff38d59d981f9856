package store

import "github.com/zcstore/zcstore/shm"

// Seals is what every file that is handed out has been sealed against, as fcntl(F_GET_SEALS) counts it; 0 for a backing whose
// files cannot be sealed. Clients check it.
func (s *Store) Seals() uint32 {
	if s.dir.Kind() == shm.KindMemfd {
		return shm.AllSeals
	}
	return 0
}
