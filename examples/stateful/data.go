package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
	"github.com/zcstore/zcstore/test/golden"
)

// golds is one batch, and what PyTorch made of it.
type golds struct {
	rows, want [][]float32
	above      [][]bool
	calls      int
}

// trained gives the pipeline with the weights and values that PyTorch had, and three batches.
func trained() (*Pipeline, []golds, error) {
	file, err := golden.Files.ReadFile("stateful/manifest.json")
	if err != nil {
		return nil, nil, err
	}
	var tree struct {
		Fields struct {
			Preprocessor struct{ Value Standardize }
			Config       struct{ Value Config }
			Stats        struct{ Value Stats }
		}
	}
	if err := json.Unmarshal(file, &tree); err != nil {
		return nil, nil, err
	}
	p := &Pipeline{
		Model:        nn.NewSequential(nn.NewLinear(24, 40), nn.NewLayerNorm(40), nn.NewReLU(), nn.NewLinear(40, 6)),
		Preprocessor: tree.Fields.Preprocessor.Value, Config: tree.Fields.Config.Value, Stats: tree.Fields.Stats.Value,
	}
	weights, err := golden.Read("stateful/pipeline.safetensors")
	if err != nil {
		return nil, nil, err
	}
	if err := nn.LoadStateDict(p.Model, "model.", func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }); err != nil {
		return nil, nil, err
	}
	data, err := golden.Read("stateful/golden.safetensors")
	if err != nil {
		return nil, nil, err
	}
	batches := make([]golds, 3)
	for i := range batches {
		b := &batches[i]
		var err1, err2, err3 error
		b.rows, err1 = golden.Rows(data[fmt.Sprintf("input.%d", i)])
		b.want, err2 = golden.Rows(data[fmt.Sprintf("output.%d", i)])
		calls, err3 := data[fmt.Sprintf("calls.%d", i)].Int64s()
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, nil, err
		}
		b.calls = int(calls[0])
		above := data[fmt.Sprintf("above.%d", i)]
		for at := 0; at < len(above.Data); at += above.Shape[1] {
			row := make([]bool, above.Shape[1])
			for k := range row {
				row[k] = above.Data[at+k] == 1
			}
			b.above = append(b.above, row)
		}
	}
	return p, batches, nil
}
