package tokenizer

import "slices"

// Encoder encodes one text after the other in memory of its own: once that has grown to the texts, nothing is allocated. It
// is for one goroutine at a time.
type Encoder struct {
	t   *Tokenizer
	w   *work
	out Tokens
}

// Tokens is a text, or a pair, as a model takes it, without padding. All slices but those that were not asked for have
// the same length. They belong to the Encoder and hold until its next call.
type Tokens struct {
	IDs       []int32
	TypeIDs   []int32
	Offsets   []Span // in code points, as Encoding has them
	Bytes     []Span // in bytes
	Input     []int8
	Truncated int // tokens that truncation cut off
}

// NewEncoder makes an encoder with the tokenizer's truncation and special tokens. Padding and overflowing parts are left to
// Encode.
func (t *Tokenizer) NewEncoder() *Encoder {
	c := *t
	c.overflow = false
	return &Encoder{t: &c, w: &work{core: t.core}}
}

// Encode encodes a text. Errors as for Tokenizer.Encode.
func (e *Encoder) Encode(text string) (*Tokens, error) { return e.encode(text, "", false, true) }

// EncodePair encodes a text and its pair.
func (e *Encoder) EncodePair(text, pair string) (*Tokens, error) {
	return e.encode(text, pair, true, true)
}

// IDs encodes a text without offsets, which takes less time.
func (e *Encoder) IDs(text string) ([]int32, error) {
	out, err := e.encode(text, "", false, false)
	if err != nil {
		return nil, err
	}
	return out.IDs, nil
}

func (e *Encoder) encode(text, pair string, isPair, offsets bool) (*Tokens, error) {
	w := e.w
	w.reset()
	if err := w.tokenize(0, text); err != nil {
		return nil, err
	}
	n := len(w.tokens)
	if isPair {
		if err := w.tokenize(1, pair); err != nil {
			return nil, err
		}
	}
	a, b := w.tokens[:n:n], w.tokens[n:]
	frame := e.t.frame(isPair)
	out := &e.out
	out.IDs, out.TypeIDs, out.Offsets, out.Bytes, out.Input = out.IDs[:0], out.TypeIDs[:0], out.Offsets[:0], out.Bytes[:0], out.Input[:0]
	na, nb, err := e.t.keep(len(a), len(b), isPair, frame.added())
	if err != nil {
		return nil, err
	}
	out.Truncated = len(a) + len(b) - na - nb
	if e.t.truncation.Direction == Left {
		a, b = a[len(a)-na:], b[len(b)-nb:]
	} else {
		a, b = a[:na], b[:nb]
	}
	for _, x := range frame {
		switch x.input {
		case 0:
			out.extend(w, a, x, offsets)
		case 1:
			out.extend(w, b, x, offsets)
		default:
			out.IDs, out.TypeIDs, out.Input = append(out.IDs, x.id), append(out.TypeIDs, x.typeID), append(out.Input, -1)
			if offsets {
				out.Offsets, out.Bytes = append(out.Offsets, Span{}), append(out.Bytes, Span{})
			}
		}
	}
	return out, nil
}

func (o *Tokens) extend(w *work, tokens []token, x piece, offsets bool) {
	n := len(tokens)
	ids := grow(&o.IDs, n)
	for i := range tokens {
		ids[i] = tokens[i].id
	}
	for i, to := 0, grow(&o.TypeIDs, n); i < len(to); i++ {
		to[i] = x.typeID
	}
	for i, to := 0, grow(&o.Input, n); i < len(to); i++ {
		to[i] = x.input
	}
	if !offsets {
		return
	}
	text := &w.inputs[x.input]
	inRunes, inBytes := grow(&o.Offsets, n), grow(&o.Bytes, n)
	for i := range tokens {
		t := &tokens[i]
		var runes, bytes span32
		switch {
		case len(w.core.trims) > 0:
			runes, bytes = w.trimmed(i, t, w.name(t), text)
		case text.ascii:
			runes, bytes = t.bytes, t.bytes
		default:
			runes, bytes = text.span(t.bytes), t.bytes
		}
		inRunes[i], inBytes[i] = runes.wide(), bytes.wide()
	}
}

// grow makes a slice longer by n, which are to be filled in.
func grow[T any](s *[]T, n int) []T {
	old := len(*s)
	*s = slices.Grow(*s, n)[:old+n]
	return (*s)[old:]
}
