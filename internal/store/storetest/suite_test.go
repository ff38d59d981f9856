package storetest_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }

// The same suite over a daemon's socket and through the SDK; internal/store runs it in the process.
func TestStoreOverTheSocket(t *testing.T) {
	storetest.Run(t, func(t *testing.T, opt storetest.Options) (storetest.Store, func()) {
		base, err := os.MkdirTemp("", "zc")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(base) })
		socket := filepath.Join(base, "s")
		ctx, cancel := context.WithCancel(context.Background())
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- daemon.Run(ctx, daemon.Config{Socket: socket, Dir: opt.Dir, MaxBytes: opt.MaxBytes, Ready: func() { close(ready) }})
		}()
		select {
		case <-ready:
		case err := <-done:
			cancel()
			t.Fatalf("daemon: %v", err)
		}
		c, err := client.Dial(context.Background(), client.Options{Socket: socket})
		if err != nil {
			t.Fatal(err)
		}
		return storetest.Remote{C: c}, func() {
			c.Close()
			cancel()
			if err := <-done; err != nil {
				t.Errorf("daemon: %v", err)
			}
		}
	})
}
