package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MergesOptions says how a vocab.json and a merges.txt are to be used: the files do not.
type MergesOptions struct {
	AddPrefixSpace bool // a text that does not start with a space gets one
	// Special tokens that the vocabulary has. Mask takes the space before it along. Empty ones are none.
	Unk, Pad, Mask string
	Cls, Sep       string // in front of a text and behind it; with a pair, Sep stands twice between both. Both or neither.
	EndOfText      string // a special token that nothing adds
}

// GPT2Options are the options of GPT-2: no token is added.
func GPT2Options() MergesOptions {
	return MergesOptions{EndOfText: "<|endoftext|>"}
}

// RobertaOptions are the options of RoBERTa and BART.
func RobertaOptions() MergesOptions {
	return MergesOptions{Unk: "<unk>", Pad: "<pad>", Mask: "<mask>", Cls: "<s>", Sep: "</s>"}
}

// FromMerges makes a byte-level BPE tokenizer of a vocab.json and a merges.txt. The result has no truncation and no padding.
func FromMerges(vocabJSON, mergesTxt []byte, o MergesOptions) (*Tokenizer, error) {
	s, err := readMergesFiles(vocabJSON, mergesTxt, o)
	if err != nil {
		return nil, err
	}
	t, err := s.open()
	if err != nil {
		return nil, fmt.Errorf("vocab.json and merges.txt: %w", err)
	}
	return t, nil
}

func readMergesFiles(vocabJSON, mergesTxt []byte, o MergesOptions) (*spec, error) {
	if !utf8.Valid(vocabJSON) {
		return nil, fmt.Errorf("vocab.json: not UTF-8")
	}
	if !utf8.Valid(mergesTxt) {
		return nil, fmt.Errorf("merges.txt: not UTF-8")
	}
	s := &spec{model: modelSpec{Kind: "BPE"}}
	var err error
	s.vocab = readVocab(&object{"file", map[string]json.RawMessage{"vocab": vocabJSON}, &err})
	if err != nil {
		return nil, fmt.Errorf("vocab.json: %w", err)
	}
	for i, line := range strings.Split(string(mergesTxt), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || strings.HasPrefix(line, "#version") {
			continue
		}
		left, right, ok := strings.Cut(line, " ")
		if !ok || strings.Contains(right, " ") {
			return nil, fmt.Errorf("merges.txt: line %d: %q is not two tokens", i+1, line)
		}
		s.merges = append(s.merges, [2]string{left, right})
	}
	for _, text := range []string{o.Cls, o.Pad, o.Sep, o.Unk, o.EndOfText, o.Mask} {
		if text == "" {
			continue
		}
		id, ok := s.vocab[text]
		if !ok {
			return nil, fmt.Errorf("vocab.json: the special token %q is missing", text)
		}
		s.added = append(s.added, addedToken{id: id, content: text, special: true, lstrip: text == o.Mask})
	}
	if o.Unk != "" {
		s.model.Unk = &o.Unk
	}
	s.set("pre_tokenizer", map[string]any{"type": "ByteLevel", "add_prefix_space": o.AddPrefixSpace, "trim_offsets": true, "use_regex": true})
	s.set("decoder", map[string]any{"type": "ByteLevel"})
	if (o.Cls == "") != (o.Sep == "") {
		return nil, fmt.Errorf("options with only one of Cls and Sep")
	}
	if o.Cls != "" {
		s.set("post_processor", map[string]any{"type": "RobertaProcessing", "cls": []any{o.Cls, s.vocab[o.Cls]}, "sep": []any{o.Sep, s.vocab[o.Sep]},
			"trim_offsets": true, "add_prefix_space": o.AddPrefixSpace})
	} else {
		s.set("post_processor", map[string]any{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false})
	}
	return s, nil
}
