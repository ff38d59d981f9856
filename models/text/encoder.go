package text

import (
	"context"
	"math"

	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Encoder is what a pipeline asks of its model.
type Encoder interface {
	models.Module
	// Encode gives the last hidden states: [tokens, hidden].
	Encode(context.Context, encoder.Batch) (*nn.Tensor, error)
}

// The heads that an encoder may have.
type (
	sequenceHead interface { // [texts, labels]
		Classify(context.Context, encoder.Batch) (*nn.Tensor, error)
	}
	tokenHead interface { // [tokens, labels]; for answers two: start and end
		TokenLogits(context.Context, encoder.Batch) (*nn.Tensor, error)
	}
	maskHead interface { // [rows, vocabulary] of the tokens with these numbers
		MaskLogits(ctx context.Context, b encoder.Batch, rows []int) (*nn.Tensor, error)
	}
)

// static is the StaticEmbedding of sentence-transformers: a vector for each token.
type static struct{ *nn.Embedding }

func (s static) Encode(_ context.Context, b encoder.Batch) (*nn.Tensor, error) {
	if len(b.IDs) == 0 { // a text without a token
		_, dim := s.Size()
		return nn.New([]int{0, dim}, nil)
	}
	ids, err := nn.NewInts([]int{len(b.IDs)}, b.IDs)
	if err != nil {
		return nil, err
	}
	return s.Forward(ids)
}

// size is what a model says of itself: the width of its hidden states and how many tokens it takes; 0 is any number.
func size(m models.Module) (hidden, maxTokens int) {
	switch m := m.(type) {
	case *encoder.Model:
		return m.Sizes().Hidden, m.Sizes().MaxTokens
	case static:
		_, dim := m.Size()
		return dim, 0
	}
	return 0, math.MaxInt
}

// loadEncoder is the model of a pipeline.
func loadEncoder(s models.Source) (Encoder, error) {
	m, err := s.Child(PartModel)
	if err != nil {
		return nil, err
	}
	if e, ok := m.(*nn.Embedding); ok {
		return static{e}, nil
	}
	e, ok := m.(Encoder)
	if !ok {
		return nil, zcerr.New(zcerr.Unsupported, "%s: a text pipeline on a %s is not supported", s.Path(), m.Spec().Kind)
	}
	return e, nil
}
