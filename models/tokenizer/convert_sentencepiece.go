package tokenizer

import (
	"encoding/base64"
	"fmt"
	"strings"
)

// Family is a family of models with a SentencePiece file each, which it uses in its own way.
type Family string

// The families.
const (
	XLMRoberta Family = "xlm-roberta" // sentencepiece.bpe.model
	Albert     Family = "albert"      // spiece.model
	DebertaV2  Family = "deberta-v2"  // spm.model
)

// FamilyOptions are settings of tokenizer_config.json.
type FamilyOptions struct {
	Lowercase    bool
	KeepAccents  bool // of Albert
	SplitByPunct bool // of DebertaV2
}

// ConvertSentencePiece gives the tokenizer.json that transformers makes of a family's SentencePiece model. It differs from what
// the SentencePiece library does on a few odd texts, as the tokenizer.json files that are published with models do.
func ConvertSentencePiece(model []byte, f Family, o FamilyOptions) ([]byte, error) {
	b, err := convertSentencePiece(model, f, o)
	if err != nil {
		return nil, fmt.Errorf("SentencePiece model: %w", err)
	}
	return b, nil
}

func convertSentencePiece(file []byte, f Family, o FamilyOptions) ([]byte, error) {
	m, err := readSentencePiece(file)
	if err != nil {
		return nil, err
	}
	if m.kind != 1 {
		return nil, &UnsupportedError{fmt.Sprintf("unsupported model_type %d of %s", m.kind, f)}
	}
	c := converter{s: &spec{model: modelSpec{Kind: "Unigram"}}, m: m, ids: map[string]int32{}}
	replace := func(pattern map[string]any, by string) map[string]any {
		return map[string]any{"type": "Replace", "pattern": pattern, "content": by}
	}
	text := func(s string) map[string]any { return map[string]any{"String": s} }
	spaces := map[string]any{"Regex": " {2,}"}
	normalizer := func(before, after []any) {
		if len(m.charsmap) > 0 {
			before = append(before, map[string]any{"type": "Precompiled", "precompiled_charsmap": base64.StdEncoding.EncodeToString(m.charsmap)})
		}
		c.s.set("normalizer", map[string]any{"type": "Sequence", "normalizers": append(before, after...)})
	}
	kind := func(name string) any { return map[string]any{"type": name} }
	lower := func(list []any) []any {
		if o.Lowercase {
			list = append(list, kind("Lowercase"))
		}
		return list
	}
	metaspace := map[string]any{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}
	c.s.set("pre_tokenizer", metaspace)
	c.s.set("decoder", metaspace)
	switch f {
	case XLMRoberta: // ids are of fairseq: one more than those of the file, with other special tokens in front
		if len(m.pieces) < 3 {
			return nil, fmt.Errorf("%d pieces", len(m.pieces))
		}
		c.pieces("<s>", "<pad>", "</s>", "<unk>")
		c.file(m.pieces[3:], 0)
		c.pieces("<mask>")
		c.unk("<unk>")
		c.special("<s>", "<pad>", "</s>", "<unk>")
		c.special("<mask>")
		c.s.added[len(c.s.added)-1].lstrip = true
		normalizer(nil, []any{map[string]any{"type": "Strip", "strip_left": false, "strip_right": true}, replace(spaces, "▁")})
		c.frame("<s>", "</s>", []string{"</s>", "</s>"}, 0)
	case Albert:
		c.file(m.pieces, 100)
		c.unk("<unk>")
		c.special("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
		for i := range c.s.added {
			c.s.added[i].lstrip = c.s.added[i].content == "[MASK]"
		}
		list := []any{replace(text("``"), `"`), replace(text("''"), `"`)}
		if !o.KeepAccents {
			list = append(list, kind("NFKD"), kind("StripAccents"))
		}
		normalizer(lower(list), []any{replace(spaces, " ")})
		c.frame("[CLS]", "[SEP]", []string{"[SEP]"}, 1)
	case DebertaV2:
		c.file(m.pieces, 0)
		for _, p := range m.pieces {
			if p.kind == spUnknown {
				c.unk(p.text)
			}
		}
		c.controls()
		c.special("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
		for i := range c.s.added {
			c.s.added[i].normalized = c.s.added[i].content == "[UNK]"
		}
		normalizer(append(lower(nil), map[string]any{"type": "Strip", "strip_left": true, "strip_right": true}), []any{replace(spaces, " ")})
		pre := []any{metaspace}
		if o.SplitByPunct {
			pre = []any{map[string]any{"type": "Punctuation", "behavior": "Isolated"}, metaspace}
		}
		c.s.set("pre_tokenizer", map[string]any{"type": "Sequence", "pretokenizers": pre})
		c.frame("[CLS]", "[SEP]", []string{"[SEP]"}, 1)
	default:
		return nil, &UnsupportedError{fmt.Sprintf("unsupported family %q", f)}
	}
	if c.err != nil {
		return nil, c.err
	}
	return c.s.json()
}

// converter collects the pieces of a Unigram tokenizer and its special tokens.
type converter struct {
	s   *spec
	m   *spModel
	ids map[string]int32
	err error
}

func (c *converter) add(text string, score float64) {
	if _, again := c.ids[text]; !again {
		c.ids[text] = int32(len(c.s.pieces))
	}
	c.s.pieces = append(c.s.pieces, scored{text: text, score: score})
}

// pieces appends pieces without a score.
func (c *converter) pieces(texts ...string) {
	for _, t := range texts {
		c.add(t, 0)
	}
}

// file appends pieces of the file. Those that end in a digit and a comma lose the penalty.
func (c *converter) file(pieces []spPiece, penalty float64) {
	for _, p := range pieces {
		score := float64(p.score)
		if n := len(p.text); penalty != 0 && n >= 2 && p.text[n-1] == ',' && strings.ContainsRune("0123456789", rune(p.text[n-2])) {
			score -= penalty
		}
		c.add(p.text, score)
	}
}

func (c *converter) unk(text string) {
	id, ok := c.ids[text]
	if !ok && c.err == nil {
		c.err = fmt.Errorf("the unknown token %q is missing", text)
	}
	c.s.model.UnkID = &id
}

// controls makes the control pieces and those of the user added tokens.
func (c *converter) controls() {
	for id, p := range c.m.pieces {
		if p.kind == spControl || p.kind == spUser {
			c.s.added = append(c.s.added, addedToken{id: int32(id), content: p.text, special: p.kind == spControl})
		}
	}
}

// special makes pieces special tokens; those that are not there get ids behind the others.
func (c *converter) special(texts ...string) {
	next := int32(len(c.s.pieces))
	for _, a := range c.s.added {
		next = max(next, a.id+1)
	}
	for _, t := range texts {
		id, ok := c.ids[t]
		if !ok {
			id = next
			next++
			c.ids[t] = id
		}
		already := false
		for i := range c.s.added {
			already = already || c.s.added[i].content == t
		}
		if !already {
			c.s.added = append(c.s.added, addedToken{id: id, content: t, special: true})
		}
	}
}

// frame puts first and last around a text, and between between the texts of a pair, of which the second gets a type.
func (c *converter) frame(first, last string, between []string, second int) {
	token := func(text string, kind int) any {
		return map[string]any{"SpecialToken": map[string]any{"id": text, "type_id": kind}}
	}
	input := func(name string, kind int) any {
		return map[string]any{"Sequence": map[string]any{"id": name, "type_id": kind}}
	}
	pair := []any{token(first, 0), input("A", 0)}
	for _, t := range between {
		pair = append(pair, token(t, 0))
	}
	pair = append(pair, input("B", second), token(last, second))
	special := map[string]any{}
	for _, t := range []string{first, last} {
		special[t] = map[string]any{"id": t, "ids": []int32{c.ids[t]}, "tokens": []string{t}}
	}
	c.s.set("post_processor", map[string]any{"type": "TemplateProcessing", "single": []any{token(first, 0), input("A", 0), token(last, 0)}, "pair": pair, "special_tokens": special})
}
