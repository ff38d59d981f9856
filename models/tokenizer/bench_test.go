package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkEncoder encodes the texts of a folder that test/bench/tokenizers made, which ZCSTORE_TOKENIZER_BENCH names. That
// benchmark has the official package beside it; this one is for profiles.
func BenchmarkEncoder(b *testing.B) {
	dir := os.Getenv("ZCSTORE_TOKENIZER_BENCH")
	if dir == "" {
		b.Skip("ZCSTORE_TOKENIZER_BENCH is not set")
	}
	for _, name := range []string{"wordpiece", "bpe", "unigram"} {
		tok := load(b, filepath.Join(dir, name+".tokenizer.json")).WithTruncation(Truncation{})
		for _, file := range []string{"english", "mixed", "corpus"} {
			raw, err := os.ReadFile(filepath.Join(dir, file+".json"))
			if err != nil {
				b.Fatal(err)
			}
			var texts []string
			if err := json.Unmarshal(raw, &texts); err != nil {
				b.Fatal(err)
			}
			size := 0
			for _, text := range texts {
				size += len(text)
			}
			b.Run(name+"/"+file, func(b *testing.B) {
				enc := tok.NewEncoder()
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					for _, text := range texts {
						if _, err := enc.Encode(text); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

// BenchmarkOpen opens the compiled form of a vocabulary of 150,000 pieces: a tokenizer that the fuzz alphabet spells out.
func BenchmarkOpen(b *testing.B) {
	compiled := bigVocabulary(b, 150_000).Compiled()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Open(compiled); err != nil {
			b.Fatal(err)
		}
	}
}

// bigVocabulary is a byte-level tokenizer of n tokens: all bytes, and words that are joined from them.
func bigVocabulary(t testing.TB, n int) *Tokenizer {
	s := &spec{vocab: map[string]int32{}, model: modelSpec{Kind: "BPE"}}
	for r, b := range alphabet {
		s.vocab[string(r)] = int32(b)
	}
	queue := []string{""}
	for len(s.vocab) < n {
		word := queue[0]
		queue = queue[1:]
		for c := 'a'; c <= 'z' && len(s.vocab) < n; c++ {
			longer := word + string(c)
			if word != "" {
				s.vocab[longer] = int32(len(s.vocab))
				s.merges = append(s.merges, [2]string{word, string(c)})
			}
			queue = append(queue, longer)
		}
	}
	s.set("pre_tokenizer", map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true})
	s.set("decoder", map[string]any{"type": "ByteLevel"})
	tok, err := s.open()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}
