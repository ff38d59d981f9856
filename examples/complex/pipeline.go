package main

import (
	"fmt"

	"github.com/zcstore/zcstore/models/nn"
)

// Pipeline has models in maps and in a slice. They are found at any depth; Labels and Options are copied into each worker.
type Pipeline struct {
	Preprocessor map[string]*nn.Sequential // "text", "image"
	Encoders     map[string]*nn.Sequential
	Decoders     []*nn.Sequential
	Labels       []string // of the decoders
	Options      Options
}

// Options are plain values.
type Options struct {
	Normalize bool
	Top       int
	Scale     float64
	Note      *string
}

// Forward adds the encoded inputs and gives what each decoder makes of the sum.
func (p *Pipeline) Forward(inputs map[string]*nn.Tensor) ([]*nn.Tensor, error) {
	var sum *nn.Tensor
	for _, name := range []string{"text", "image"} {
		x, err := p.Preprocessor[name].Forward(inputs[name])
		if err == nil {
			x, err = p.Encoders[name].Forward(x)
		}
		if err == nil && sum != nil {
			x, err = sum.Add(x)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		sum = x
	}
	outputs := make([]*nn.Tensor, len(p.Decoders))
	for i, d := range p.Decoders {
		var err error
		if outputs[i], err = d.Forward(sum); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Labels[i], err)
		}
	}
	return outputs, nil
}
