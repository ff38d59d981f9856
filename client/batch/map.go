package batch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zcstore/zcstore/client/worker"
)

// Result is what came of a Map.
type Result[Out any] struct {
	Rows    []Out // one for each input row, in the order of the input
	Batches int
	Workers []Share // who did how much, by the worker's number
	Wall    time.Duration
	Start   time.Duration // the part of Wall until all workers were ready; 0 for MapPool
}

// Share is one worker's part of a Map.
type Share struct {
	Worker  int
	Batches int
	Rows    int
}

// Map cuts rows in batches, maps them over a pool of workers that it starts and closes, and returns the results in
// order. In goroutine mode an actor gets parts of rows itself and must not change them.
// On an error the rest is canceled and nothing is left running.
func Map[Args, In, Out any](ctx context.Context, rows []In, d *worker.Def[Args, []In, []Out], args Args, o Options) (*Result[Out], error) {
	begin := time.Now()
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("batch.Map: %w", err)
	}
	if len(rows) == 0 {
		return &Result[Out]{Wall: time.Since(begin)}, nil
	}
	w := o.worker()
	w.Workers = min(w.Workers, count(len(rows), o.Size))
	pool, err := worker.Start(ctx, d, args, w)
	if err != nil {
		return nil, err
	}
	start := time.Since(begin)
	res, err := MapPool(ctx, rows, pool, o)
	if err := errors.Join(err, pool.Close()); err != nil {
		return nil, err
	}
	res.Start, res.Wall = start, time.Since(begin)
	return res, nil
}

// MapPool is Map over a pool that exists and stays open.
func MapPool[In, Out any](ctx context.Context, rows []In, pool *worker.Pool[[]In, []Out], o Options) (*Result[Out], error) {
	begin := time.Now()
	if err := o.validateCut(); err != nil {
		return nil, fmt.Errorf("batch.MapPool: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	r := &Result[Out]{Rows: make([]Out, len(rows)), Batches: count(len(rows), o.Size)}
	for _, w := range pool.Workers() {
		r.Workers = append(r.Workers, Share{Worker: w.Index})
	}
	var next atomic.Int64
	var mu sync.Mutex
	var first *Error // guarded by mu, as are the shares
	var wg sync.WaitGroup
	for range min(o.limit(len(r.Workers)), r.Batches) {
		wg.Go(func() {
			for ctx.Err() == nil {
				n := int(next.Add(1)) - 1
				if n >= r.Batches {
					return
				}
				from, to := n*o.Size, min((n+1)*o.Size, len(rows))
				out, by, err := call(ctx, pool, rows[from:to], n, from)
				mu.Lock()
				if err != nil {
					if first == nil { // the later ones may fail only because of the cancel
						first = err
					}
					cancel()
				} else {
					copy(r.Rows[from:to], out)
					r.Workers[by].Batches++
					r.Workers[by].Rows += to - from
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if first != nil {
		return nil, first
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.Wall = time.Since(begin)
	return r, nil
}

// call maps one batch, and sees to it that there are as many results as rows.
func call[In, Out any](ctx context.Context, pool *worker.Pool[[]In, []Out], rows []In, n, from int) ([]Out, int, *Error) {
	out, by, err := pool.CallBy(ctx, rows)
	if err == nil && len(out) != len(rows) {
		err = fmt.Errorf("worker %d returned %d rows for %d; a batch actor returns one for each", by, len(out), len(rows))
	}
	if err != nil {
		return nil, by, &Error{Batch: n, First: from, Rows: len(rows), Err: err}
	}
	return out, by, nil
}

func count(rows, size int) int { return (rows + size - 1) / size }
