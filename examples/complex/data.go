package main

import (
	"errors"
	"fmt"

	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
	"github.com/zcstore/zcstore/test/golden"
)

// blank is the pipeline before its weights: the tree of test/golden/complex/manifest.json.
func blank() *Pipeline {
	return &Pipeline{
		Preprocessor: map[string]*nn.Sequential{
			"text":  nn.NewSequential(nn.NewLinear(32, 40), nn.NewLayerNorm(40)),
			"image": nn.NewSequential(nn.NewLinear(48, 56), nn.NewLayerNormEps(56, 1e-6)),
		},
		Encoders: map[string]*nn.Sequential{
			"text":  nn.NewSequential(nn.NewLinear(40, 96), nn.NewGELU(), nn.NewLinear(96, 64)),
			"image": nn.NewSequential(nn.NewLinear(56, 80), nn.NewTanh(), nn.NewLinear(80, 64)),
		},
		Decoders: []*nn.Sequential{
			nn.NewSequential(nn.NewLinear(64, 32), nn.NewReLU(), nn.NewLinear(32, 10)),
			nn.NewSequential(nn.NewLinear(64, 49), nn.NewSiLU(), nn.NewLinear(49, 5)),
			nn.NewSequential(nn.NewLinear(64, 100), &nn.GELU{Approximate: "tanh"}, nn.NewLinear(100, 17)),
		},
		Labels:  []string{"topic", "tone", "tag"},
		Options: Options{Normalize: true, Top: 3, Scale: 0.25},
	}
}

// trained gives the pipeline with the weights that PyTorch had, 64 rows, and what PyTorch's decoders made of them.
func trained() (p *Pipeline, rows []Row, want [3][][]float32, err error) {
	weights, err := golden.Read("complex/pipeline.safetensors")
	if err != nil {
		return nil, nil, want, err
	}
	find := func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }
	p = blank()
	var errs []error
	for name, m := range p.Preprocessor {
		errs = append(errs, nn.LoadStateDict(m, "preprocessor."+name+".", find))
	}
	for name, m := range p.Encoders {
		errs = append(errs, nn.LoadStateDict(m, "encoders."+name+".", find))
	}
	for i, m := range p.Decoders {
		errs = append(errs, nn.LoadStateDict(m, fmt.Sprintf("decoders.%d.", i), find))
	}
	data, err := golden.Read("complex/golden.safetensors")
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, nil, want, err
	}
	texts, err1 := golden.Rows(data["input.text"])
	images, err2 := golden.Rows(data["input.image"])
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, want, err
	}
	for i := range texts {
		rows = append(rows, Row{Text: texts[i], Image: images[i]})
	}
	for i := range want {
		if want[i], err = golden.Rows(data[fmt.Sprintf("output.%d", i)]); err != nil {
			return nil, nil, want, err
		}
	}
	return p, rows, want, nil
}
