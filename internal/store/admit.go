package store

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// What admission leaves free, to everybody else: of memory the lesser of a tenth and 256 MiB, because filling it ends in an
// out-of-memory kill; of the segments' file system the lesser of a tenth and 4 MiB, because only the store itself writes
// there, and tables and the catalog must still fit.
const (
	marginMemory = 256 << 20
	marginFiles  = 4 << 20
)

const (
	sharedMemory = "shared memory"
	budget       = "the budget"
)

// Room is what can be allocated now, and what says so.
type Room struct {
	Free uint64 // bytes, margins taken off
	Of   uint64 // bytes; the limit itself
	What string // "shared memory", "memory cgroup /x", "the budget"
	hint string
}

// Room is the tightest of all limits: the file system of the segments, the host's available memory, every memory cgroup above
// the daemon, and its own budget.
func (s *Store) Room() (Room, error) {
	space, err := s.dir.Space()
	if err != nil {
		return Room{}, err
	}
	room := Room{Free: leave(space.Free, space.Size, marginFiles), Of: space.Size, What: sharedMemory,
		hint: "remove a version ('zcctl ls', 'zcctl rm REF'), or give shared memory more room: mount -o remount,size=SIZE /dev/shm, docker run --shm-size=SIZE"}
	memory, err := s.memoryRoom()
	if err != nil {
		return Room{}, err
	}
	if memory.Free < room.Free {
		room = memory
	}
	// A file over RLIMIT_FSIZE is refused with a signal that ends most programs.
	var file unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &file); err == nil && file.Cur < room.Free {
		room = Room{Free: file.Cur, Of: file.Cur, What: "the daemon's limit of a file's size (RLIMIT_FSIZE)",
			hint: "raise the limit: LimitFSIZE=infinity in the daemon's unit, ulimit -f unlimited"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	room.Free -= min(room.Free, s.admitted)
	if max := s.opt.MaxBytes; max > 0 {
		// What deleted versions still pin counts, too, with a lease or without: it is memory that the budget was given for.
		t := s.totalsLocked(space)
		used := t.Used + t.Held + t.Orphaned + s.reserved
		if left := max - min(used, max); left < room.Free {
			room = Room{Free: left, Of: max, What: budget,
				hint: "remove a version ('zcctl ls', 'zcctl rm REF'), see who holds deleted ones ('zcctl ls --all', 'zcctl ps'), or start the daemon with a larger --max-bytes"}
		}
	}
	if s.data != nil && (room.What == budget || room.What == sharedMemory) { // what could be evicted is gone by then
		room.hint = "pinned versions ('zcctl ls') and those that workers hold ('zcctl ps') stay in memory: let one go with 'zcctl pin --off REF', or give it more room, --max-bytes or a larger tmpfs"
	}
	if held := s.heldBytesLocked(); held > 0 && room.What == sharedMemory {
		room.hint = units.Bytes(held) + " are held by workers of deleted versions: see 'zcctl ps'; or remove a version: 'zcctl rm REF'"
	}
	return room, nil
}

// memoryRoom is the tightest limit of memory, be it shared or private.
func (s *Store) memoryRoom() (Room, error) {
	limits, err := s.memLimits()
	if err != nil {
		return Room{}, zcerr.New(zcerr.Other, "read the limits of memory: %w", err)
	}
	room := Room{Free: math.MaxUint64}
	for i, l := range limits {
		if f := leave(l.Free, l.Max, marginMemory); f < room.Free {
			room = Room{Free: f, Of: l.Max, What: l.Name, hint: "remove a version ('zcctl ls', 'zcctl rm REF'), or end other programs that use memory ('zcctl ps' shows workers)"}
			if i > 0 {
				room.hint = "remove a version ('zcctl ls', 'zcctl rm REF'), or raise the limit of the daemon's memory cgroup: systemctl set-property UNIT MemoryMax=SIZE, docker run --memory=SIZE"
			}
		}
	}
	return room, nil
}

// Refuse is the error for what needs more than the room.
func (r Room) Refuse(need uint64) error {
	have := units.Bytes(r.Free) + " free in " + r.What + " of " + units.Bytes(r.Of)
	if r.What == budget {
		have = units.Bytes(r.Free) + " left of the budget of " + units.Bytes(r.Of)
	}
	return zcerr.New(zcerr.NoSpace, "%s needed, %s", units.Bytes(need), have).WithHint("%s", r.hint)
}

// leave takes a margin off what is free of a limit.
func leave(free, limit, margin uint64) uint64 { return free - min(free, limit/10, margin) }

// admit refuses what would not fit before anything is allocated, and reserves it of the budget. The caller calls allocated
// once the kernel's own numbers have it. One put at a time looks and reserves, so that two cannot both take the last room.
func (p *Put) admit(need uint64) (allocated func(), err error) {
	s := p.s
	s.admitting.Lock()
	defer s.admitting.Unlock()
	room, err := s.Room()
	if err != nil {
		return nil, err
	}
	if need > room.Free {
		return nil, room.Refuse(need)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := p.quotaLocked(need); err != nil {
		return nil, err
	}
	p.reserved = need
	p.countLocked(int64(need))
	s.reserved += need
	s.admitted += need
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.admitted -= need
	}, nil
}
