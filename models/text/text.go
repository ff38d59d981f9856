// Package text runs text pipelines: tokenizer, encoder, and what comes after it, as one module that is stored and rebuilt
// whole. What a Hugging Face or sentence-transformers directory is, this is.
//
// Each task has a method. A text that is longer than the model takes is cut, and the answer says by how much;
// [Pipeline.Whole] makes that an error.
package text

import (
	"context"
	"slices"
	"sort"
	"strings"

	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Kinds of the modules here.
const (
	Kind          = "text"
	PoolingKind   = "st.Pooling"
	NormalizeKind = "st.Normalize"
)

// Names of the parts of a stored pipeline. The modules of sentence-transformers follow as N_Type: "1_Pooling".
const (
	PartModel           = "model"
	PartTokenizer       = "tokenizer.json"
	PartTokenizerConfig = "tokenizer_config.json"
)

// FileMedia is the media type of a file that is stored byte for byte.
const FileMedia = "application/octet-stream"

func init() {
	models.Register(Kind, load)
	models.Register(PoolingKind, loadPooling)
	models.Register(NormalizeKind, func(models.Source) (models.Module, error) { return &Normalize{}, nil })
}

// Pipeline is a text pipeline. It is immutable and safe for many goroutines.
type Pipeline struct {
	config  Config
	model   Encoder
	passes        // of the model
	hidden  int   // width of its states
	guarded       // the tokenizer; none: the pipeline takes ids
	cls     int32 // ids of special tokens; -1: none
	unk     int32
	mask    int32
	whole   bool // texts are not cut
	pooling *Pooling
	layers  []nn.Layer     // what vectors go through behind the pooling
	steps   []models.Child // pooling and layers, as stored
	values  []models.Value // the tokenizer's files
}

func load(s models.Source) (models.Module, error) {
	p := &Pipeline{pooling: &Pooling{PoolingConfig{Modes: Modes{PoolMean}}}}
	if err := s.Config(&p.config); err != nil {
		return nil, err
	}
	var err error
	if p.model, err = loadEncoder(s); err != nil {
		return nil, err
	}
	var maxTokens int
	p.passes = passesOf(p.model)
	p.hidden, maxTokens = size(p.model)
	if err := p.loadTokenizer(s); err != nil {
		return nil, err
	}
	for _, name := range s.ChildNames() {
		if name == PartModel {
			continue
		}
		mod, err := s.Child(name)
		if err != nil {
			return nil, err
		}
		switch mod := mod.(type) {
		case *Pooling:
			if len(p.steps) > 0 {
				return nil, zcerr.New(zcerr.Unsupported, "%s.%s: a pooling behind a %s", s.Path(), name, p.steps[0].Module.Spec().Kind)
			}
			if d := mod.Config.Dim; d != 0 && d != p.hidden {
				return nil, zcerr.New(zcerr.Invalid, "%s.%s: word_embedding_dimension is %d, the model's hidden_size %d", s.Path(), name, d, p.hidden)
			}
			p.pooling = mod
		case nn.Layer:
			p.layers = append(p.layers, mod)
		default:
			return nil, zcerr.New(zcerr.Unsupported, "%s.%s: a %s is no step of a text pipeline", s.Path(), name, mod.Spec().Kind)
		}
		p.steps = append(p.steps, models.Child{Name: name, Module: mod})
	}
	if err := p.config.check(s.Path(), maxTokens); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Pipeline) loadTokenizer(s models.Source) error {
	if b, ok := s.Value(PartTokenizerConfig); ok { // in place, as weights are: it lives as long as the mapping does
		p.values = append(p.values, models.Value{Name: PartTokenizerConfig, MediaType: FileMedia, Data: b})
	}
	file, g, err := open(s)
	if err != nil || g.tok == nil {
		return err
	}
	p.values = append(p.values, models.Value{Name: PartTokenizer, MediaType: FileMedia, Data: file})
	// The pipeline's limit overrides the file's, and nothing is padded: texts of a batch lie one behind the other.
	g.tok = g.tok.WithTruncation(p.truncation()).WithPadding(tokenizer.Padding{}).WithSpecialTokens(!p.config.NoSpecial)
	p.guarded = g
	id := func(token string) int32 {
		if id, ok := g.tok.ID(token); ok && token != "" {
			return id
		}
		return -1
	}
	p.cls, p.unk, p.mask = id(p.config.ClassToken), id(p.config.UnknownToken), id(p.config.MaskToken)
	return nil
}

func (p *Pipeline) truncation() tokenizer.Truncation {
	t := tokenizer.Truncation{MaxLength: p.config.MaxLength}
	if p.config.CutLeft {
		t.Direction = tokenizer.Left
	}
	return t
}

// Spec implements models.Module.
func (p *Pipeline) Spec() models.Spec {
	var model models.Module = p.model
	if s, ok := model.(static); ok {
		model = s.Embedding
	}
	return models.Spec{
		Kind: Kind, Config: p.config, Values: p.values,
		Children: append([]models.Child{{Name: PartModel, Module: model}}, p.steps...),
	}
}

// Config is the pipeline's config.
func (p *Pipeline) Config() Config { return p.config }

// Model is the encoder.
func (p *Pipeline) Model() Encoder { return p.model }

// Dim is the length of a vector that Embed gives.
func (p *Pipeline) Dim() int {
	dim := p.hidden * len(p.pooling.Config.Modes)
	for _, l := range p.layers {
		dim = widthBehind(l, dim)
	}
	return dim
}

// widthBehind is the width that a layer makes of one.
func widthBehind(l nn.Layer, in int) int {
	switch l := l.(type) {
	case *nn.Linear:
		_, in = l.Size()
	case *nn.Sequential:
		for i := range l.Len() {
			in = widthBehind(l.At(i), in)
		}
	}
	return in
}

// Labels are the classes of a classifier or tagger, in the order of its scores.
func (p *Pipeline) Labels() []string { return slices.Clone(p.config.Labels) }

// Whole is the pipeline with another rule: a text that is longer than the model takes is an error, and nothing is cut.
func (p *Pipeline) Whole() *Pipeline {
	c := *p
	c.whole = true
	return &c
}

// otherTask says what the pipeline is for.
func (p *Pipeline) otherTask(asked string) error {
	return zcerr.New(zcerr.Invalid, "the pipeline's task is %s, it does not %s", p.config.Task, asked)
}

// Tokenize gives the ids of each text as the model gets them, cut to the pipeline's length, unpadded.
func (p *Pipeline) Tokenize(texts []string) ([]*tokenizer.Encoding, error) {
	if p.config.Lowercase {
		lower := make([]string, len(texts))
		for i, t := range texts {
			lower[i] = strings.ToLower(t)
		}
		texts = lower
	}
	return p.encode(func(t *tokenizer.Tokenizer) ([]*tokenizer.Encoding, error) { return t.EncodeBatch(texts) })
}

// TokenizePairs is Tokenize for pairs of texts.
func (p *Pipeline) TokenizePairs(pairs [][2]string) ([]*tokenizer.Encoding, error) {
	return p.encode(func(t *tokenizer.Tokenizer) ([]*tokenizer.Encoding, error) { return t.EncodePairs(pairs) })
}

// encode calls the tokenizer and holds its answers to the pipeline's rule.
func (p *Pipeline) encode(do func(*tokenizer.Tokenizer) ([]*tokenizer.Encoding, error)) (enc []*tokenizer.Encoding, err error) {
	err = p.use(func(t *tokenizer.Tokenizer) error {
		enc, err = do(t)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, e := range enc {
		if p.whole && e.Truncated > 0 {
			return nil, zcerr.New(zcerr.Invalid, "text %d has %d tokens, the model takes %d", i, len(e.IDs)+e.Truncated, p.config.MaxLength).
				WithHint("split the text, or let it be cut")
		}
	}
	return enc, nil
}

// maxTokens is the most tokens that go through the encoder at once, so that ten thousand texts need the memory of a few.
const maxTokens = 2048

// run calls forward for groups of texts of similar length; index says which texts a group has.
func (p *Pipeline) run(ctx context.Context, enc []*tokenizer.Encoding, forward func(b encoder.Batch, index []int) error) error {
	order := make([]int, len(enc))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return len(enc[order[a]].IDs) > len(enc[order[b]].IDs) })
	for from := 0; from < len(order); {
		to, tokens := from, 0
		for to < len(order) && (to == from || tokens+len(enc[order[to]].IDs) <= maxTokens) {
			tokens += len(enc[order[to]].IDs)
			to++
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		index := order[from:to]
		some := make([]*tokenizer.Encoding, len(index))
		for k, i := range index {
			some[k] = enc[i]
		}
		b := batchOf(some)
		if err := forward(b, index); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// rows gives each text its rows of a head's logits, of which there are want a row; 0 is any number.
func rows(t *nn.Tensor, want int) ([]float32, int, error) {
	v, err := t.Float32s()
	if err != nil {
		return nil, 0, err
	}
	n := t.Shape()[1]
	if want != 0 && n != want {
		return nil, 0, zcerr.New(zcerr.Invalid, "the model gives %d values a row, the pipeline has names for %d", n, want).
			WithHint("id2label and the classifier in the weights are of different models")
	}
	return v, n, nil
}
