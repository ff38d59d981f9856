package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/test/golden"
)

// job is what a worker is started with.
type job struct {
	Socket       string
	EncDec, Text string // references
	Private      bool   // keep a private copy of every weight, the way it is without a store
	Size         int    // of the private copy's pipeline
}

// item is one row of either pipeline.
type item struct {
	X    worker.Floats // [128]
	Text string
}

// answer is what a worker makes of an item.
type answer struct {
	Y     worker.Floats // [10]
	Label string
	Score float32
}

// resident is a worker with both pipelines loaded.
type resident struct {
	encdec EncoderDecoder
	text   *text.Pipeline // nil in a private worker
	close  []func() error
}

var worker3 = worker.Define("zcctl.demo", func(ctx context.Context, j job) (worker.Actor[[]item, []answer], error) {
	r := &resident{}
	if j.Private {
		p, err := build(j.Size)
		if err != nil {
			return nil, err
		}
		r.encdec = *p
		return r, nil
	}
	c, err := client.Dial(ctx, client.Options{Socket: j.Socket})
	if err != nil {
		return nil, err
	}
	r.close = append(r.close, c.Close)
	if _, err := pipeline.Load(ctx, c, j.EncDec, &r.encdec, pipeline.LoadOptions{}); err != nil {
		return nil, err
	}
	r.text, err = text.Open(ctx, c, j.Text)
	return r, err
})

// Call computes a batch: all of one pipeline.
func (r *resident) Call(ctx context.Context, batch []item) ([]answer, error) {
	if len(batch) > 0 && len(batch[0].X) > 0 {
		return r.decode(batch)
	}
	if r.text == nil {
		return nil, errors.New("a private worker has no text pipeline")
	}
	texts := make([]string, len(batch))
	for i, it := range batch {
		texts[i] = it.Text
	}
	got, err := r.text.Classify(ctx, texts)
	if err != nil {
		return nil, err
	}
	out := make([]answer, len(got))
	for i, g := range got {
		out[i] = answer{Label: g.Label, Score: g.Score}
	}
	return out, nil
}

func (r *resident) decode(batch []item) ([]answer, error) {
	rows := make([][]float32, len(batch))
	for i, it := range batch {
		rows[i] = it.X
	}
	x, err := nn.FromRows(rows)
	if err != nil {
		return nil, err
	}
	y, err := r.encdec.Forward(x)
	if err != nil {
		return nil, err
	}
	flat, err := y.Float32s()
	if err != nil {
		return nil, err
	}
	out := make([]answer, len(batch))
	for i := range out {
		out[i].Y = flat[i*outputs : (i+1)*outputs]
	}
	return out, nil
}

// Close ends the worker's leases.
func (r *resident) Close() error {
	var errs []error
	for _, f := range r.close {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// unpack writes the embedded model directory to disk, where an importer finds it as a user's would be.
func unpack(dir string) (string, error) {
	const model = "intents"
	files, err := fs.ReadDir(golden.Files, model)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, model)
	if err := os.Mkdir(to, 0o700); err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := fs.ReadFile(golden.Files, path.Join(model, f.Name()))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(to, f.Name()), b, 0o600); err != nil {
			return "", fmt.Errorf("unpack the sample: %w", err)
		}
	}
	return to, nil
}
