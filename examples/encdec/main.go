// Command encdec is the tutorial: an encoder and a decoder whose weights lie once in shared memory, and three worker
// processes that take 500 rows through them.
package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/batch"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/examples/internal/show"
	"github.com/zcstore/zcstore/models/nn"
)

// EncoderDecoder is a pipeline: its models are shared by all workers, its other fields are copied into each.
type EncoderDecoder struct {
	Encoder     *nn.Sequential
	Decoder     *nn.Sequential
	Temperature float32
}

// Forward is decoder(encoder(x)) / temperature.
func (p *EncoderDecoder) Forward(x *nn.Tensor) (*nn.Tensor, error) {
	latent, err := p.Encoder.Forward(x)
	if err != nil {
		return nil, err
	}
	y, err := p.Decoder.Forward(latent)
	if err != nil {
		return nil, err
	}
	return y.Div(p.Temperature)
}

// Inference lives in each worker process. It loads the pipeline once, and then answers batches of rows.
type Inference struct {
	store *client.Client
	model EncoderDecoder
}

var inference = worker.Define("encdec", func(ctx context.Context, ref string) (worker.Actor[[][]float32, [][]float32], error) {
	w := &Inference{}
	var err error
	if w.store, err = client.Dial(ctx, client.Options{}); err == nil { // $ZCSTORE_SOCKET, or the default socket
		_, err = pipeline.Load(ctx, w.store, ref, &w.model, pipeline.LoadOptions{})
	}
	return w, err
})

func (w *Inference) Call(_ context.Context, rows [][]float32) ([][]float32, error) {
	x, err := nn.FromRows(rows)
	if err != nil {
		return nil, err
	}
	y, err := w.model.Forward(x)
	if err != nil {
		return nil, err
	}
	values, err := y.Float32s()
	return slices.Collect(slices.Chunk(values, y.Shape()[1])), err
}

func (w *Inference) Close() error { return w.store.Close() }

func main() {
	worker.Main() // a worker is this program, run again: it stays in here
	show.Exit(run(context.Background()))
}

func run(ctx context.Context) error {
	model, rows, want, err := trained()
	if err != nil {
		return err
	}
	store, err := client.Dial(ctx, client.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	report, err := pipeline.Put(ctx, store, "encdec", model, pipeline.PutOptions{})
	if err != nil {
		return err
	}
	show.Report(report)
	res, err := batch.Map(ctx, rows, inference, report.Ref, batch.Options{Size: 25, Workers: 3})
	if err != nil {
		return err
	}
	fmt.Printf("Processed %d samples\n", len(res.Rows))
	fmt.Printf("First prediction shape: [%d]\n", len(res.Rows[0]))
	return show.Difference(show.Largest(res.Rows, want))
}
