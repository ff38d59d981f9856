package tokenizer

import (
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// SentencePieceOptions says how the pieces of a text are framed; the model's file does not.
type SentencePieceOptions struct {
	Before, After []string // special tokens in front of a text and behind it
}

// FromSentencePiece reads a SentencePiece model, such as spiece.model or sentencepiece.bpe.model, and cuts text as that library
// does, which is not always what a tokenizer.json made of the same model does. Unigram and BPE models are taken.
func FromSentencePiece(model []byte, o SentencePieceOptions) (*Tokenizer, error) {
	t, err := fromSentencePiece(model, o)
	if err != nil {
		return nil, fmt.Errorf("SentencePiece model: %w", err)
	}
	return t, nil
}

// The types of pieces.
const (
	spNormal  = 1
	spUnknown = 2
	spControl = 3
	spUser    = 4
	spUnused  = 5
	spByte    = 6
)

type spPiece struct {
	text  string
	score float32
	kind  int
}

// spModel is what is read of the file.
type spModel struct {
	pieces       []spPiece
	kind         int // 1 Unigram, 2 BPE
	byteFallback bool
	suffixSpace  bool
	charsmap     []byte
	dummyPrefix  bool
	trimSpaces   bool // at the ends, and all but one of several
	escapeSpaces bool
}

func fromSentencePiece(file []byte, o SentencePieceOptions) (*Tokenizer, error) {
	m, err := readSentencePiece(file)
	if err != nil {
		return nil, err
	}
	if m.suffixSpace {
		return nil, &UnsupportedError{"unsupported treat_whitespace_as_suffix"}
	}
	s := &spec{sentencePiece: true}
	ids := map[string]int32{}
	unk := int32(-1)
	for id, p := range m.pieces {
		if !utf8.ValidString(p.text) {
			return nil, fmt.Errorf("piece %d is not UTF-8", id)
		}
		if old, dup := ids[p.text]; dup {
			return nil, fmt.Errorf("pieces %d and %d are both %q", old, id, p.text)
		}
		ids[p.text] = int32(id)
		switch p.kind {
		case spUnknown:
			if unk >= 0 {
				return nil, fmt.Errorf("pieces %d and %d are both the unknown one", unk, id)
			}
			unk = int32(id)
			s.hidden = append(s.hidden, int32(id))
		case spControl, spByte:
			s.hidden = append(s.hidden, int32(id))
		case spUser, spNormal:
		case spUnused:
			return nil, &UnsupportedError{fmt.Sprintf("unsupported unused piece %d", id)}
		default:
			return nil, &UnsupportedError{fmt.Sprintf("piece %d has the unsupported type %d", id, p.kind)}
		}
		switch {
		case p.kind == spControl || p.kind == spUnknown:
			s.added = append(s.added, addedToken{id: int32(id), content: p.text, special: true, unmatched: true})
		case p.kind == spUser && p.text != "":
			// Unigram models prefer them by their scores.
			s.added = append(s.added, addedToken{id: int32(id), content: p.text, verbatim: true, unmatched: m.kind == 1})
			s.user = append(s.user, p.text)
		}
	}
	if unk < 0 {
		return nil, fmt.Errorf("there is no unknown piece")
	}
	switch m.kind {
	case 1:
		s.model = modelSpec{Kind: "Unigram", UnkID: &unk, ByteFallback: m.byteFallback, Single: true}
		s.pieces = m.scores()
	case 2:
		s.model = modelSpec{Kind: "BPE", Unk: &m.pieces[unk].text, ByteFallback: m.byteFallback, Fuse: true}
		s.vocab = ids
		s.ranked = m.rules(ids)
	default:
		return nil, &UnsupportedError{fmt.Sprintf("unsupported model_type %d", m.kind)}
	}
	s.maps = [][]byte{m.charsmap}
	s.set("normalizer", map[string]any{"type": spNormalizerType, "add_dummy_prefix": m.dummyPrefix, "remove_extra_whitespaces": m.trimSpaces,
		"escape_whitespaces": m.escapeSpaces, "user_defined": append([]string{}, s.user...), "precompiled_charsmap": "@0"})
	scheme := "never"
	if m.dummyPrefix {
		scheme = "always"
	}
	s.set("decoder", map[string]any{"type": "Sequence", "decoders": []any{map[string]any{"type": "ByteFallback"},
		map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}}})
	if err := s.frame(ids, o); err != nil {
		return nil, err
	}
	return s.open()
}

// frame puts the special tokens around texts; those of a pair follow each other.
func (s *spec) frame(ids map[string]int32, o SentencePieceOptions) error {
	if len(o.Before)+len(o.After) == 0 {
		return nil
	}
	special := map[string]any{}
	line := func(inputs ...string) (out []any) {
		put := func(tokens []string) {
			for _, text := range tokens {
				out = append(out, map[string]any{"SpecialToken": map[string]any{"id": text, "type_id": 0}})
				special[text] = map[string]any{"id": text, "ids": []int32{ids[text]}, "tokens": []string{text}}
			}
		}
		for _, x := range inputs {
			put(o.Before)
			out = append(out, map[string]any{"Sequence": map[string]any{"id": x, "type_id": 0}})
			put(o.After)
		}
		return out
	}
	for _, text := range slices.Concat(o.Before, o.After) {
		if _, ok := ids[text]; !ok {
			return fmt.Errorf("the special token %q is missing", text)
		}
	}
	single, pair := line("A"), line("A", "B")
	s.set("post_processor", map[string]any{"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special})
	return nil
}

// scores are those of Unigram. A piece that the user defined gets so much that it is always taken.
func (m *spModel) scores() []scored {
	best := float32(math.Inf(-1))
	for _, p := range m.pieces {
		if p.kind == spNormal {
			best = max(best, p.score)
		}
	}
	out := make([]scored, len(m.pieces))
	for i, p := range m.pieces {
		score := float64(p.score)
		if p.kind == spUser {
			score = float64(float32(len(p.text))*best) - 0.1
		}
		out[i] = scored{p.text, score, p.kind == spNormal}
	}
	return out
}

// rules are those of BPE: any two pieces that make a third join, that of the best score first.
func (m *spModel) rules(ids map[string]int32) []mergeRule {
	order := make([]int32, 0, len(m.pieces))
	for id, p := range m.pieces {
		if p.kind == spNormal {
			order = append(order, int32(id))
		}
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		switch x, y := m.pieces[a].score, m.pieces[b].score; {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	var out []mergeRule
	rank, last := uint32(0), float32(math.Inf(1))
	for _, id := range order {
		p := m.pieces[id]
		if len(p.text) > 1<<10 {
			continue // no text has it; trying all its parts would take long
		}
		if p.score != last {
			rank++
			last = p.score
		}
		for i := range p.text {
			if i == 0 {
				continue
			}
			left, ok1 := ids[p.text[:i]]
			right, ok2 := ids[p.text[i:]]
			if ok1 && ok2 && m.pieces[left].kind == spNormal && m.pieces[right].kind == spNormal {
				out = append(out, mergeRule{left, right, id, rank})
			}
		}
	}
	return out
}

// readSentencePiece reads the protocol buffer. Fields that it does not know have no bearing on how text is cut.
func readSentencePiece(b []byte) (*spModel, error) {
	m := &spModel{kind: 1, dummyPrefix: true, trimSpaces: true, escapeSpaces: true}
	err := eachField(b, func(field protowire.Number, n uint64, b []byte) error {
		switch field {
		case 1:
			p := spPiece{kind: spNormal}
			err := eachField(b, func(field protowire.Number, n uint64, b []byte) error {
				switch field {
				case 1:
					p.text = string(b)
				case 2:
					p.score = math.Float32frombits(uint32(n))
				case 3:
					p.kind = int(n)
				}
				return nil
			})
			m.pieces = append(m.pieces, p)
			return err
		case 2:
			return eachField(b, func(field protowire.Number, n uint64, _ []byte) error {
				switch field {
				case 3:
					m.kind = int(n)
				case 24:
					m.suffixSpace = n != 0
				case 35:
					m.byteFallback = n != 0
				}
				return nil
			})
		case 3:
			return eachField(b, func(field protowire.Number, n uint64, b []byte) error {
				switch field {
				case 2:
					m.charsmap = b
				case 3:
					m.dummyPrefix = n != 0
				case 4:
					m.trimSpaces = n != 0
				case 5:
					m.escapeSpaces = n != 0
				}
				return nil
			})
		}
		return nil
	})
	return m, err
}

// eachField calls f with the fields of a message; n is a number, b what has a length.
func eachField(b []byte, f func(field protowire.Number, n uint64, b []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var number uint64
		var data []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			number = uint64(v)
		case protowire.Fixed64Type:
			number, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(field, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(field, number, data); err != nil {
			return err
		}
	}
	return nil
}
