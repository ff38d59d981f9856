package tokenizer

// template is the post-processor: it frames a text, or two, with special tokens and sets the type ids.
type template struct{ single, pair pieces }

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
var defaultTemplate = &template{single: pieces{{input: 0}}, pair: pieces{{input: 0}, {input: 1, typeID: 1}}}

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

// assemble fills in the inputs; b is not looked at when there is no place for it.
func (p pieces) assemble(a, b []token) *Encoding {
	n := len(a) + len(b) + p.added()
	e := &Encoding{
		IDs: make([]int32, 0, n), TypeIDs: make([]int32, 0, n), Mask: make([]int32, 0, n), SpecialMask: make([]int32, 0, n),
		Tokens: make([]string, 0, n), Offsets: make([]Span, 0, n), Bytes: make([]Span, 0, n), Input: make([]int8, 0, n),
	}
	for _, x := range p {
		switch x.input {
		case 0:
			e.extend(a, x.typeID, 0)
		case 1:
			e.extend(b, x.typeID, 1)
		default:
			e.extend([]token{{id: x.id, text: x.token}}, x.typeID, -1)
		}
	}
	return e
}

func (e *Encoding) extend(tokens []token, typeID int32, input int8) {
	special := int32(0)
	if input < 0 {
		special = 1
	}
	for _, t := range tokens {
		e.IDs = append(e.IDs, t.id)
		e.TypeIDs = append(e.TypeIDs, typeID)
		e.Mask = append(e.Mask, 1)
		e.SpecialMask = append(e.SpecialMask, special)
		e.Tokens = append(e.Tokens, t.text)
		e.Offsets = append(e.Offsets, t.runes.wide())
		e.Bytes = append(e.Bytes, t.bytes.wide())
		e.Input = append(e.Input, input)
	}
}
