package demo

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// place is everything a demo has on a file system: one directory of shared memory, with the socket in it. Whoever runs the
// demo holds a lock in it, so that the next demo can tell a directory in use from one that a SIGKILL left.
type place struct {
	dir  string
	lock *os.File
}

const shmDir = "/dev/shm"

func prefix() string { return fmt.Sprintf("zcstore-demo-%d-", os.Geteuid()) }

// newPlace makes the directory. It gets its name only when it is locked: a sweep never meets it unlocked.
func newPlace() (*place, error) {
	var b [6]byte
	_, _ = rand.Read(b[:])
	id := hex.EncodeToString(b[:])
	made := filepath.Join(shmDir, ".new-"+prefix()+id)
	if err := os.Mkdir(made, 0o700); err != nil {
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(made, "demo.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	p := &place{dir: filepath.Join(shmDir, prefix()+id), lock: lock}
	if err == nil {
		err = os.Rename(made, p.dir)
	}
	if err != nil {
		os.RemoveAll(made)
		return nil, fmt.Errorf("shared memory: %w", err)
	}
	return p, nil
}

func (p *place) socket() string   { return filepath.Join(p.dir, "s") }
func (p *place) segments() string { return filepath.Join(p.dir, "segments") }

func (p *place) remove() error {
	err := os.RemoveAll(p.dir)
	p.lock.Close()
	return err
}

// sweep removes what demos of this user left that were killed, and says how many.
func sweep() (swept int, err error) {
	entries, err := os.ReadDir(shmDir)
	if err != nil {
		return 0, fmt.Errorf("shared memory: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(shmDir, e.Name())
		switch {
		case strings.HasPrefix(e.Name(), prefix()):
			lock, err := os.OpenFile(filepath.Join(dir, "demo.lock"), os.O_RDWR, 0)
			if err == nil {
				err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
				defer lock.Close()
			}
			if err != nil && !os.IsNotExist(err) {
				continue // in use
			}
		case strings.HasPrefix(e.Name(), ".new-"+prefix()): // killed between two system calls
			if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < time.Minute {
				continue
			}
		default:
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return swept, fmt.Errorf("remove what an earlier demo left: %w", err)
		}
		swept++
	}
	return swept, nil
}
