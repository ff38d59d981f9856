package storetest

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/shm"
)

// Keeper is a service manager in this process, for stores of memfds: what it has, the next store on it gets.
type Keeper struct {
	mu    sync.Mutex
	files map[string]*os.File // guarded by mu
}

// NewKeeper makes one that goes with the test.
func NewKeeper(t testing.TB) *Keeper {
	k := &Keeper{files: map[string]*os.File{}}
	t.Cleanup(k.Empty)
	return k
}

// Empty lets go of everything.
func (k *Keeper) Empty() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.files {
		f.Close()
	}
	clear(k.files)
}

// Keep implements shm.Keeper, as the other three do.
func (k *Keeper) Keep(name string, f *os.File) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files[name] != nil {
		return errors.New("kept already")
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		k.files[name] = os.NewFile(uintptr(fd), name)
	}
	return err
}

// Drop lets go of a name.
func (k *Keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.files[name]; f != nil {
		f.Close()
		delete(k.files, name)
	}
	return nil
}

// Sync has nothing to wait for.
func (k *Keeper) Sync() error { return nil }

// Room is enough.
func (k *Keeper) Room() int { return 10_000 }

// Len is how many descriptors it has.
func (k *Keeper) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.files)
}

// Stale is how many of them are old generations of a file that was replaced.
func (k *Keeper) Stale() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := map[string]bool{}
	for name := range k.files {
		base, _, _ := strings.Cut(name, ".")
		files[base] = true
	}
	return len(k.files) - len(files)
}

// Open makes a store's backing of what is kept, as a daemon does at its start.
func (k *Keeper) Open(t testing.TB) shm.Backing {
	t.Helper()
	k.mu.Lock()
	var kept []shm.Kept
	for name, f := range k.files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !store.IsFile(name) {
			t.Errorf("the store has a file %q that the daemon would not take back", name)
		}
		kept = append(kept, shm.Kept{Name: name, File: os.NewFile(uintptr(fd), name)})
	}
	k.mu.Unlock()
	m, refused := shm.NewMemfd(k, kept)
	if len(refused) > 0 {
		t.Error(refused)
	}
	return m
}
