// Command complex stores a pipeline of dicts and lists of models, with plain values beside them (pipeline.go), and takes
// rows of two inputs through it to three outputs.
package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/batch"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/examples/internal/show"
	"github.com/zcstore/zcstore/models/nn"
)

// Row is one input, and Answer what each decoder makes of it.
type (
	Row    struct{ Text, Image []float32 }
	Answer [][]float32
)

// Inference lives in each worker process. It loads the pipeline once, and then answers batches of rows.
type Inference struct {
	store *client.Client
	model Pipeline
}

var inference = worker.Define("complex", func(ctx context.Context, ref string) (worker.Actor[[]Row, []Answer], error) {
	w := &Inference{}
	var err error
	if w.store, err = client.Dial(ctx, client.Options{}); err == nil { // $ZCSTORE_SOCKET, or the default socket
		_, err = pipeline.Load(ctx, w.store, ref, &w.model, pipeline.LoadOptions{})
	}
	return w, err
})

func (w *Inference) Call(_ context.Context, rows []Row) ([]Answer, error) {
	var texts, images [][]float32
	for _, r := range rows {
		texts, images = append(texts, r.Text), append(images, r.Image)
	}
	text, err1 := nn.FromRows(texts)
	image, err2 := nn.FromRows(images)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	outputs, err := w.model.Forward(map[string]*nn.Tensor{"text": text, "image": image})
	if err != nil {
		return nil, err
	}
	answers := make([]Answer, len(rows))
	for _, y := range outputs {
		values, err := y.Float32s()
		if err != nil {
			return nil, err
		}
		width := y.Shape()[1]
		for i := range answers {
			answers[i] = append(answers[i], values[i*width:(i+1)*width])
		}
	}
	return answers, nil
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
	report, err := pipeline.Put(ctx, store, "complex", model, pipeline.PutOptions{})
	if err != nil {
		return err
	}
	show.Report(report)
	res, err := batch.Map(ctx, rows, inference, report.Ref, batch.Options{Size: 8, Workers: 3})
	if err != nil {
		return err
	}
	fmt.Printf("Processed %d samples\n", len(res.Rows))
	largest := 0.0
	for i, label := range model.Labels {
		fmt.Printf("First prediction shape of %s: [%d]\n", label, len(res.Rows[0][i]))
		for k, answer := range res.Rows {
			largest = max(largest, show.Largest(answer[i:i+1], want[i][k:k+1]))
		}
	}
	return show.Difference(largest)
}
