package main

import "github.com/zcstore/zcstore/models/nn"

// Pipeline is a shared model with state around it. Only Model is shared: each worker has the rest for itself, as it was
// stored, and changes its own.
type Pipeline struct {
	Model        *nn.Sequential
	Preprocessor Standardize
	Config       Config
	Stats        Stats
}

// Standardize is (x - Mean) / Std, cut to Clip on both sides.
type Standardize struct {
	Mean, Std []float32
	Clip      float32
}

// Config says from which probability on an output counts.
type Config struct{ Threshold float32 }

// Stats counts.
type Stats struct{ Calls int }

// Forward gives the outputs and which of them are above the threshold.
func (p *Pipeline) Forward(rows [][]float32) (output [][]float32, above [][]bool, err error) {
	p.Stats.Calls++
	x, err := p.Preprocessor.apply(rows)
	if err != nil {
		return nil, nil, err
	}
	y, err := p.Model.Forward(x)
	if err != nil {
		return nil, nil, err
	}
	probability, err := y.Sigmoid()
	if err != nil {
		return nil, nil, err
	}
	values, err := y.Float32s()
	if err != nil {
		return nil, nil, err
	}
	probabilities, err := probability.Float32s()
	if err != nil {
		return nil, nil, err
	}
	width := y.Shape()[1]
	for at := 0; at < len(values); at += width {
		row := make([]bool, width)
		for i, v := range probabilities[at : at+width] {
			row[i] = v > p.Config.Threshold
		}
		output, above = append(output, values[at:at+width]), append(above, row)
	}
	return output, above, nil
}

func (s *Standardize) apply(rows [][]float32) (*nn.Tensor, error) {
	x, err := nn.FromRows(rows)
	if err != nil {
		return nil, err
	}
	mean, err := nn.FromRows([][]float32{s.Mean})
	if err != nil {
		return nil, err
	}
	std, err := nn.FromRows([][]float32{s.Std})
	if err != nil {
		return nil, err
	}
	if x, err = x.Sub(mean); err == nil {
		x, err = x.Quo(std)
	}
	if err != nil {
		return nil, err
	}
	return x.Clamp(-s.Clip, s.Clip)
}
