package tokenizer

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
	w.tokens, w.texts = w.tokens[:0], w.texts[:0]
	w.noRunes = !offsets
	if err := w.tokenize(text); err != nil {
		return nil, err
	}
	n := len(w.tokens)
	if isPair {
		if err := w.tokenize(pair); err != nil {
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
			out.extend(w, a, x, text, offsets)
		case 1:
			out.extend(w, b, x, pair, offsets)
		default:
			out.IDs, out.TypeIDs, out.Input = append(out.IDs, x.id), append(out.TypeIDs, x.typeID), append(out.Input, -1)
			if offsets {
				out.Offsets, out.Bytes = append(out.Offsets, Span{}), append(out.Bytes, Span{})
			}
		}
	}
	return out, nil
}

func (o *Tokens) extend(w *work, tokens []token, x piece, text string, offsets bool) {
	trims := offsets && len(w.core.trims) > 0
	for i := range tokens {
		t := &tokens[i]
		o.IDs, o.TypeIDs, o.Input = append(o.IDs, t.id), append(o.TypeIDs, x.typeID), append(o.Input, x.input)
		if !offsets {
			continue
		}
		runes, bytes := t.runes, t.bytes
		if trims {
			runes, bytes = w.trimmed(i, t, w.name(t), text)
		}
		o.Offsets, o.Bytes = append(o.Offsets, runes.wide()), append(o.Bytes, bytes.wide())
	}
}
