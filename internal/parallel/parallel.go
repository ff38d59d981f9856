// Package parallel spreads independent pieces of work over goroutines.
package parallel

import (
	"context"
	"sync"
)

// Each does items 0 to n-1 by at most workers goroutines, handed out in order. worker is called once in each goroutine and gives
// what does one item, so that a buffer can be its own; its context ends with ctx and with the first error. Items that were
// handed out are finished, others are not begun after an error. Each returns when all goroutines have ended, with the first
// error or the cause of ctx's end.
func Each(ctx context.Context, workers, n int, worker func(ctx context.Context) func(i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			do := worker(ctx)
			for i := range next {
				if err := do(i); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}
