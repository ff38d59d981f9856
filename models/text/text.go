// Package text runs text pipelines: tokenizer, encoder, and what comes after it, as one module that is stored and rebuilt
// whole. What a Hugging Face or sentence-transformers directory is, this is.
package text

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/bert"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/region"
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
	PartVocab           = "vocab.txt"
)

// FileMedia is the media type of a file that is stored byte for byte.
const FileMedia = "application/octet-stream"

// The tasks.
const (
	Embed    = "embed"    // text in, vector out
	Classify = "classify" // text in, label and probability out
	Encode   = "encode"   // an encoder without a head: vectors are the mean of its hidden states
)

// Config is what a pipeline adds to its parts.
type Config struct {
	Task      string `json:"task"`
	MaxLength int    `json:"max_length"`    // tokens of one text, special ones included; longer texts are cut
	Lowercase bool   `json:"do_lower_case"` // text is lower-cased before the tokenizer, as sentence-transformers can ask for
}

// PoolingConfig says how hidden states [tokens, hidden] become one vector [hidden].
type PoolingConfig struct {
	Mode string `json:"pooling_mode"` // "mean" or "cls"
	Dim  int    `json:"word_embedding_dimension"`
}

// Pooling is the Pooling module of sentence-transformers.
type Pooling struct{ Config PoolingConfig }

// Spec implements models.Module.
func (p *Pooling) Spec() models.Spec { return models.Spec{Kind: PoolingKind, Config: p.Config} }

// Normalize is the Normalize module of sentence-transformers: vectors get length 1.
type Normalize struct{ _ byte }

// Spec implements models.Module.
func (*Normalize) Spec() models.Spec { return models.Spec{Kind: NormalizeKind} }

func init() {
	models.Register(Kind, load)
	models.Register(PoolingKind, func(s models.Source) (models.Module, error) {
		p := &Pooling{}
		if err := s.Config(&p.Config); err != nil {
			return nil, err
		}
		if m := p.Config.Mode; m != "mean" && m != "cls" {
			return nil, zcerr.New(zcerr.Unsupported, "%s: pooling mode %q is not supported (mean and cls are)", s.Path(), m)
		}
		return p, nil
	})
	models.Register(NormalizeKind, func(models.Source) (models.Module, error) { return &Normalize{}, nil })
}

// Pipeline is a text pipeline. It is immutable and safe for many goroutines.
type Pipeline struct {
	config    Config
	model     *bert.Model
	tok       *tokenizer.Tokenizer // nil: the pipeline takes ids
	pooling   *Pooling             // nil: mean
	normalize bool
	steps     []models.Child // after the model, in order
	values    []models.Value // the tokenizer's files
	gate      *region.Gate   // of the mapping that the tokenizer's tables lie in; nil: its own memory
}

func load(s models.Source) (models.Module, error) {
	p := &Pipeline{}
	if err := s.Config(&p.config); err != nil {
		return nil, err
	}
	m, err := s.Child(PartModel)
	if err != nil {
		return nil, err
	}
	model, ok := m.(*bert.Model)
	if !ok {
		return nil, zcerr.New(zcerr.Unsupported, "%s: a text pipeline on a %s is not supported", s.Path(), m.Spec().Kind)
	}
	p.model = model
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
			if d := mod.Config.Dim; d != 0 && d != model.Config().HiddenSize {
				return nil, zcerr.New(zcerr.Invalid, "%s.%s: word_embedding_dimension is %d, the model's hidden_size %d", s.Path(), name, d, model.Config().HiddenSize)
			}
			p.pooling = mod
		case *Normalize:
			p.normalize = true
		default:
			return nil, zcerr.New(zcerr.Unsupported, "%s.%s: a %s is no step of a text pipeline", s.Path(), name, mod.Spec().Kind)
		}
		p.steps = append(p.steps, models.Child{Name: name, Module: mod})
	}
	return p, p.check(s.Path())
}

func (p *Pipeline) check(path string) error {
	c := p.model.Config()
	if n := p.config.MaxLength; n < 1 || n > c.MaxPositionEmbeddings {
		return zcerr.New(zcerr.Invalid, "%s: max_length is %d, the model takes 1 to %d (max_position_embeddings)", path, n, c.MaxPositionEmbeddings)
	}
	switch p.config.Task {
	case Embed, Encode:
	case Classify:
		if b, ok := c.Extra["id2label"]; ok {
			var names map[string]string
			if err := json.Unmarshal(b, &names); err != nil {
				return zcerr.New(zcerr.Invalid, "%s: id2label: %w", path, err)
			}
		}
	default:
		return zcerr.New(zcerr.Unsupported, "%s: task %q is not supported", path, p.config.Task)
	}
	return nil
}

func (p *Pipeline) loadTokenizer(s models.Source) error {
	var tok *tokenizer.Tokenizer
	var tables []byte
	var err error
	keep := func(name string) ([]byte, bool) { // in place, as weights are: they live as long as the mapping does
		b, ok := s.Value(name)
		if ok {
			p.values = append(p.values, models.Value{Name: name, MediaType: FileMedia, Data: b})
		}
		return b, ok
	}
	config, _ := keep(PartTokenizerConfig)
	if ts, ok := s.(models.TableSource); ok {
		if tables, err = ts.Tables(PartTokenizer); err != nil {
			return err
		}
	}
	if b, ok := keep(PartTokenizer); ok && tables != nil {
		tok, err = tokenizer.Open(tables)
		p.gate = region.GateOf(tables)
	} else if ok {
		tok, err = tokenizer.FromJSON(b)
	} else if b, ok := keep(PartVocab); ok {
		tok, err = TokenizerFromVocab(b, config)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.Path(), err)
	}
	if tok != nil {
		// The pipeline's limit overrides the file's, and nothing is padded: texts of a batch lie one behind the other.
		p.tok = tok.WithTruncation(tokenizer.Truncation{MaxLength: p.config.MaxLength}).WithPadding(tokenizer.Padding{})
	}
	return nil
}

// TokenizerFromVocab makes the tokenizer of a directory without tokenizer.json, as its tokenizer_config.json (may be nil)
// says.
func TokenizerFromVocab(vocab, config []byte) (*tokenizer.Tokenizer, error) {
	opt := tokenizer.DefaultVocabOptions()
	if config != nil {
		var err error
		if opt, err = tokenizer.VocabOptionsFromConfig(config); err != nil {
			return nil, err
		}
	}
	return tokenizer.FromVocab(vocab, opt)
}

// Spec implements models.Module.
func (p *Pipeline) Spec() models.Spec {
	return models.Spec{
		Kind: Kind, Config: p.config, Values: p.values,
		Children: append([]models.Child{{Name: PartModel, Module: p.model}}, p.steps...),
	}
}

// Config is the pipeline's config.
func (p *Pipeline) Config() Config { return p.config }

// Model is the encoder.
func (p *Pipeline) Model() *bert.Model { return p.model }

// Dim is the length of a vector that Embed gives.
func (p *Pipeline) Dim() int { return p.model.Config().HiddenSize }

func (p *Pipeline) labels() []string {
	c := p.model.Config()
	var names map[string]string // checked by load
	_ = json.Unmarshal(c.Extra["id2label"], &names)
	out := make([]string, c.Labels())
	for i := range out {
		out[i] = names[strconv.Itoa(i)]
		if out[i] == "" {
			out[i] = fmt.Sprintf("LABEL_%d", i)
		}
	}
	return out
}

// Labels are the classes of a classifier, in the order of its scores.
func (p *Pipeline) Labels() []string { return p.labels() }

// Tokenize gives the ids of each text as the model gets them, cut to the pipeline's length, unpadded.
func (p *Pipeline) Tokenize(texts []string) ([]*tokenizer.Encoding, error) {
	if p.tok == nil {
		return nil, zcerr.New(zcerr.Invalid, "the pipeline has no tokenizer, it takes token ids").WithHint("put a directory with tokenizer.json or vocab.txt in it")
	}
	if p.config.Lowercase {
		lower := make([]string, len(texts))
		for i, t := range texts {
			lower[i] = strings.ToLower(t)
		}
		texts = lower
	}
	return p.encode(texts)
}

// encode calls the tokenizer while its tables are mapped.
func (p *Pipeline) encode(texts []string) (enc []*tokenizer.Encoding, err error) {
	if p.gate != nil {
		if err := p.gate.Enter(); err != nil {
			return nil, err
		}
		defer p.gate.Leave()
		defer region.Caught(region.On(), &err)
	}
	if enc, err = p.tok.EncodeBatch(texts); err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	return enc, nil
}

// maxTokens is the most tokens that go through the encoder at once, so that ten thousand texts need the memory of a few.
const maxTokens = 4096

// run tokenizes and calls forward for groups of texts of similar length; index says which texts a group has.
func (p *Pipeline) run(ctx context.Context, texts []string, forward func(b bert.Batch, index []int, enc []*tokenizer.Encoding) error) error {
	enc, err := p.Tokenize(texts)
	if err != nil {
		return err
	}
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
		var b bert.Batch
		b.Starts = append(b.Starts, 0)
		for _, i := range index {
			b.IDs = append(b.IDs, enc[i].IDs...)
			b.TypeIDs = append(b.TypeIDs, enc[i].TypeIDs...)
			b.Starts = append(b.Starts, len(b.IDs))
		}
		if err := forward(b, index, enc); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// Embedding is the vector of one text.
type Embedding struct {
	Vector    []float32 // [hidden]
	Tokens    int       // of the text, special ones included
	Truncated int       // tokens that were cut off because the text was too long
}

// Embed gives one vector for each text, in order: pooled, and normalised where the pipeline does that. What a text gets does
// not depend on the others.
func (p *Pipeline) Embed(ctx context.Context, texts []string) ([]Embedding, error) {
	if p.config.Task == Classify {
		return nil, zcerr.New(zcerr.Invalid, "the pipeline classifies, it does not embed")
	}
	out := make([]Embedding, len(texts))
	err := p.run(ctx, texts, func(b bert.Batch, index []int, enc []*tokenizer.Encoding) error {
		vectors, err := p.vectors(ctx, b)
		if err != nil {
			return err
		}
		dim := p.Dim()
		for k, i := range index {
			out[i] = Embedding{Vector: vectors[k*dim : (k+1)*dim : (k+1)*dim], Tokens: len(enc[i].IDs), Truncated: enc[i].Truncated}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// vectors runs encoder, pooling and normalisation: [texts, hidden].
func (p *Pipeline) vectors(ctx context.Context, b bert.Batch) ([]float32, error) {
	mean := p.pooling == nil || p.pooling.Config.Mode == "mean"
	if mean && p.normalize {
		out := make([]float32, b.Len()*p.Dim())
		return out, p.model.Embed(ctx, out, b)
	}
	hidden, err := p.model.Encode(ctx, b)
	if err != nil {
		return nil, err
	}
	var pooled *nn.Tensor
	if mean {
		pooled, err = hidden.MeanPool(b.Starts, nil)
	} else {
		pooled, err = hidden.Pick(b.Starts[:b.Len()]) // each text's first token
	}
	if err == nil && p.normalize {
		pooled, err = pooled.L2Normalize()
	}
	if err != nil {
		return nil, err
	}
	return pooled.Float32s()
}

// Classification is what a classifier says of one text.
type Classification struct {
	Label     string
	Score     float32   // probability of Label
	Scores    []float32 // of every label, in the order of Labels
	Tokens    int
	Truncated int
}

// Classify gives the most probable label of each text, in order.
func (p *Pipeline) Classify(ctx context.Context, texts []string) ([]Classification, error) {
	if p.config.Task != Classify {
		return nil, zcerr.New(zcerr.Invalid, "the pipeline's task is %s, it does not classify", p.config.Task)
	}
	labels := p.labels()
	out := make([]Classification, len(texts))
	err := p.run(ctx, texts, func(b bert.Batch, index []int, enc []*tokenizer.Encoding) error {
		logits, err := p.model.Classify(ctx, b)
		if err != nil {
			return err
		}
		probs, err := logits.Softmax()
		if err != nil {
			return err
		}
		scores, err := probs.Float32s()
		if err != nil {
			return err
		}
		n := len(labels)
		for k, i := range index {
			row := scores[k*n : (k+1)*n : (k+1)*n]
			best := 0
			for j := range row {
				if row[j] > row[best] {
					best = j
				}
			}
			out[i] = Classification{Label: labels[best], Score: row[best], Scores: row, Tokens: len(enc[i].IDs), Truncated: enc[i].Truncated}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
