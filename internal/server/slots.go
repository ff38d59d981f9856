package server

import (
	"context"
	"sync"
	"time"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// slots bounds how many files of each uid the daemon reads at a time. A file system that hangs holds its slot for as long as it
// hangs, and nothing else.
type slots struct {
	max  int           // immutable
	idle time.Duration // immutable; how long take waits

	mu    sync.Mutex
	used  map[uint32]int // guarded by mu
	freed chan struct{}  // guarded by mu; closed when a slot is given back, and replaced
}

func newSlots(max int, idle time.Duration) *slots {
	return &slots{max: max, idle: idle, used: map[uint32]int{}, freed: make(chan struct{})}
}

// take waits for a slot of uid, until ctx ends or for as long as a put may be idle. Errors: Limit.
func (s *slots) take(ctx context.Context, uid uint32) (release func(), err error) {
	late := time.NewTimer(s.idle)
	defer late.Stop()
	for {
		s.mu.Lock()
		if s.used[uid] < s.max {
			s.used[uid]++
			s.mu.Unlock()
			return func() { s.release(uid) }, nil
		}
		freed := s.freed
		s.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-late.C:
			return nil, zcerr.New(zcerr.Limit, "uid %d has %d files being read, the limit is %d, and none of them ended within %v", uid, s.max, s.max, s.idle).
				WithHint("check the file systems that they are on, or start the daemon with a larger --max-imports")
		}
	}
}

func (s *slots) release(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used[uid]--; s.used[uid] == 0 {
		delete(s.used, uid)
	}
	close(s.freed)
	s.freed = make(chan struct{})
}
