package main

import (
	"errors"

	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
	"github.com/zcstore/zcstore/test/golden"
)

// trained gives the pipeline with the weights that PyTorch had, 500 rows, and what PyTorch made of them.
func trained() (p *EncoderDecoder, rows, want [][]float32, err error) {
	p = &EncoderDecoder{
		Encoder:     nn.NewSequential(nn.NewLinear(128, 96), nn.NewReLU(), nn.NewLinear(96, 64), nn.NewReLU()),
		Decoder:     nn.NewSequential(nn.NewLinear(64, 96), nn.NewReLU(), nn.NewLinear(96, 10)),
		Temperature: 1,
	}
	weights, err := golden.Read("tutorial/pipeline.safetensors")
	if err != nil {
		return nil, nil, nil, err
	}
	find := func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }
	err = errors.Join(
		nn.LoadStateDict(p.Encoder, "encoder.network.", find),
		nn.LoadStateDict(p.Decoder, "decoder.network.", find))
	if err != nil {
		return nil, nil, nil, err
	}
	data, err := golden.Read("tutorial/golden.safetensors")
	if err != nil {
		return nil, nil, nil, err
	}
	if rows, err = golden.Rows(data["input"]); err != nil {
		return nil, nil, nil, err
	}
	want, err = golden.Rows(data["output.temperature_1.0"])
	return p, rows, want, err
}
