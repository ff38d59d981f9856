package text

import (
	"fmt"

	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/region"
)

// TokenizerKind is the kind of a [Tokenizer].
const TokenizerKind = "tokenizer"

func init() { models.Register(TokenizerKind, loadTokenizer) }

// Tokenizer is a tokenizer as a part of a pipeline of one's own: a field beside the models, stored and loaded with them.
// Workers use the tables that the daemon makes of it, where they lie. It is safe for many goroutines.
type Tokenizer struct {
	config tokenizerConfig
	file   []byte // tokenizer.json
	guarded
}

type tokenizerConfig struct {
	MaxLength int `json:"max_length,omitempty"` // tokens of a text, special ones included; 0: no limit
}

// NewTokenizer reads a tokenizer.json. Texts of more tokens than maxLength are cut; 0 is no limit.
func NewTokenizer(tokenizerJSON []byte, maxLength int) (*Tokenizer, error) {
	t, err := tokenizer.FromJSON(tokenizerJSON)
	if err != nil {
		return nil, err
	}
	return (&Tokenizer{config: tokenizerConfig{maxLength}, file: tokenizerJSON, guarded: guarded{tok: t}}).limited()
}

func loadTokenizer(s models.Source) (models.Module, error) {
	t := &Tokenizer{}
	if err := s.Config(&t.config); err != nil {
		return nil, err
	}
	var err error
	if t.file, t.guarded, err = open(s); err != nil {
		return nil, err
	}
	if t.tok == nil {
		return nil, zcerr.New(zcerr.Invalid, "%s: there is no %s", s.Path(), PartTokenizer)
	}
	return t.limited()
}

// limited replaces the file's limit and padding.
func (t *Tokenizer) limited() (*Tokenizer, error) {
	if t.config.MaxLength < 0 {
		return nil, zcerr.New(zcerr.Invalid, "a tokenizer of at most %d tokens", t.config.MaxLength)
	}
	t.tok = t.tok.WithTruncation(tokenizer.Truncation{MaxLength: t.config.MaxLength}).WithPadding(tokenizer.Padding{})
	return t, nil
}

// Spec implements models.Module.
func (t *Tokenizer) Spec() models.Spec {
	return models.Spec{Kind: TokenizerKind, Config: t.config, Values: []models.Value{{Name: PartTokenizer, MediaType: FileMedia, Data: t.file}}}
}

// Encode gives the tokens of each text, cut to the limit, unpadded.
func (t *Tokenizer) Encode(texts []string) (enc []*tokenizer.Encoding, err error) {
	err = t.use(func(t *tokenizer.Tokenizer) error {
		enc, err = t.EncodeBatch(texts)
		return err
	})
	return enc, err
}

// Batch gives texts as a model takes them.
func (t *Tokenizer) Batch(texts []string) (encoder.Batch, error) {
	enc, err := t.Encode(texts)
	if err != nil {
		return encoder.Batch{}, err
	}
	return batchOf(enc), nil
}

// batchOf puts texts one behind the other.
func batchOf(enc []*tokenizer.Encoding) encoder.Batch {
	b := encoder.Batch{Starts: make([]int, 1, len(enc)+1)}
	for _, e := range enc {
		b.IDs = append(b.IDs, e.IDs...)
		b.TypeIDs = append(b.TypeIDs, e.TypeIDs...)
		b.Starts = append(b.Starts, len(b.IDs))
	}
	return b
}

// guarded is a tokenizer whose tables may lie in a mapping that others close.
type guarded struct {
	tok  *tokenizer.Tokenizer // nil: there is none
	gate *region.Gate         // of the mapping; nil: the tokenizer's own memory
}

// open is the tokenizer of a stored module, on the tables that the daemon made of it where there are some, and its file, in
// place.
func open(s models.Source) (file []byte, g guarded, err error) {
	file, ok := s.Value(PartTokenizer)
	if !ok {
		return nil, guarded{}, nil
	}
	var tables []byte
	if ts, ok := s.(models.TableSource); ok {
		if tables, err = ts.Tables(PartTokenizer); err != nil {
			return nil, guarded{}, err
		}
	}
	if tables != nil {
		g.tok, err = tokenizer.Open(tables)
		g.gate = region.GateOf(tables)
	} else {
		g.tok, err = tokenizer.FromJSON(file)
	}
	if err != nil {
		return nil, guarded{}, fmt.Errorf("%s: %w", s.Path(), err)
	}
	return file, g, nil
}

// use calls f while the tables are mapped. Errors of f without a kind become Invalid.
func (g *guarded) use(f func(*tokenizer.Tokenizer) error) (err error) {
	if g.tok == nil {
		return zcerr.New(zcerr.Invalid, "the pipeline has no tokenizer, it takes token ids").WithHint("put a directory with tokenizer.json or vocab.txt in it")
	}
	if g.gate != nil {
		if err := g.gate.Enter(); err != nil {
			return err
		}
		defer g.gate.Leave()
		defer region.Caught(region.On(), &err)
	}
	if err := f(g.tok); err != nil {
		if zcerr.KindOf(err) == zcerr.Other {
			err = zcerr.New(zcerr.Invalid, "%w", err)
		}
		return err
	}
	return nil
}
