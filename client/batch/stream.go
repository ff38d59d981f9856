package batch

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"github.com/zcstore/zcstore/client/worker"
)

// Stream maps a sequence of rows over a pool of workers and yields the results batch by batch, in order. The pool is
// started when the iteration begins and closed when it ends, be that by a break.
//
// No more than InFlight batches per worker are read ahead of the one that is yielded, so a slow consumer slows the
// source. rows runs in the goroutine of the consumer and is not asked for more after a break. Each iteration reads
// rows anew.
//
// An error is yielded once, after the results before it, and is the last thing that is yielded.
func Stream[Args, In, Out any](ctx context.Context, rows iter.Seq[In], d *worker.Def[Args, []In, []Out], args Args, o Options) iter.Seq2[[]Out, error] {
	return func(yield func([]Out, error) bool) {
		if err := o.Validate(); err != nil {
			yield(nil, fmt.Errorf("batch.Stream: %w", err))
			return
		}
		pool, err := worker.Start(ctx, d, args, o.worker())
		if err != nil {
			yield(nil, err)
			return
		}
		defer pool.Close() // for a panic of the consumer or of rows
		ended := stream(ctx, rows, pool, o, yield)
		if err := pool.Close(); err != nil && !ended {
			yield(nil, err)
		}
	}
}

// StreamPool is Stream over a pool that exists and stays open.
func StreamPool[In, Out any](ctx context.Context, rows iter.Seq[In], pool *worker.Pool[[]In, []Out], o Options) iter.Seq2[[]Out, error] {
	return func(yield func([]Out, error) bool) {
		if err := o.validateCut(); err != nil {
			yield(nil, fmt.Errorf("batch.StreamPool: %w", err))
			return
		}
		stream(ctx, rows, pool, o, yield)
	}
}

// Chan is the rows that arrive on a channel, until it is closed or ctx ends.
func Chan[In any](ctx context.Context, c <-chan In) iter.Seq[In] {
	return func(yield func(In) bool) {
		for {
			select {
			case row, ok := <-c:
				if !ok || !yield(row) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// flight is a batch on its way.
type flight[Out any] struct {
	done chan struct{} // closed when out or err is set
	out  []Out
	err  *Error
}

func (f *flight[Out]) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// stream reports whether nothing more may be yielded: the consumer has left, or an error was the last word.
func stream[In, Out any](ctx context.Context, rows iter.Seq[In], pool *worker.Pool[[]In, []Out], o Options, yield func([]Out, error) bool) (ended bool) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	limit := o.limit(len(pool.Workers()))
	var queue []*flight[Out] // oldest first, at most limit
	var batch []In
	n, from := 0, 0

	launch := func() {
		f := &flight[Out]{done: make(chan struct{})}
		queue = append(queue, f)
		in, num, first := batch, n, from
		n, from, batch = n+1, from+len(in), nil
		wg.Go(func() {
			defer close(f.done)
			f.out, _, f.err = call(ctx, pool, in, num, first)
		})
	}
	// land yields the oldest; false ends the stream.
	land := func() bool {
		f := queue[0]
		queue = queue[1:]
		<-f.done
		if f.err != nil {
			yield(nil, f.err)
			return false
		}
		return yield(f.out, nil)
	}

	for row := range rows {
		if batch == nil {
			batch = make([]In, 0, min(o.Size, 1024))
		}
		if batch = append(batch, row); len(batch) < o.Size {
			continue
		}
		launch()
		for len(queue) > 0 && (len(queue) == limit || queue[0].landed()) {
			if !land() {
				return true
			}
		}
	}
	if len(batch) > 0 {
		launch()
	}
	for len(queue) > 0 {
		if !land() {
			return true
		}
	}
	if err := ctx.Err(); err != nil { // rows may have ended early because of it
		yield(nil, err)
		return true
	}
	return false
}
