// Package tokenizer turns text into token ids and back, exactly as the Hugging Face tokenizers library does.
//
// # Reading a tokenizer
//
// [FromJSON] reads a tokenizer.json, [FromVocab] a BERT vocab.txt. A component that is not implemented is an error
// that names it, never a guess: a tokenizer that is nearly right gives wrong results that nobody notices.
//
// # Encoding
//
// Text goes through five small pieces: added tokens are cut out, the rest is normalised, split into words, split into
// pieces by the model, and framed by the post-processor. Truncation and padding come from the file and can be
// replaced with [Tokenizer.WithTruncation] and [Tokenizer.WithPadding].
//
// Text need not be UTF-8: each invalid byte counts as one U+FFFD, of one byte and one code point.
package tokenizer

import (
	"fmt"
	"math"
	"strings"
)

// Tokenizer is immutable and safe for concurrent use. The With methods return changed copies that share its tables.
type Tokenizer struct {
	core *core

	truncation Truncation
	padding    Padding
	noSpecial  bool
	overflow   bool
}

// Span is a half-open range.
type Span struct{ Start, End int }

// Encoding is one text, or a pair, as a model takes it. All slices have the same length. Tokens that the
// post-processor or padding added have empty spans at 0.
type Encoding struct {
	IDs         []int32
	TypeIDs     []int32 // segment of each token, as the post-processor sets it
	Mask        []int32 // 1, or 0 for padding
	SpecialMask []int32 // 1 for tokens that the post-processor or padding added
	Tokens      []string
	Offsets     []Span // in code points of the text that the token came from
	Bytes       []Span // the same in bytes
	Input       []int8 // 0 for the text, 1 for its pair, -1 for tokens that were added

	Truncated   int        // tokens that truncation cut off
	Overflowing []Encoding // the parts cut off, see WithOverflow; they have none of their own
}

// Direction is a side of a sequence.
type Direction uint8

// The sides. Truncation to the right keeps the start of a text; padding to the right stands after it.
const (
	Right Direction = iota
	Left
)

// Strategy says which text of a pair is cut.
type Strategy uint8

// The strategies.
const (
	LongestFirst Strategy = iota
	OnlyFirst
	OnlySecond
)

// Truncation limits the length of an encoding. The zero value does not.
type Truncation struct {
	MaxLength int // in tokens, those of the post-processor included; 0 is no limit
	Stride    int // tokens that each overflowing part repeats of the one before
	Strategy  Strategy
	Direction Direction // the side that is cut off
}

// PadStrategy says to what length encodings are padded.
type PadStrategy uint8

// The strategies.
const (
	NoPadding  PadStrategy = iota
	PadLongest             // the longest of the batch
	PadFixed               // Padding.Length
)

// MaxPadding is the largest padded length in tokens that is taken, so that a file cannot ask for all of memory.
const MaxPadding = 1 << 20

// Padding makes encodings equally long. The zero value does not.
type Padding struct {
	Strategy   PadStrategy
	Length     int // of PadFixed; longer encodings stay as they are
	MultipleOf int // the length is rounded up to a multiple of it; 0 and 1 do not round
	Direction  Direction
	ID         int32
	TypeID     int32
	Token      string
}

// Truncation is the truncation in force: of the file, unless it was replaced.
func (t *Tokenizer) Truncation() Truncation { return t.truncation }

// Padding is the padding in force: of the file, unless it was replaced.
func (t *Tokenizer) Padding() Padding { return t.padding }

// WithTruncation is a copy with this truncation instead. What is impossible, as a stride over the length, is an error
// of Encode.
func (t *Tokenizer) WithTruncation(tr Truncation) *Tokenizer {
	c := *t
	c.truncation = tr
	return &c
}

// WithPadding is a copy with this padding instead. To pad to the longest with the pad token of the file:
//
//	p := t.Padding()
//	p.Strategy = tokenizer.PadLongest
//	t = t.WithPadding(p)
func (t *Tokenizer) WithPadding(p Padding) *Tokenizer {
	c := *t
	c.padding = p
	return &c
}

// WithSpecialTokens is a copy that adds the tokens of the post-processor, as a new Tokenizer does, or does not.
func (t *Tokenizer) WithSpecialTokens(add bool) *Tokenizer {
	c := *t
	c.noSpecial = !add
	return &c
}

// WithOverflow is a copy that fills Encoding.Overflowing, or does not, as a new Tokenizer. The parts of a pair are
// all combinations of the parts of both texts, so they can be many; over 16 Mi tokens in all are an error of Encode.
func (t *Tokenizer) WithOverflow(keep bool) *Tokenizer {
	c := *t
	c.overflow = keep
	return &c
}

// Encode encodes a text, or a text and its pair. Padding is applied as for a batch of one. Errors: more than one pair,
// text over 512 MiB, a word that is not in a vocabulary without an unknown token, truncation that leaves no room for the special tokens or does not fit its stride.
func (t *Tokenizer) Encode(text string, pair ...string) (*Encoding, error) {
	if len(pair) > 1 {
		return nil, fmt.Errorf("tokenizer: %d texts, at most two are encoded together", 1+len(pair))
	}
	e, err := t.encode(text, pair)
	if err != nil {
		return nil, err
	}
	return e, t.pad([]*Encoding{e})
}

// EncodeBatch encodes texts and pads them to one length, if there is padding. Errors as for Encode, with the index.
func (t *Tokenizer) EncodeBatch(texts []string) ([]*Encoding, error) {
	return t.batch(len(texts), func(i int) (*Encoding, error) { return t.encode(texts[i], nil) })
}

// EncodePairs is EncodeBatch for pairs of texts.
func (t *Tokenizer) EncodePairs(pairs [][2]string) ([]*Encoding, error) {
	return t.batch(len(pairs), func(i int) (*Encoding, error) { return t.encode(pairs[i][0], pairs[i][1:]) })
}

func (t *Tokenizer) batch(n int, encode func(i int) (*Encoding, error)) ([]*Encoding, error) {
	out := make([]*Encoding, n)
	for i := range out {
		var err error
		if out[i], err = encode(i); err != nil {
			return nil, fmt.Errorf("text %d: %w", i, err)
		}
	}
	return out, t.pad(out)
}

// encode does everything but padding.
func (t *Tokenizer) encode(text string, pair []string) (*Encoding, error) {
	w := t.core.work()
	defer t.core.works.Put(w)
	if err := w.tokenize(0, text); err != nil {
		return nil, err
	}
	n := len(w.tokens)
	if len(pair) == 1 {
		if err := w.tokenize(1, pair[0]); err != nil {
			return nil, err
		}
	}
	a, b := w.tokens[:n:n], w.tokens[n:]
	frame := t.frame(len(pair) == 1)
	parts, err := t.truncate(a, b, len(pair) == 1, frame.added())
	if err != nil {
		return nil, err
	}
	build := assembler{w, frame}
	e := build.assemble(parts.a[0], parts.b[0])
	e.Truncated = len(a) + len(b) - len(parts.a[0]) - len(parts.b[0])
	if t.overflow {
		err = parts.rest(frame, func(a, b []token) { e.Overflowing = append(e.Overflowing, *build.assemble(a, b)) })
	}
	return e, err
}

// frame is the template for one text or two, with or without special tokens.
func (t *Tokenizer) frame(pair bool) pieces {
	f := defaultTemplate
	if t.core.post != nil {
		f = t.core.post
	}
	switch {
	case pair && t.noSpecial:
		return f.pairBare
	case pair:
		return f.pair
	case t.noSpecial:
		return f.singleBare
	}
	return f.single
}

// work is memory for a call.
func (c *core) work() *work {
	if w, ok := c.works.Get().(*work); ok {
		w.reset()
		return w
	}
	return &work{core: c}
}

// tokenize appends the tokens of one of the texts, without those of the post-processor, to w.tokens.
func (w *work) tokenize(input int, text string) error {
	if len(text) > math.MaxInt32/4 {
		return fmt.Errorf("tokenizer: text of %d bytes, the limit is 512 MiB", len(text))
	}
	w.inputs[input] = newRuneCounter(bytesOf(text))
	if text == "" {
		return nil
	}
	first := len(w.tokens)
	w.core.added.extract(w, w.newSegment(&w.inputs[input]))
	for i := first; i < len(w.tokens); i++ {
		if w.tokens[i].id < 0 {
			return fmt.Errorf("tokenizer: bytes %d to %d are not in the vocabulary, and it has no unknown token", w.tokens[i].bytes.start, w.tokens[i].bytes.end)
		}
	}
	return nil
}

// Decode makes text of ids. Ids that are not in the vocabulary are left out, and so are special tokens if skipSpecial.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	tokens := make([]string, 0, len(ids))
	for _, id := range ids {
		s, ok := t.Token(id)
		if !ok || skipSpecial && t.core.added.isSpecial(id) {
			continue
		}
		tokens = append(tokens, s)
	}
	if t.core.decoder == nil {
		return strings.Join(tokens, " ")
	}
	return strings.Join(t.core.decoder.decode(tokens), "")
}

// VocabSize is the number of different tokens, added ones included.
func (t *Tokenizer) VocabSize() int { return t.core.vocab.count + t.core.added.beyond }

// ID is the id of a token.
func (t *Tokenizer) ID(token string) (id int32, ok bool) {
	if id, ok := t.core.added.ids[token]; ok {
		return id, true
	}
	return t.core.vocab.id(token)
}

// Token is the token of an id.
func (t *Tokenizer) Token(id int32) (token string, ok bool) {
	b, ok := t.core.name(id)
	return string(b), ok
}

// name is the text of a token, in the tables.
func (c *core) name(id int32) ([]byte, bool) {
	if i, ok := c.added.byID[id]; ok {
		return c.added.texts.at(i), true
	}
	return c.vocab.name(id)
}
