package text

import (
	"context"
	"encoding/json"
	"math"
	"slices"

	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Modes are the ways of sentence-transformers to make one vector of the hidden states of a text.
type Modes []string

// The modes.
const (
	PoolCLS      = "cls"
	PoolMax      = "max"
	PoolMean     = "mean"
	PoolSqrtLen  = "mean_sqrt_len_tokens"
	PoolWeighted = "weightedmean"
	PoolLast     = "lasttoken"
)

// AllModes lists them.
var AllModes = Modes{PoolCLS, PoolMax, PoolMean, PoolSqrtLen, PoolWeighted, PoolLast}

// UnmarshalJSON takes one mode or several.
func (m *Modes) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*m = Modes{""}
		return json.Unmarshal(b, &(*m)[0])
	}
	return json.Unmarshal(b, (*[]string)(m))
}

// PoolingConfig says how hidden states [tokens, hidden] become one vector: by each mode, one behind the other.
type PoolingConfig struct {
	Modes      Modes `json:"pooling_mode"`
	Dim        int   `json:"word_embedding_dimension,omitempty"` // of the hidden states; 0: whatever they have
	SkipPrompt bool  `json:"skip_prompt,omitempty"`              // tokens of the prompt do not count
}

// Pooling is the Pooling module of sentence-transformers.
type Pooling struct{ Config PoolingConfig }

// Spec implements models.Module.
func (p *Pooling) Spec() models.Spec { return models.Spec{Kind: PoolingKind, Config: p.Config} }

func loadPooling(s models.Source) (models.Module, error) {
	p := &Pooling{}
	if err := s.Config(&p.Config); err != nil {
		return nil, err
	}
	if len(p.Config.Modes) == 0 {
		return nil, zcerr.New(zcerr.Invalid, "%s: there is no pooling mode", s.Path())
	}
	for _, m := range p.Config.Modes {
		if !slices.Contains(AllModes, m) {
			return nil, zcerr.New(zcerr.Unsupported, "%s: pooling mode %q is not supported (%v are)", s.Path(), m, AllModes)
		}
	}
	return p, nil
}

// pool makes the vectors of texts, [texts, modes*hidden]. The first skip tokens of each text do not count.
func (p *Pooling) pool(hidden *nn.Tensor, b *encoder.Batch, skip int) (*nn.Tensor, error) {
	if !p.Config.SkipPrompt {
		skip = 0
	}
	var mask []int32
	first, last := make([]int, b.Len()), make([]int, b.Len())
	for i := range first {
		from, to := b.Starts[i], b.Starts[i+1]
		first[i], last[i] = from+skip, to-1
		if first[i] >= to { // the prompt is all of it
			first[i] = from
		}
	}
	if skip > 0 {
		mask = make([]int32, len(b.IDs))
		for i := range b.Len() {
			for j := b.Starts[i] + skip; j < b.Starts[i+1]; j++ {
				mask[j] = 1
			}
		}
	}
	one := func(mode string) (*nn.Tensor, error) {
		switch mode {
		case PoolCLS:
			return hidden.Pick(first)
		case PoolLast:
			return hidden.Pick(last)
		case PoolMean:
			return hidden.MeanPool(b.Starts, mask)
		}
		return poolHere(mode, hidden, b, skip)
	}
	if len(p.Config.Modes) == 1 {
		return one(p.Config.Modes[0])
	}
	n, dim := b.Len(), hidden.Shape()[1]
	wide := dim * len(p.Config.Modes)
	all := make([]float32, n*wide)
	for k, mode := range p.Config.Modes {
		t, err := one(mode)
		if err != nil {
			return nil, err
		}
		v, err := t.Float32s()
		if err != nil {
			return nil, err
		}
		for i := range n {
			copy(all[i*wide+k*dim:], v[i*dim:(i+1)*dim])
		}
	}
	return nn.New([]int{n, wide}, all)
}

// poolHere is pool for the modes that no device has an op for.
func poolHere(mode string, hidden *nn.Tensor, b *encoder.Batch, skip int) (*nn.Tensor, error) {
	h, err := hidden.Float32s()
	if err != nil {
		return nil, err
	}
	dim := hidden.Shape()[1]
	out := make([]float32, b.Len()*dim)
	sum := make([]float64, dim)
	for i := range b.Len() {
		clear(sum)
		row := out[i*dim : (i+1)*dim]
		if mode == PoolMax {
			for c := range row {
				row[c] = float32(math.Inf(-1))
			}
		}
		total := 0.0
		for j := b.Starts[i] + skip; j < b.Starts[i+1]; j++ {
			weight := 1.0
			if mode == PoolWeighted {
				weight = float64(j - b.Starts[i] + 1)
			}
			total += weight
			for c, x := range h[j*dim : (j+1)*dim] {
				sum[c] += weight * float64(x)
				row[c] = max(row[c], x)
			}
		}
		if mode == PoolMax {
			continue
		}
		if mode == PoolSqrtLen {
			total = math.Sqrt(total)
		}
		for c := range row {
			row[c] = float32(sum[c] / max(total, 1e-9))
		}
	}
	return nn.New([]int{b.Len(), dim}, out)
}

// Normalize is the Normalize module of sentence-transformers: vectors get length 1.
type Normalize struct{ _ byte }

// Spec implements models.Module.
func (*Normalize) Spec() models.Spec { return models.Spec{Kind: NormalizeKind} }

// Forward implements nn.Layer.
func (*Normalize) Forward(x *nn.Tensor) (*nn.Tensor, error) { return x.L2Normalize() }

// EmbedOptions are the choices of one call. The zero value is what the model's files say.
type EmbedOptions struct {
	Prompt     *string // put before each text; nil: the one of PromptName
	PromptName string  // of the model's prompts; empty: its default one
	Dim        int     // vectors are cut to their first values, for models that were trained so; 0: whole
	Normalize  bool    // vectors get length 1 after that
}

// Embedding is the vector of one text.
type Embedding struct {
	Vector    []float32 // [dim]
	Tokens    int       // of the text, special ones and the prompt's included
	Truncated int       // tokens that were cut off because the text was too long
}

// Embed gives one vector for each text, in order, as the pipeline's modules make it. What a text gets does not depend on the
// others.
func (p *Pipeline) Embed(ctx context.Context, texts []string) ([]Embedding, error) {
	return p.EmbedWith(ctx, texts, EmbedOptions{})
}

// EmbedWith is Embed with choices.
func (p *Pipeline) EmbedWith(ctx context.Context, texts []string, o EmbedOptions) ([]Embedding, error) {
	if t := p.config.Task; t != Embed && t != Encode {
		return nil, p.otherTask("embed")
	}
	dim := p.Dim()
	if o.Dim < 0 || o.Dim > dim {
		return nil, zcerr.New(zcerr.Invalid, "vectors of %d values are asked for, the model's have %d", o.Dim, dim)
	}
	if o.Dim == 0 {
		o.Dim = dim
	}
	prompt, err := p.prompt(o)
	if err != nil {
		return nil, err
	}
	skip, err := p.promptTokens(prompt)
	if err != nil {
		return nil, err
	}
	if prompt != "" {
		prompted := make([]string, len(texts))
		for i, t := range texts {
			prompted[i] = prompt + t
		}
		texts = prompted
	}
	enc, err := p.Tokenize(texts)
	if err != nil {
		return nil, err
	}
	out := make([]Embedding, len(texts))
	err = p.run(ctx, enc, func(b encoder.Batch, index []int) error {
		vectors, err := p.vectors(ctx, b, skip, o)
		if err != nil {
			return err
		}
		for k, i := range index {
			out[i] = Embedding{Vector: vectors[k*o.Dim : (k+1)*o.Dim : (k+1)*o.Dim], Tokens: len(enc[i].IDs), Truncated: enc[i].Truncated}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// prompt is the text that the options put before each other.
func (p *Pipeline) prompt(o EmbedOptions) (string, error) {
	if o.Prompt != nil {
		return *o.Prompt, nil
	}
	name := o.PromptName
	if name == "" {
		name = p.config.Prompt
	}
	text, ok := p.config.Prompts[name]
	if name != "" && !ok {
		var names []string
		for n := range p.config.Prompts {
			names = append(names, n)
		}
		slices.Sort(names)
		return "", zcerr.New(zcerr.Invalid, "the model has no prompt %q (it has %q)", name, names)
	}
	return text, nil
}

// promptTokens is how many tokens at the start of a text are of its prompt.
func (p *Pipeline) promptTokens(prompt string) (int, error) {
	if prompt == "" || p.pooling == nil || !p.pooling.Config.SkipPrompt {
		return 0, nil
	}
	enc, err := p.Tokenize([]string{prompt})
	if err != nil {
		return 0, err
	}
	n := len(enc[0].IDs)
	if n > 0 && enc[0].SpecialMask[n-1] == 1 {
		n-- // the text goes on there
	}
	return n, nil
}

// vectors runs encoder, pooling and the layers behind it: [texts, dim].
func (p *Pipeline) vectors(ctx context.Context, b encoder.Batch, skip int, o EmbedOptions) ([]float32, error) {
	mean := len(p.pooling.Config.Modes) == 1 && p.pooling.Config.Modes[0] == PoolMean && skip == 0
	if p.means != nil && mean && len(p.layers) == 1 && o.Dim == p.Dim() {
		if _, ok := p.layers[0].(*Normalize); ok { // the most common pipeline, in one go
			x, err := p.means(ctx, b)
			if err != nil {
				return nil, err
			}
			return x.Float32s()
		}
	}
	hidden, err := p.states(ctx, b)
	if err != nil {
		return nil, err
	}
	x, err := p.pooling.pool(hidden, &b, skip)
	for i := 0; err == nil && i < len(p.layers); i++ {
		x, err = p.layers[i].Forward(x)
	}
	if err != nil {
		return nil, err
	}
	v, err := x.Float32s()
	if err != nil {
		return nil, err
	}
	if dim := p.Dim(); o.Dim < dim {
		for i := range b.Len() {
			copy(v[i*o.Dim:(i+1)*o.Dim], v[i*dim:])
		}
		v = v[:b.Len()*o.Dim]
	}
	if o.Normalize {
		for i := range b.Len() {
			unit(v[i*o.Dim : (i+1)*o.Dim])
		}
	}
	return v, nil
}

// unit gives a vector the length 1.
func unit(v []float32) {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	length := max(math.Sqrt(sum), 1e-12)
	for i := range v {
		v[i] = float32(float64(v[i]) / length)
	}
}
