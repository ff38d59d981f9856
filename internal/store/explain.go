package store

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// explain makes what the kernel answered into an error that says what to do. Every exported method of the store passes its
// errors through it; those that are explained already stay as they are. It takes no lock.
func explain(err error) error {
	var typed *zcerr.Error
	switch {
	case err == nil, errors.As(err, &typed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return zcerr.New(zcerr.Limit, "the daemon is at its limit of open files: %w", err).
			WithHint("give it more: LimitNOFILE= in its unit, or ulimit -n before it is started")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return zcerr.New(zcerr.NoSpace, "shared memory is full: %w", err).
			WithHint("remove a version ('zcctl ls', 'zcctl rm REF'), or give shared memory more room: mount -o remount,size=SIZE /dev/shm")
	}
	return zcerr.New(zcerr.Other, "the daemon's shared memory: %w", err).
		WithHint("nothing was changed; the daemon's log and the kernel's (dmesg) may say more; look at the machine with 'zcctl doctor'")
}

func explainInto(err *error) { *err = explain(*err) }

// removeLocked unlinks a file that nothing names any more. When that fails, the file is remembered, and tried again by
// tidyLocked; the next start would sweep it away too.
func (s *Store) removeLocked(name string) {
	if err := s.dir.Remove(name); err != nil {
		s.log.Error("unlink", zap.Error(err))
		if s.debris == nil {
			s.debris = map[string]bool{}
		}
		s.debris[name] = true
		return
	}
	delete(s.debris, name)
}

// tidyLocked tries again to unlink what could not be unlinked before, and, once every version that could not be read is
// stored anew or removed, unlinks the segments that were kept for them.
func (s *Store) tidyLocked() {
	if len(s.lost) == 0 {
		for name := range s.doubtful {
			if s.segments[strings.TrimPrefix(name, segmentPrefix)] == nil {
				s.removeLocked(name)
			}
		}
		clear(s.doubtful)
	}
	for name := range s.debris {
		s.removeLocked(name)
	}
}

// discard is removeLocked for callers without the lock.
func (s *Store) discard(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(name)
}
