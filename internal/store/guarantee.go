package store

import (
	"fmt"
	"os"

	"github.com/zcstore/zcstore/shm"
)

// Guarantee says in plain words who could still change a segment of this backing.
func (s *Store) Guarantee() string { return guardWords(s.dir.Guarantee(), os.Geteuid()) }

// guardWords says what a guarantee means to somebody who wants to know whether to trust the weights.
func guardWords(g shm.Guarantee, uid int) string {
	who := fmt.Sprintf("uid %d and root", uid)
	if uid == 0 {
		who = "root"
	}
	switch {
	case g.OtherUIDs != shm.ReachNever:
		return "advisory: every user who gets a descriptor could write"
	case g.SameUID == shm.ReachNever && g.Root == shm.ReachNever:
		return "sealed: nobody can change it, neither root nor this daemon"
	case g.SameUID == shm.ReachByFD || g.Root == shm.ReachByFD:
		return fmt.Sprintf("read-only for every other user; %s could reopen it for writing (a plain tmpfs cannot be sealed)", who)
	}
	return fmt.Sprintf("read-only through every descriptor that is handed out; %s could write by opening the file's name", who)
}

// Durability says in plain words what survives what.
func (s *Store) Durability() string {
	if s.data != nil {
		return s.diskDurability()
	}
	if !s.dir.Guarantee().SurvivesRestart {
		return "memory only: everything stored goes when the daemon ends, since no service manager keeps its descriptors"
	}
	return "memory only: stored versions survive a restart of the daemon, not a reboot"
}
