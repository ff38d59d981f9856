// Package bert runs BERT encoders: sentence embeddings, hidden states and classification.
//
//	m, err := bert.Load(dev, config, views)
//	b := bert.NewBatch(ids)                 // texts of any length, no padding
//	hidden, err := m.Encode(ctx, b)         // [tokens, hidden_size]
//	err = m.Embed(ctx, vectors, b)          // one normalised mean for each text
//
// Texts of a batch lie one behind the other, so that a batch costs what its tokens cost. What a text gets does not
// depend on the others in its batch, to the last bit.
//
// Source: arXiv 1810.04805; as BertModel of Hugging Face transformers.
package bert

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Model is a loaded encoder. Immutable and safe for concurrent use.
type Model struct {
	config Config
	dev    gpu.Device
	act    gpu.Act
	params []models.Param

	word     *gpu.Weight // [vocab_size, hidden_size]
	position *gpu.Weight // [max_position_embeddings, hidden_size]
	kind     *gpu.Weight // [type_vocab_size, hidden_size]
	norm     norm
	layers   []layer

	pooler     *gpu.Group // [hidden_size, hidden_size], or nil
	classifier *gpu.Group // [labels, hidden_size], or nil
	tokens     *gpu.Group // [labels, hidden_size], for each token, or nil
	masked     *masked    // or nil
}

// norm is a layer norm over hidden_size.
type norm struct{ weight, bias *gpu.Weight }

// layer is one block of the encoder.
type layer struct {
	qkv      *gpu.Group // three of [hidden_size, hidden_size]
	attn     *gpu.Group // [hidden_size, hidden_size]
	attnNorm norm
	up       *gpu.Group // [intermediate_size, hidden_size]
	down     *gpu.Group // [hidden_size, intermediate_size]
	norm     norm
}

// head is what stands on the encoder.
type head int

const (
	base head = iota
	classification
	tokenClassification
	questionAnswering
	maskedLM
)

// heads are the values of architectures. Another head is an entry here, its weights in Load, and a method beside Classify.
var heads = map[string]head{"BertModel": base, "BertForSequenceClassification": classification,
	"BertForTokenClassification": tokenClassification, "BertForQuestionAnswering": questionAnswering, "BertForMaskedLM": maskedLM}

func (c *Config) head() (head, error) {
	if len(c.Architectures) == 0 {
		return base, nil
	}
	h, ok := heads[c.Architectures[0]]
	if !ok {
		return 0, &ConfigError{"architectures", c.Architectures[0], fmt.Sprintf("one of %v", slices.Sorted(maps.Keys(heads)))}
	}
	return h, nil
}

// Config is the model's config.
func (m *Model) Config() Config { return m.config }

// Device is where the model runs.
func (m *Model) Device() gpu.Device { return m.dev }

// Spec implements models.Module. Names are those of the checkpoint.
func (m *Model) Spec() models.Spec {
	return models.Spec{Kind: Kind, Config: m.config, Params: m.params}
}

// Batch is texts as token ids, one text behind the other. Text i is the tokens from Starts[i] to Starts[i+1], so that
// Starts begins with 0 and ends with the number of tokens.
type Batch struct {
	IDs       []int32
	Starts    []int
	TypeIDs   []int32 // nil: 0 for all
	Positions []int32 // nil: 0, 1, 2... in each text
	Mask      []int32 // nil: all 1. Tokens with 0 are not attended to, nor do they count in a mean.
}

// NewBatch is the batch of these texts.
func NewBatch(texts [][]int32) Batch {
	b := Batch{Starts: make([]int, 1, len(texts)+1)}
	for _, t := range texts {
		b.IDs = append(b.IDs, t...)
		b.Starts = append(b.Starts, len(b.IDs))
	}
	return b
}

// Len is the number of texts.
func (b *Batch) Len() int { return max(len(b.Starts)-1, 0) }

// BatchError says which text of a batch the model cannot take.
type BatchError struct {
	Text   int // -1: the batch as a whole
	Reason string
}

// ErrorKind is the kind in the words of proto/zcerr.
func (e *BatchError) ErrorKind() string { return "invalid" }

func (e *BatchError) Error() string {
	if e.Text < 0 {
		return "bert: " + e.Reason
	}
	return fmt.Sprintf("bert: text %d: %s", e.Text, e.Reason)
}

// check looks at everything that can be wrong with a batch, before anything is launched.
func (m *Model) check(b *Batch) error {
	whole := func(format string, args ...any) error { return &BatchError{-1, fmt.Sprintf(format, args...)} }
	if len(b.Starts) == 0 || b.Starts[0] != 0 || b.Starts[len(b.Starts)-1] != len(b.IDs) {
		return whole("starts %v do not go from 0 to the number of tokens, %d", ends(b.Starts), len(b.IDs))
	}
	for _, s := range []struct {
		name string
		ids  []int32
	}{{"type ids", b.TypeIDs}, {"positions", b.Positions}, {"mask", b.Mask}} {
		if s.ids != nil && len(s.ids) != len(b.IDs) {
			return whole("%d %s for %d tokens", len(s.ids), s.name, len(b.IDs))
		}
	}
	for i := range b.Len() {
		from, to := b.Starts[i], b.Starts[i+1]
		switch n := to - from; {
		case n < 0 || to > len(b.IDs):
			return &BatchError{i, fmt.Sprintf("starts at %d and ends at %d", from, to)}
		case n == 0:
			return &BatchError{i, "has no tokens"}
		case b.Positions == nil && n > m.config.MaxPositionEmbeddings:
			return &BatchError{i, fmt.Sprintf("%d tokens, max_position_embeddings is %d", n, m.config.MaxPositionEmbeddings)}
		}
		for j := from; j < to; j++ {
			if err := inside(i, "token id", b.IDs[j], "vocab_size", m.config.VocabSize); err != nil {
				return err
			}
			if b.TypeIDs != nil {
				if err := inside(i, "type id", b.TypeIDs[j], "type_vocab_size", m.config.TypeVocabSize); err != nil {
					return err
				}
			}
			if b.Positions != nil {
				if err := inside(i, "position", b.Positions[j], "max_position_embeddings", m.config.MaxPositionEmbeddings); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func inside(text int, name string, id int32, key string, limit int) error {
	if id < 0 || int(id) >= limit {
		return &BatchError{text, fmt.Sprintf("%s %d, %s is %d", name, id, key, limit)}
	}
	return nil
}

// ends is a slice short enough to print.
func ends(s []int) []int {
	if len(s) > 2 {
		return []int{s[0], s[len(s)-1]}
	}
	return s
}

// pass is one forward pass: the stream, the batch on the device, and scratch for all layers.
type pass struct {
	m    *Model
	s    *gpu.Stream
	seqs gpu.Ragged
	h    gpu.Matrix // [tokens, hidden_size], the states so far

	parts  []part
	starts []int // of the texts in each part, unchanged until Sync

	pos, zeros, first []int32 // what is uploaded, unchanged until Sync
	tables            [3]gpu.Lookup
}

// passes are those that nobody uses, so that a forward pass allocates nothing.
var passes = sync.Pool{New: func() any { return new(pass) }}

// close waits for what is launched and gives the stream back, and the pass.
func (p *pass) close() {
	p.s.Close()
	p.m, p.s, p.seqs, p.h, p.tables = nil, nil, gpu.Ragged{}, gpu.Matrix{}, [3]gpu.Lookup{}
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
	p.m, p.s = m, s
	return p, nil
}

// run launches the encoder. keep, if not nil, sees the states after the embeddings (0) and after each layer.
func (p *pass) run(ctx context.Context, b *Batch, keep func(i int, h gpu.Matrix) error) error {
	m, s := p.m, p.s
	tokens, hidden := len(b.IDs), m.config.HiddenSize
	p.seqs = s.Ragged(b.Starts, b.Mask)
	p.h = s.F32(tokens, hidden)
	mark := s.Mark()

	ids, positions, kinds := s.I32(tokens), s.I32(tokens), s.I32(tokens)
	s.UploadInts(ids, b.IDs)
	s.UploadInts(positions, p.positions(b))
	s.UploadInts(kinds, p.kinds(b))
	p.tables = [3]gpu.Lookup{{Table: m.word, IDs: ids}, {Table: m.kind, IDs: kinds}, {Table: m.position, IDs: positions}}
	s.Gather(p.h, p.tables[:])
	s.LayerNorm(p.h, p.h, gpu.Matrix{}, m.norm.weight, m.norm.bias, float32(m.config.LayerNormEps))
	s.Release(mark)

	p.divide(b)
	for i := 0; ; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep != nil {
			if err := keep(i, p.h); err != nil {
				return err
			}
		}
		if i == len(m.layers) {
			return s.Err()
		}
		for _, t := range p.parts {
			p.layer(&m.layers[i], p.h.Slice(t.from, t.seqs.Tokens), t.seqs)
		}
	}
}

// part is texts that go through a layer together.
type part struct {
	from int // token
	seqs gpu.Ragged
}

// Together is about how many tokens go through a layer together: enough to keep the kernels busy, and few enough that what a
// layer needs for them stays in a cache, and memory small whatever the batch.
const Together = 512

// divide makes parts of about the same size of the texts.
func (p *pass) divide(b *Batch) {
	n := (len(b.IDs) + Together - 1) / Together
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

// layer launches one block, on some of the texts: attention and a feed-forward net, each added to what went in and normalised.
func (p *pass) layer(l *layer, h gpu.Matrix, seqs gpu.Ragged) {
	s, c := p.s, &p.m.config
	hidden, eps := c.HiddenSize, float32(c.LayerNormEps)
	mark := s.Mark()
	qkv := s.F32(h.Rows, 3*hidden)
	seen := s.F32(h.Rows, hidden)
	s.Linear(qkv, h, l.qkv, gpu.Epilogue{})
	s.Attention(seen, qkv.Columns(0, hidden), qkv.Columns(hidden, hidden), qkv.Columns(2*hidden, hidden),
		gpu.Attention{Heads: c.NumAttentionHeads, Seqs: seqs})
	s.Linear(h, seen, l.attn, gpu.Epilogue{Residual: h})
	s.LayerNorm(h, h, gpu.Matrix{}, l.attnNorm.weight, l.attnNorm.bias, eps)
	s.Release(mark)

	wide := s.F32(h.Rows, c.IntermediateSize)
	s.Linear(wide, h, l.up, gpu.Epilogue{Act: p.m.act})
	s.Linear(h, wide, l.down, gpu.Epilogue{Residual: h})
	s.LayerNorm(h, h, gpu.Matrix{}, l.norm.weight, l.norm.bias, eps)
	s.Release(mark)
}

func (p *pass) positions(b *Batch) []int32 {
	if b.Positions != nil {
		return b.Positions
	}
	p.pos = slices.Grow(p.pos[:0], len(b.IDs))[:len(b.IDs)]
	for i := range b.Len() {
		for j := b.Starts[i]; j < b.Starts[i+1]; j++ {
			p.pos[j] = int32(j - b.Starts[i])
		}
	}
	return p.pos
}

func (p *pass) kinds(b *Batch) []int32 {
	if b.TypeIDs != nil {
		return b.TypeIDs
	}
	if len(p.zeros) < len(b.IDs) {
		p.zeros = make([]int32, len(b.IDs)) // and never written
	}
	return p.zeros[:len(b.IDs)]
}

// pooled launches tanh(W h + b) of the first token of each text, as the pooler has it.
func (p *pass) pooled(b *Batch) gpu.Matrix {
	s, hidden := p.s, p.m.config.HiddenSize
	p.first = slices.Grow(p.first[:0], b.Len())[:b.Len()]
	for i := range p.first {
		p.first[i] = int32(b.Starts[i])
	}
	rows := s.I32(b.Len())
	s.UploadInts(rows, p.first)
	cls, out := s.F32(b.Len(), hidden), s.F32(b.Len(), hidden)
	s.Pick(cls, p.h, rows)
	s.Linear(out, cls, p.m.pooler, gpu.Epilogue{Act: gpu.Tanh})
	return out
}

// Encode gives the last hidden states of all tokens: [tokens, hidden_size]. ctx is looked at between layers.
func (m *Model) Encode(ctx context.Context, b Batch) (*nn.Tensor, error) {
	return m.result(ctx, b, func(p *pass) gpu.Matrix { return p.h })
}

// Pooled gives the pooler's output for each text: [texts, hidden_size].
func (m *Model) Pooled(ctx context.Context, b Batch) (*nn.Tensor, error) {
	if m.pooler == nil {
		return nil, fmt.Errorf("bert: the checkpoint has no pooler: %w", gpu.ErrUnsupported)
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix { return p.pooled(&b) })
}

// Classify gives the logits for each text: [texts, labels].
func (m *Model) Classify(ctx context.Context, b Batch) (*nn.Tensor, error) {
	if m.classifier == nil {
		return nil, fmt.Errorf("bert: the checkpoint has no classifier (BertForSequenceClassification): %w", gpu.ErrUnsupported)
	}
	return m.result(ctx, b, func(p *pass) gpu.Matrix {
		out := p.s.F32(b.Len(), m.classifier.N())
		p.s.Linear(out, p.pooled(&b), m.classifier, gpu.Epilogue{})
		return out
	})
}

// HiddenStates gives the states after the embeddings, and after each layer: num_hidden_layers+1 of [tokens, hidden_size].
func (m *Model) HiddenStates(ctx context.Context, b Batch) ([]*nn.Tensor, error) {
	p, err := m.begin(&b)
	if err != nil {
		return nil, err
	}
	defer p.close()
	var all []*nn.Tensor
	err = p.run(ctx, &b, func(_ int, h gpu.Matrix) error {
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

// Embed writes for each text the mean of its last hidden states, normalised to length 1, into dst [texts, hidden_size].
func (m *Model) Embed(ctx context.Context, dst []float32, b Batch) error {
	hidden := m.config.HiddenSize
	if len(dst) != b.Len()*hidden {
		return &BatchError{-1, fmt.Sprintf("room for %d values, %d texts need %v", len(dst), b.Len(), tensor.Shape{b.Len(), hidden})}
	}
	p, err := m.begin(&b)
	if err != nil {
		return err
	}
	defer p.close()
	err = p.run(ctx, &b, nil)
	if err == nil {
		mean := p.s.F32(b.Len(), hidden)
		p.s.MeanPool(mean, p.h, p.seqs)
		p.s.L2Normalize(mean, mean, 1e-12)
		p.s.Download(dst, mean)
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
	if err = p.run(ctx, &b, nil); err == nil {
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
