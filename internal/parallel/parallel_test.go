package parallel

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }

func TestEach(t *testing.T) {
	var done [100]atomic.Int32
	var workers atomic.Int32
	all := func(context.Context) func(int) error {
		workers.Add(1)
		return func(i int) error { done[i].Add(1); return nil }
	}
	if err := Each(context.Background(), 3, len(done), all); err != nil {
		t.Fatal(err)
	}
	for i := range done {
		if n := done[i].Load(); n != 1 {
			t.Errorf("item %d was done %d times", i, n)
		}
	}
	if n := workers.Load(); n != 3 {
		t.Errorf("%d workers", n)
	}
	if err := Each(context.Background(), 3, 0, all); err != nil {
		t.Error(err)
	}
}

func TestEachStopsAtTheFirstError(t *testing.T) {
	broken := errors.New("broken")
	var done atomic.Int32
	err := Each(context.Background(), 2, 1_000_000, func(ctx context.Context) func(int) error {
		return func(i int) error {
			done.Add(1)
			if i == 10 {
				return broken
			}
			return ctx.Err()
		}
	})
	if !errors.Is(err, broken) || done.Load() == 1_000_000 {
		t.Errorf("%v after %d items", err, done.Load())
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Each(ended, 2, 10, func(context.Context) func(int) error { return func(int) error { return nil } }); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}
