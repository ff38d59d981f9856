// Package batch maps a dataset over a pool of workers, in batches, and keeps the order.
//
// The actor is one of package worker that takes a slice of rows and returns as many:
//
//	var embed = worker.Define("embed", func(ctx context.Context, a Args) (worker.Actor[[]Row, []RowOut], error) { ... })
//
//	res, err := batch.Map(ctx, rows, embed, args, batch.Options{Size: 25, Workers: 3})
//
// [Map] takes rows in memory and returns all results. [Stream] takes a sequence of any length and yields one batch of
// results after the other, with a bounded number in flight. Both start a pool and close it; [MapPool] and
// [StreamPool] use one that exists, so that models are loaded once for several datasets.
//
// Batches go to whichever worker is free, and the one that has been idle longest is next, so no worker stays idle
// while there are batches to hand out. The first error ends the run; it is an [*Error] that names the batch. A worker
// that dies is not an error unless it dies again in the same batch, see worker.Options.
package batch
