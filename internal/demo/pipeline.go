package demo

import (
	"math"

	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
	"github.com/zcstore/zcstore/test/golden"
)

// EncoderDecoder is the tutorial's pipeline: two models that are shared, and a number that each worker copies.
type EncoderDecoder struct {
	Encoder     *nn.Sequential
	Decoder     *nn.Sequential
	Temperature float32
}

// Forward gives the logits [rows, 10] of inputs [rows, 128].
func (p *EncoderDecoder) Forward(x *nn.Tensor) (*nn.Tensor, error) {
	latent, err := p.Encoder.Forward(x)
	if err != nil {
		return nil, err
	}
	out, err := p.Decoder.Forward(latent)
	if err != nil {
		return nil, err
	}
	return out.Div(p.Temperature)
}

// The tutorial's sizes.
const (
	inputs, outputs            = 128, 10
	tutorialWidth, tutorialLat = 96, 64
)

// layers builds the pipeline with hidden layers of the given widths; options say where their weights come from.
func layers(width, latent int, opts ...func(seed uint64) nn.Option) *EncoderDecoder {
	linear := func(in, out int, seed uint64) *nn.Linear {
		var o []nn.Option
		for _, f := range opts {
			o = append(o, f(seed))
		}
		return nn.NewLinear(in, out, o...)
	}
	return &EncoderDecoder{
		Encoder:     nn.NewSequential(linear(inputs, width, 1), nn.NewReLU(), linear(width, latent, 2), nn.NewReLU()),
		Decoder:     nn.NewSequential(linear(latent, width, 3), nn.NewReLU(), linear(width, outputs, 4)),
		Temperature: 1,
	}
}

// Tutorial is the pipeline with the weights that PyTorch had, on the heap.
func Tutorial() (*EncoderDecoder, error) {
	weights, err := golden.Read("tutorial/pipeline.safetensors")
	if err != nil {
		return nil, err
	}
	p := layers(tutorialWidth, tutorialLat)
	find := func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }
	if err := nn.LoadStateDict(p.Encoder, "encoder.network.", find); err != nil {
		return nil, err
	}
	return p, nn.LoadStateDict(p.Decoder, "decoder.network.", find)
}

// Wide is the same pipeline with layers so wide that its weights have about the given number of bytes, seeded, on the heap.
func Wide(bytes int) *EncoderDecoder {
	// 4 bytes times (128+10) w + 2 w l, with l = 2w/3 as in the tutorial.
	w := (-138 + math.Sqrt(138*138+4*(4.0/3)*float64(bytes)/4)) / (2 * 4.0 / 3)
	width := max(3, int(w)/3*3)
	return layers(width, width/3*2, nn.Seed)
}

// build is the pipeline of a run: the tutorial's for size 0.
func build(size int) (*EncoderDecoder, error) {
	if size == 0 {
		return Tutorial()
	}
	return Wide(size), nil
}
