package store_test

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/shm"
)

// keeper is a service manager in this process: what it has is what the next store on it gets.
type keeper struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func (k *keeper) Keep(name string, f *os.File) error {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files[name] != nil {
		return errors.New("kept already")
	}
	k.files[name] = os.NewFile(uintptr(fd), name)
	return nil
}

func (k *keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.files[name]; f != nil {
		f.Close()
		delete(k.files, name)
	}
	return nil
}

func (k *keeper) Sync() error { return nil }
func (k *keeper) Room() int   { return 1000 }

func (k *keeper) open(t *testing.T) shm.Backing {
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

// The suite over sealed memfds. A directory stands for a service, whose keeper outlives each of its stores.
func TestStoreMemfd(t *testing.T) {
	var mu sync.Mutex
	keepers := map[string]*keeper{}
	storetest.Run(t, func(t *testing.T, opt storetest.Options) (storetest.Store, func()) {
		mu.Lock()
		k := keepers[opt.Dir]
		if k == nil {
			k = &keeper{files: map[string]*os.File{}}
			keepers[opt.Dir] = k
			t.Cleanup(func() {
				for _, f := range k.files {
					f.Close()
				}
			})
		}
		mu.Unlock()
		s, err := store.Open(store.Options{Backing: k.open(t), MaxBytes: opt.MaxBytes})
		if err != nil {
			t.Fatal(err)
		}
		return storetest.Local{Store: s}, func() {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	})
}
