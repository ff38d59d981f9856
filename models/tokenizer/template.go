package tokenizer

import "unicode/utf8"

// template is the post-processor: it frames a text, or two, with special tokens and sets the type ids.
type template struct{ single, pair, singleBare, pairBare pieces }

func newTemplate(single, pair pieces) *template {
	return &template{single, pair, single.withoutSpecial(), pair.withoutSpecial()}
}

// pieces is one line of a template. Each input stands there once.
type pieces []piece

// piece is a special token, or a place for an input.
type piece struct {
	input  int8 // 0 and 1 for the texts, -1 for a special token
	typeID int32
	id     int32
	token  string
}

// defaultTemplate is what happens without a post-processor.
var defaultTemplate = newTemplate(pieces{{input: 0}}, pieces{{input: 0}, {input: 1, typeID: 1}})

// added is the number of special tokens.
func (p pieces) added() int {
	n := 0
	for _, x := range p {
		if x.input < 0 {
			n++
		}
	}
	return n
}

func (p pieces) withoutSpecial() pieces {
	var out pieces
	for _, x := range p {
		if x.input >= 0 {
			out = append(out, x)
		}
	}
	return out
}

// assembler makes encodings of tokens.
type assembler struct {
	w     *work
	frame pieces
}

// assemble fills in the inputs; b is not looked at when there is no place for it.
func (m *assembler) assemble(a, b []token) *Encoding {
	n := len(a) + len(b) + m.frame.added()
	e := &Encoding{
		IDs: make([]int32, 0, n), TypeIDs: make([]int32, 0, n), Mask: make([]int32, 0, n), SpecialMask: make([]int32, 0, n),
		Tokens: make([]string, 0, n), Offsets: make([]Span, 0, n), Bytes: make([]Span, 0, n), Input: make([]int8, 0, n),
	}
	var names []byte // of all tokens, so that they are one allocation
	ends := make([]int32, 0, n)
	for _, x := range m.frame {
		switch x.input {
		case 0:
			names, ends = m.extend(e, a, x, names, ends)
		case 1:
			names, ends = m.extend(e, b, x, names, ends)
		default:
			e.add(x.id, x.typeID, span32{}, span32{}, -1)
			names = append(names, x.token...)
			ends = append(ends, int32(len(names)))
		}
	}
	all, start := string(names), int32(0)
	for _, end := range ends {
		e.Tokens = append(e.Tokens, all[start:end])
		start = end
	}
	return e
}

func (m *assembler) extend(e *Encoding, tokens []token, x piece, names []byte, ends []int32) ([]byte, []int32) {
	text := &m.w.inputs[x.input]
	for i := range tokens {
		t := &tokens[i]
		name := m.w.name(t)
		runes, bytes := m.w.trimmed(i, t, name, text)
		e.add(t.id, x.typeID, runes, bytes, x.input)
		names = append(names, name...)
		ends = append(ends, int32(len(names)))
	}
	return names, ends
}

func (e *Encoding) add(id, typeID int32, runes, bytes span32, input int8) {
	special := int32(0)
	if input < 0 {
		special = 1
	}
	e.IDs = append(e.IDs, id)
	e.TypeIDs = append(e.TypeIDs, typeID)
	e.Mask = append(e.Mask, 1)
	e.SpecialMask = append(e.SpecialMask, special)
	e.Offsets = append(e.Offsets, runes.wide())
	e.Bytes = append(e.Bytes, bytes.wide())
	e.Input = append(e.Input, input)
}

// name is the text of a token, in the work's memory or the tables.
func (w *work) name(t *token) []byte {
	if t.text >= 0 {
		at := w.literals[t.text]
		return w.texts[at.start:at.end]
	}
	name, _ := w.core.name(t.id)
	return name
}

// trimmed is where a token stands, in code points and bytes, after the post-processors that trim.
func (w *work) trimmed(i int, t *token, name []byte, text *runeCounter) (runes, bytes span32) {
	bytes = t.bytes
	whole := text.span(bytes)
	runes = whole
	for _, p := range w.core.trims {
		runes = p.apply(i, name, runes)
	}
	// The bytes of the same characters.
	for at := whole.start; at < runes.start; at++ {
		_, n := utf8.DecodeRune(text.text[bytes.start:])
		bytes.start += int32(n)
	}
	for at := whole.end; at > runes.end; at-- {
		_, n := utf8.DecodeLastRune(text.text[:bytes.end])
		bytes.end -= int32(n)
	}
	return runes, bytes
}
