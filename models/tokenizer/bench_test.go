package tokenizer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BenchmarkOfficial is what testdata/bench.py times too: ZCSTORE_TOKENIZER_BENCH names the folder of texts and tokenizers
// that it made. One thread, warm, with offsets and without.
func BenchmarkOfficial(b *testing.B) {
	dir := os.Getenv("ZCSTORE_TOKENIZER_BENCH")
	if dir == "" {
		b.Skip("ZCSTORE_TOKENIZER_BENCH is not set")
	}
	for _, name := range []string{"wordpiece", "bpe", "unigram"} {
		tok := load(b, filepath.Join(dir, name+".json")).WithPadding(Padding{}).WithTruncation(Truncation{})
		for _, file := range []string{"english", "mixed"} {
			text, err := os.ReadFile(filepath.Join(dir, file+".txt"))
			if err != nil {
				b.Fatal(err)
			}
			var paragraphs []string
			size := 0
			for _, p := range strings.Split(string(text), "\n\n") {
				if p != "" {
					paragraphs = append(paragraphs, p)
					size += len(p)
				}
			}
			enc := tok.NewEncoder()
			for kind, call := range map[string]func(string) error{
				"offsets": func(s string) error { _, err := enc.Encode(s); return err },
				"ids":     func(s string) error { _, err := enc.IDs(s); return err },
			} {
				b.Run(name+"/"+file+"/"+kind, func(b *testing.B) {
					b.SetBytes(int64(size))
					b.ReportAllocs()
					for b.Loop() {
						for _, p := range paragraphs {
							if err := call(p); err != nil {
								b.Fatal(err)
							}
						}
					}
				})
			}
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
