// Command stateful stores a pipeline with state around its model (pipeline.go): the weights are shared, and each of three
// workers has a preprocessor, a config and a counter of its own.
package main

import (
	"context"
	"fmt"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/examples/internal/show"
)

// Answer is what a worker says to one batch.
type Answer struct {
	Output [][]float32
	Above  [][]bool
	Calls  int // of this worker, so far
}

// Inference lives in each worker process. It loads the pipeline once, and then answers batches of rows.
type Inference struct {
	store *client.Client
	model Pipeline
}

var inference = worker.Define("stateful", func(ctx context.Context, ref string) (worker.Actor[[][]float32, Answer], error) {
	w := &Inference{}
	var err error
	if w.store, err = client.Dial(ctx, client.Options{}); err == nil { // $ZCSTORE_SOCKET, or the default socket
		_, err = pipeline.Load(ctx, w.store, ref, &w.model, pipeline.LoadOptions{})
	}
	return w, err
})

func (w *Inference) Call(_ context.Context, rows [][]float32) (Answer, error) {
	output, above, err := w.model.Forward(rows)
	return Answer{Output: output, Above: above, Calls: w.model.Stats.Calls}, err
}

func (w *Inference) Close() error { return w.store.Close() }

func main() {
	worker.Main() // a worker is this program, run again: it stays in here
	show.Exit(run(context.Background()))
}

func run(ctx context.Context) error {
	model, batches, err := trained()
	if err != nil {
		return err
	}
	store, err := client.Dial(ctx, client.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	report, err := pipeline.Put(ctx, store, "stateful", model, pipeline.PutOptions{})
	if err != nil {
		return err
	}
	show.Report(report)
	pool, err := worker.Start(ctx, inference, report.Ref, worker.Options{Workers: 3})
	if err != nil {
		return err
	}
	defer pool.Close()
	samples, largest := 0, 0.0
	for n, b := range batches {
		answers, err := pool.Each(ctx, b.rows) // the same batch once in every worker
		if err != nil {
			return err
		}
		for i, a := range answers {
			if a.Calls != b.calls || fmt.Sprint(a.Above) != fmt.Sprint(b.above) {
				return fmt.Errorf("worker %d, batch %d: call %d, above %v; want %d, %v", i, n, a.Calls, a.Above, b.calls, b.above)
			}
			largest = max(largest, show.Largest(a.Output, b.want))
		}
		samples += len(b.rows)
		fmt.Printf("Batch of %d: each worker has counted %d calls of its own\n", len(b.rows), answers[0].Calls)
	}
	fmt.Printf("Processed %d samples in each of 3 workers\n", samples)
	return show.Difference(largest)
}
