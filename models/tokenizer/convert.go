package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
)

// ConvertVocab gives the tokenizer.json that says what FromVocab makes of a vocab.txt.
func ConvertVocab(vocabTxt []byte, o VocabOptions) ([]byte, error) {
	s, err := readVocabFile(vocabTxt, o)
	if err != nil {
		return nil, fmt.Errorf("vocab.txt: %w", err)
	}
	return s.json()
}

// ConvertMerges gives the tokenizer.json that says what FromMerges makes of a vocab.json and a merges.txt.
func ConvertMerges(vocabJSON, mergesTxt []byte, o MergesOptions) ([]byte, error) {
	s, err := readMergesFiles(vocabJSON, mergesTxt, o)
	if err != nil {
		return nil, err
	}
	return s.json()
}

// json writes a WordPiece, BPE or Unigram tokenizer as a tokenizer.json.
func (s *spec) json() ([]byte, error) {
	model := map[string]any{"type": s.model.Kind}
	switch s.model.Kind {
	case "WordPiece":
		model["unk_token"], model["vocab"] = s.model.Unk, s.vocab
		model["continuing_subword_prefix"], model["max_input_chars_per_word"] = s.model.Prefix, s.model.MaxRunes
	case "BPE":
		model["unk_token"], model["vocab"], model["merges"] = s.model.Unk, s.vocab, s.merges
	case "Unigram":
		vocab := make([][2]any, len(s.pieces))
		for i, p := range s.pieces {
			vocab[i] = [2]any{p.text, p.score}
		}
		model["unk_id"], model["byte_fallback"], model["vocab"] = s.model.UnkID, s.model.ByteFallback, vocab
	}
	added := []map[string]any{}
	for _, a := range s.added {
		added = append(added, map[string]any{"id": a.id, "content": a.content, "special": a.special, "lstrip": a.lstrip, "rstrip": a.rstrip, "single_word": a.singleWord, "normalized": a.normalized})
	}
	slices.SortFunc(added, func(a, b map[string]any) int { return int(a["id"].(int32) - b["id"].(int32)) })
	file := map[string]any{"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added, "model": model}
	for _, part := range []string{"normalizer", "pre_tokenizer", "post_processor", "decoder"} {
		file[part] = s.parts[part]
	}
	return json.Marshal(file)
}
