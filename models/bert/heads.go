package bert

import (
	"context"
	"fmt"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

// masked is the head of a masked language model: y = norm(act(W h + b)) E^T + c, E being the word embeddings.
type masked struct {
	dense   *gpu.Group // [hidden_size, hidden_size]
	norm    norm
	decoder *gpu.Group // [vocab_size, hidden_size]
}

// masked loads the head. The decoder is the word embeddings' table; checkpoints that repeat it under its own name have the
// same bytes there.
func (l *loader) masked(c *Config) *masked {
	const p = "cls.predictions."
	m := &masked{dense: l.group(c.HiddenSize, c.HiddenSize, p+"transform.dense"), norm: l.norm(p+"transform.LayerNorm", c.HiddenSize)}
	l.used[p+"decoder.weight"], l.used[p+"decoder.bias"] = true, true
	bias := l.weight(p+"bias", c.VocabSize)
	v, _, err := l.src.Tensor(l.prefix+"embeddings.word_embeddings.weight", tensor.Shape{c.VocabSize, c.HiddenSize})
	if err != nil || bias == nil {
		return m // reported already
	}
	table, err := l.dev.Import(v, tensor.Linear)
	if err == nil {
		m.decoder, err = gpu.NewGroup([]*gpu.Weight{table}, []*gpu.Weight{bias})
	}
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load the decoder on the word embeddings: %w", err))
	}
	return m
}

// TokenLogits gives the logits of each token: [tokens, labels], or of a model for question answering [tokens, 2], where an
// answer begins and where it ends.
func (m *Model) TokenLogits(ctx context.Context, b Batch) (*nn.Tensor, error) {
	if m.tokens == nil {
		return nil, fmt.Errorf("bert: the checkpoint has no head over tokens (BertForTokenClassification, BertForQuestionAnswering): %w", gpu.ErrUnsupported)
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix {
		out := p.s.F32(len(b.IDs), m.tokens.N())
		p.s.Linear(out, p.h, m.tokens, gpu.Epilogue{})
		return out
	})
}

// MaskLogits gives the logits over the vocabulary of the tokens with these numbers: [len(rows), vocab_size].
func (m *Model) MaskLogits(ctx context.Context, b Batch, rows []int) (*nn.Tensor, error) {
	if m.masked == nil {
		return nil, fmt.Errorf("bert: the checkpoint has no language model (BertForMaskedLM): %w", gpu.ErrUnsupported)
	}
	at := make([]int32, len(rows))
	for i, r := range rows {
		if r < 0 || r >= len(b.IDs) {
			return nil, &BatchError{-1, fmt.Sprintf("row %d of %d tokens", r, len(b.IDs))}
		}
		at[i] = int32(r)
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix {
		s, h := p.s, &m.masked.norm
		ids := s.I32(len(at))
		s.UploadInts(ids, at)
		x, y := s.F32(len(at), m.config.HiddenSize), s.F32(len(at), m.config.HiddenSize)
		s.Pick(x, p.h, ids)
		s.Linear(y, x, m.masked.dense, gpu.Epilogue{Act: m.act})
		s.LayerNorm(y, y, gpu.Matrix{}, h.weight, h.bias, float32(m.config.LayerNormEps))
		out := s.F32(len(at), m.config.VocabSize)
		s.Linear(out, y, m.masked.decoder, gpu.Epilogue{})
		return out
	})
}
