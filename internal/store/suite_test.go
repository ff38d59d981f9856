package store_test

import (
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
)

// The suite in this process; internal/store/storetest runs it over the socket.
func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, opt storetest.Options) (storetest.Store, func()) {
		s, err := store.Open(store.Options{Dir: opt.Dir, MaxBytes: opt.MaxBytes})
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

// The same with a disk below, but for two cases that it is there to change: what does not fit pushes something out of memory, and
// what verify finds damaged in memory is loaded again (see disk_test.go).
func TestStoreOnDisk(t *testing.T) {
	data := map[string]string{} // of each case's directory
	storetest.Run(t, func(t *testing.T, opt storetest.Options) (storetest.Store, func()) {
		if data[opt.Dir] == "" {
			data[opt.Dir] = filepath.Join(t.TempDir(), "data")
		}
		s, err := store.Open(store.Options{Dir: opt.Dir, MaxBytes: opt.MaxBytes, Data: data[opt.Dir]})
		if err != nil {
			t.Fatal(err)
		}
		return storetest.Local{Store: s}, func() {
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
	}, "budget", "verify")
}
