// Package encoder runs transformer encoders: hidden states, sentence embeddings, and the heads on them.
//
//	c, err := encoder.ParseConfig(file)      // config.json; its model_type says which family
//	m, err := encoder.Load(dev, c, views)
//	b := encoder.NewBatch(ids)               // texts of any length, no padding
//	hidden, err := m.Encode(ctx, b)          // [tokens, hidden size]
//	err = m.Embed(ctx, vectors, b)           // one normalised mean for each text
//
// Texts of a batch lie one behind the other, so that a batch costs what its tokens cost. What a text gets does not
// depend on the others in its batch, to the last bit.
//
// A family is a file: its config with the checkpoint's own keys, its names, its heads. Most are the transformer of
// transformer.go with other names. Each does what the class of that name in Hugging Face transformers does.
package encoder

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Model is a loaded encoder. Immutable and safe for concurrent use.
type Model struct {
	config *Config
	sizes  Sizes
	task   Task
	dev    gpu.Device
	params []models.Param

	together int // see Together

	net    net
	pooler *top // or nil
	head   *top // or nil
}

// net is what makes hidden states of tokens.
type net interface {
	// embed launches the states of all tokens before the first layer, into p.h.
	embed(p *pass)
	// layer launches one layer on a part of the texts.
	layer(p *pass, i int, t part)
	// finish launches what comes behind the last layer.
	finish(p *pass)
}

// norm is a layer norm; without a bias or without both.
type norm struct{ weight, bias *gpu.Weight }

// Config is the model's config.
func (m *Model) Config() *Config { return m.config }

// Sizes are the model's.
func (m *Model) Sizes() Sizes { return m.sizes }

// Task is what the model's head is for.
func (m *Model) Task() Task { return m.task }

// Labels is how many values the head gives for a text or token; 0 without one.
func (m *Model) Labels() int {
	if m.head == nil {
		return 0
	}
	return m.head.width()
}

// Device is where the model runs.
func (m *Model) Device() gpu.Device { return m.dev }

// Spec implements models.Module. Names are those of the checkpoint.
func (m *Model) Spec() models.Spec {
	return models.Spec{Kind: m.config.family.name, Config: m.config, Params: m.params}
}

// pass is one forward pass: the stream, the batch on the device, and scratch for all layers.
type pass struct {
	m    *Model
	s    *gpu.Stream
	b    Batch
	seqs gpu.Ragged
	h    gpu.Matrix // [tokens, hidden size], the states so far

	parts  []part
	starts []int // of the texts in each part, unchanged until Sync

	pos, zeros, first []int32 // what is uploaded, unchanged until Sync
	tables            [3]gpu.Lookup
	near              nearness
}

// passes are those that nobody uses, so that a forward pass allocates nothing.
var passes = sync.Pool{New: func() any { return new(pass) }}

// close waits for what is launched and gives the stream back, and the pass.
func (p *pass) close() {
	p.s.Close()
	p.m, p.s, p.b, p.seqs, p.h, p.tables = nil, nil, Batch{}, gpu.Ragged{}, gpu.Matrix{}, [3]gpu.Lookup{}
	p.near.forget()
	passes.Put(p)
}

// begin checks a batch and takes a stream; the caller closes the pass.
func (m *Model) begin(b *Batch) (*pass, error) {
	if err := m.check(b); err != nil {
		return nil, err
	}
	s, err := m.dev.NewStream()
	if err != nil {
		return nil, err
	}
	p := passes.Get().(*pass)
	p.m, p.s, p.b = m, s, *b
	return p, nil
}

// run launches the encoder. keep, if not nil, sees the states after the embeddings (0) and after each layer.
func (p *pass) run(ctx context.Context, keep func(i int, h gpu.Matrix) error) error {
	m, s, b := p.m, p.s, &p.b
	p.seqs = s.Ragged(b.Starts, b.Mask)
	p.h = s.F32(len(b.IDs), m.sizes.Hidden)
	m.net.embed(p)
	p.divide()
	for i := 0; ; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep != nil {
			if err := keep(i, p.h); err != nil {
				return err
			}
		}
		if i == m.sizes.Layers {
			m.net.finish(p)
			return s.Err()
		}
		for _, t := range p.parts {
			m.net.layer(p, i, t)
		}
	}
}

// part is texts that go through a layer together.
type part struct {
	from int // token
	seqs gpu.Ragged
}

// Together is about how many tokens go through a layer together: enough to keep the device's threads busy, and few enough that
// what each of them works on stays in its cache, and memory small whatever the batch.
func (m *Model) Together() int { return m.together }

// divide makes parts of about the same size of the texts.
func (p *pass) divide() {
	b := &p.b
	together := p.m.Together()
	n := (len(b.IDs) + together - 1) / together
	if n <= 1 {
		p.parts = append(p.parts[:0], part{0, p.seqs})
		return
	}
	p.parts = p.parts[:0]
	p.starts = slices.Grow(p.starts[:0], b.Len()+n)
	size := (len(b.IDs) + n - 1) / n
	for first := 0; first < b.Len(); {
		from, at := b.Starts[first], len(p.starts)
		last := first
		for last < b.Len() && (last == first || b.Starts[last+1]-from <= size) {
			p.starts = append(p.starts, b.Starts[last]-from)
			last++
		}
		to := b.Starts[last]
		p.starts = append(p.starts, to-from)
		var mask []int32
		if b.Mask != nil {
			mask = b.Mask[from:to]
		}
		p.parts = append(p.parts, part{from, p.s.Ragged(p.starts[at:], mask)})
		first = last
	}
}

// states are those of a part.
func (p *pass) states(t part) gpu.Matrix { return p.h.Slice(t.from, t.seqs.Tokens) }

// positions are the rows of the table of positions. Where padding has one of its own, the others are counted from behind it.
func (p *pass) positions() []int32 {
	b := &p.b
	if b.Positions != nil {
		return b.Positions
	}
	p.pos = slices.Grow(p.pos[:0], len(b.IDs))[:len(b.IDs)]
	pad := int32(p.m.sizes.Pad)
	for i := range b.Len() {
		next := pad + 1
		for j := b.Starts[i]; j < b.Starts[i+1]; j++ {
			if pad >= 0 && b.IDs[j] == pad {
				p.pos[j] = pad
				continue
			}
			p.pos[j] = next
			next++
		}
	}
	return p.pos
}

func (p *pass) kinds() []int32 {
	b := &p.b
	if b.TypeIDs != nil {
		return b.TypeIDs
	}
	if len(p.zeros) < len(b.IDs) {
		p.zeros = make([]int32, len(b.IDs)) // and never written
	}
	return p.zeros[:len(b.IDs)]
}

// texts launches one row for each text: the mean of its states, or those of its first token.
func (p *pass) texts(mean bool) gpu.Matrix {
	s, b := p.s, &p.b
	out := s.F32(b.Len(), p.m.sizes.Hidden)
	if mean {
		s.MeanPool(out, p.h, p.seqs)
		return out
	}
	p.first = slices.Grow(p.first[:0], b.Len())[:b.Len()]
	for i := range p.first {
		p.first[i] = int32(b.Starts[i])
	}
	rows := s.I32(b.Len())
	s.UploadInts(rows, p.first)
	s.Pick(out, p.h, rows)
	return out
}

// Encode gives the last hidden states of all tokens: [tokens, hidden size]. ctx is looked at between layers.
func (m *Model) Encode(ctx context.Context, b Batch) (*nn.Tensor, error) {
	return m.result(ctx, b, func(p *pass) gpu.Matrix { return p.h })
}

// lacks says that the checkpoint has not what was asked for.
func (m *Model) lacks(what string) error {
	return fmt.Errorf("%s: the checkpoint has no %s: %w", m.config.family.name, what, gpu.ErrUnsupported)
}

// Pooled gives the pooler's output for each text: [texts, hidden size].
func (m *Model) Pooled(ctx context.Context, b Batch) (*nn.Tensor, error) {
	if m.pooler == nil {
		return nil, m.lacks("pooler")
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix { return m.pooler.run(p.s, p.texts(m.pooler.mean)) })
}

// Classify gives the logits for each text: [texts, labels].
func (m *Model) Classify(ctx context.Context, b Batch) (*nn.Tensor, error) {
	if m.task != Classify {
		return nil, m.lacks("classifier (" + m.config.family.class + "ForSequenceClassification)")
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix { return m.head.run(p.s, p.texts(m.head.mean)) })
}

// TokenLogits gives the logits of each token: [tokens, labels]; of a model for question answering [tokens, 2], where an answer
// begins and where it ends; of one that detects replaced tokens [tokens, 1].
func (m *Model) TokenLogits(ctx context.Context, b Batch) (*nn.Tensor, error) {
	if m.task != Tag && m.task != Answer && m.task != Detect {
		c := m.config.family.class
		return nil, m.lacks(fmt.Sprintf("head over tokens (%sForTokenClassification, %sForQuestionAnswering)", c, c))
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix { return m.head.run(p.s, p.h) })
}

// MaskLogits gives the logits over the vocabulary of the tokens with these numbers: [len(rows), vocab size].
func (m *Model) MaskLogits(ctx context.Context, b Batch, rows []int) (*nn.Tensor, error) {
	if m.task != FillMask {
		return nil, m.lacks("language model (" + m.config.family.class + "ForMaskedLM)")
	}
	at := make([]int32, len(rows))
	for i, r := range rows {
		if r < 0 || r >= len(b.IDs) {
			return nil, &BatchError{-1, fmt.Sprintf("row %d of %d tokens", r, len(b.IDs))}
		}
		at[i] = int32(r)
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix {
		ids := p.s.I32(len(at))
		p.s.UploadInts(ids, at)
		x := p.s.F32(len(at), m.sizes.Hidden)
		p.s.Pick(x, p.h, ids)
		return m.head.run(p.s, x)
	})
}

// HiddenStates gives the states after the embeddings, and after each layer: one more than there are layers, each [tokens,
// hidden size]. What comes behind the last layer, as ModernBERT's norm, is not in them.
func (m *Model) HiddenStates(ctx context.Context, b Batch) ([]*nn.Tensor, error) {
	p, err := m.begin(&b)
	if err != nil {
		return nil, err
	}
	defer p.close()
	var all []*nn.Tensor
	err = p.run(ctx, func(_ int, h gpu.Matrix) error {
		t, err := nn.Keep(p.s, h, h.Shape())
		all = append(all, t)
		return err
	})
	if serr := p.s.Sync(); err == nil {
		err = serr
	}
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Embed writes for each text the mean of its last hidden states, normalised to length 1, into dst [texts, hidden size].
func (m *Model) Embed(ctx context.Context, dst []float32, b Batch) error {
	return m.into(ctx, dst, &b, b.Len(), func(p *pass) gpu.Matrix {
		mean := p.s.F32(b.Len(), m.sizes.Hidden)
		p.s.MeanPool(mean, p.h, p.seqs)
		p.s.L2Normalize(mean, mean, 1e-12)
		return mean
	})
}

// EncodeInto writes what Encode gives into dst [tokens, hidden size].
func (m *Model) EncodeInto(ctx context.Context, dst []float32, b Batch) error {
	return m.into(ctx, dst, &b, len(b.IDs), func(p *pass) gpu.Matrix { return p.h })
}

// into runs the encoder and what tail launches, and writes what that returns: rows as wide as the states.
func (m *Model) into(ctx context.Context, dst []float32, b *Batch, rows int, tail func(*pass) gpu.Matrix) error {
	if hidden := m.sizes.Hidden; len(dst) != rows*hidden {
		return &BatchError{-1, fmt.Sprintf("room for %d values, the answer is %v", len(dst), tensor.Shape{rows, hidden})}
	}
	p, err := m.begin(b)
	if err != nil {
		return err
	}
	defer p.close()
	if err = p.run(ctx, nil); err == nil {
		p.s.Download(dst, tail(p))
	}
	if serr := p.s.Sync(); err == nil {
		err = serr
	}
	return err
}

// result runs the encoder and what tail launches, and keeps what that returns.
func (m *Model) result(ctx context.Context, b Batch, tail func(*pass) gpu.Matrix) (*nn.Tensor, error) {
	p, err := m.begin(&b)
	if err != nil {
		return nil, err
	}
	defer p.close()
	var t *nn.Tensor
	if err = p.run(ctx, nil); err == nil {
		out := tail(p)
		t, err = nn.Keep(p.s, out, out.Shape())
	}
	if serr := p.s.Sync(); err == nil {
		err = serr
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}
