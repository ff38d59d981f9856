// Command textclass is the tutorial's text pipeline: three worker processes classify 300 texts with its shared models.
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
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/text"
)

// TextClassifier is a pipeline: its parts with weights, and its tokenizer, are shared by all workers.
type TextClassifier struct {
	Tokenizer *text.Tokenizer
	Encoder   *encoder.Model
	Head      *nn.Sequential // a linear layer [labels, hidden], and softmax
}

// Call gives the probability of every label for each text.
func (p *TextClassifier) Call(ctx context.Context, texts []string) ([][]float32, error) {
	tokens, err := p.Tokenizer.Batch(texts)
	if err != nil {
		return nil, err
	}
	labels, err := p.Encoder.Pooled(ctx, tokens) // [texts, hidden]
	if err == nil {
		labels, err = p.Head.Forward(labels) // [texts, labels]
	}
	if err != nil {
		return nil, err
	}
	values, err := labels.Float32s()
	return slices.Collect(slices.Chunk(values, labels.Shape()[1])), err
}

// Worker lives in each worker process. It loads the pipeline once, and then answers batches of texts.
type Worker struct {
	*client.Client // whose Close is the worker's
	TextClassifier
}

var classify = worker.Define("textclass", func(ctx context.Context, ref string) (_ worker.Actor[[]string, [][]float32], err error) {
	w := &Worker{}
	if w.Client, err = client.Dial(ctx, client.Options{}); err == nil { // $ZCSTORE_SOCKET, or the default socket
		_, err = pipeline.Load(ctx, w.Client, ref, &w.TextClassifier, pipeline.LoadOptions{})
	}
	return w, err
})

func main() {
	worker.Main() // a worker is this program, run again: it stays in here
	show.Exit(run(context.Background()))
}

func run(ctx context.Context) error {
	store, err := client.Dial(ctx, client.Options{})
	if err != nil {
		return err
	}
	defer store.Close()
	model, texts, want := trained()
	report, err := pipeline.Put(ctx, store, "textclass", model, pipeline.PutOptions{})
	if err != nil {
		return err
	}
	show.Report(report)
	res, err := batch.Map(ctx, texts, classify, report.Ref, batch.Options{Size: 25, Workers: 3})
	if err != nil {
		return err
	}
	fmt.Printf("Classified %d texts\n", len(res.Rows))
	return show.Difference(show.Largest(res.Rows, want))
}
