package store_test

import (
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
