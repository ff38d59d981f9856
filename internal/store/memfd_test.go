package store_test

import (
	"sync"
	"testing"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
)

// The suite over sealed memfds. A directory stands for a service, whose keeper outlives each of its stores.
func TestStoreMemfd(t *testing.T) {
	var mu sync.Mutex
	keepers := map[string]*storetest.Keeper{}
	storetest.Run(t, func(t *testing.T, opt storetest.Options) (storetest.Store, func()) {
		mu.Lock()
		k := keepers[opt.Dir]
		if k == nil {
			k = storetest.NewKeeper(t)
			keepers[opt.Dir] = k
		}
		mu.Unlock()
		s, err := store.Open(store.Options{Backing: k.Open(t), MaxBytes: opt.MaxBytes})
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
