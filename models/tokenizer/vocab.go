package tokenizer

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// VocabOptions says how a vocab.txt is to be used. DefaultVocabOptions are those of an uncased BERT.
type VocabOptions struct {
	Lowercase    bool
	StripAccents *bool // nil: as Lowercase
	Chinese      bool  // ideographs are words of their own
	CleanText    bool
	Unk, Sep     string
	Pad, Cls     string
	Mask         string
}

// DefaultVocabOptions are the options of an uncased BERT.
func DefaultVocabOptions() VocabOptions {
	return VocabOptions{Lowercase: true, Chinese: true, CleanText: true, Unk: "[UNK]", Sep: "[SEP]", Pad: "[PAD]", Cls: "[CLS]", Mask: "[MASK]"}
}

// VocabOptionsFromConfig reads the options from a tokenizer_config.json; what it does not say is as in an uncased
// BERT. Fields that do not bear on vocab.txt are ignored.
func VocabOptionsFromConfig(tokenizerConfig []byte) (VocabOptions, error) {
	o := DefaultVocabOptions()
	fail := func(err error) (VocabOptions, error) { return o, fmt.Errorf("tokenizer_config.json: %w", err) }
	var err error
	c := readObject("file", tokenizerConfig, &err)
	if basic := valueOr(c, "do_basic_tokenize", true); !basic {
		c.unsupported("do_basic_tokenize false is not supported")
	}
	if never, ok := c.take("never_split"); ok && string(never) != "[]" {
		c.unsupported("never_split is not supported")
	}
	o.Lowercase = valueOr(c, "do_lower_case", o.Lowercase)
	o.Chinese = valueOr(c, "tokenize_chinese_chars", o.Chinese)
	o.CleanText = valueOr(c, "clean_text", o.CleanText)
	if strip, ok := c.take("strip_accents"); ok {
		o.StripAccents = new(bool)
		decodeInto(c, "strip_accents", strip, o.StripAccents)
	}
	for key, to := range map[string]*string{"unk_token": &o.Unk, "sep_token": &o.Sep, "pad_token": &o.Pad, "cls_token": &o.Cls, "mask_token": &o.Mask} {
		raw, ok := c.take(key)
		if !ok {
			continue
		}
		if raw[0] == '{' { // an AddedToken
			var t struct {
				Content string `json:"content"`
			}
			decodeInto(c, key, raw, &t)
			*to = t.Content
		} else {
			decodeInto(c, key, raw, to)
		}
	}
	if err != nil {
		return fail(err)
	}
	return o, nil
}

// FromVocab makes a BERT tokenizer of a vocab.txt: one token a line, the id is the line number from 0. The result has
// no truncation and no padding. Errors: text that is not UTF-8, a line that stands there twice, a special token that
// is missing.
func FromVocab(vocabTxt []byte, o VocabOptions) (*Tokenizer, error) {
	s, err := readVocabFile(vocabTxt, o)
	if err == nil {
		var t *Tokenizer
		if t, err = s.open(); err == nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("vocab.txt: %w", err)
}

func readVocabFile(file []byte, o VocabOptions) (*spec, error) {
	if !utf8.Valid(file) {
		return nil, fmt.Errorf("not UTF-8")
	}
	vocab := map[string]int32{}
	for i, line := range strings.Split(strings.TrimSuffix(string(file), "\n"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if first, dup := vocab[line]; dup {
			return nil, fmt.Errorf("lines %d and %d are both %q", first+1, i+1, line)
		}
		vocab[line] = int32(i)
	}
	strip := o.Lowercase
	if o.StripAccents != nil {
		strip = *o.StripAccents
	}
	if _, ok := vocab[o.Unk]; !ok {
		return nil, fmt.Errorf("the unknown token %q is not in the vocabulary", o.Unk)
	}
	s := &spec{vocab: vocab, model: modelSpec{Kind: "WordPiece", Unk: &o.Unk, Prefix: "##", MaxRunes: 100}}
	seen := map[string]bool{}
	for _, text := range []string{o.Pad, o.Unk, o.Cls, o.Sep, o.Mask} {
		id, ok := vocab[text]
		if !ok {
			return nil, fmt.Errorf("the special token %q is missing", text)
		}
		if !seen[text] {
			s.added = append(s.added, addedToken{id: id, content: text, special: true})
		}
		seen[text] = true
	}
	s.set("normalizer", map[string]any{"type": "BertNormalizer", "clean_text": o.CleanText, "handle_chinese_chars": o.Chinese, "strip_accents": strip, "lowercase": o.Lowercase})
	s.set("pre_tokenizer", map[string]any{"type": "BertPreTokenizer"})
	s.set("post_processor", map[string]any{"type": "BertProcessing", "cls": []any{o.Cls, vocab[o.Cls]}, "sep": []any{o.Sep, vocab[o.Sep]}})
	s.set("decoder", map[string]any{"type": "WordPiece", "prefix": "##", "cleanup": true})
	return s, nil
}
