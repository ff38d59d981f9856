package tokenizer

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// TestGoldenSentencePiece holds models against what the sentencepiece library gives.
func TestGoldenSentencePiece(t *testing.T) {
	for _, name := range []string{"bpe-gemma", "bpe-llama2", "bpe-llama2-first", "unigram-albert", "unigram-bytes", "unigram-t5", "unigram-xlmr"} {
		t.Run(name, func(t *testing.T) {
			corpus := rows[row](t, golden.Path(t, "tokenizers", "corpus.jsonl"))
			b, err := os.ReadFile(golden.Path(t, "tokenizers", name, "spiece.model"))
			if err != nil {
				t.Fatal(err)
			}
			tok, err := FromSentencePiece(b, SentencePieceOptions{})
			if err != nil {
				t.Fatal(err)
			}
			n, bad := 0, 0
			for _, w := range rows[row](t, golden.Path(t, "tokenizers", name, "spiece.jsonl")) {
				e, err := tok.Encode(corpus[w.ID].Text)
				if err != nil {
					t.Fatal(err)
				}
				checkEncoding(t, e, corpus[w.ID].Text)
				if !slices.Equal(e.IDs, w.IDs) {
					if bad++; bad <= 3 {
						t.Errorf("text %d: %q\n got %v\nwant %v", w.ID, corpus[w.ID].Text, e.IDs, w.IDs)
					}
				}
				n++
			}
			if bad > 0 || n < 500 {
				t.Errorf("%d of %d differ", bad, n)
			}
		})
	}
}

// TestFuzzSentencePiece holds 2,000 generated texts per model against the sentencepiece library, by hashes of blocks of 100.
func TestFuzzSentencePiece(t *testing.T) {
	b, err := os.ReadFile("testdata/sentencepiece.json")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]string
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != 7 {
		t.Fatalf("%d models", len(want))
	}
	for _, name := range sortedKeys(want) {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(golden.Path(t, "tokenizers", name, "spiece.model"))
			if err != nil {
				t.Fatal(err)
			}
			tok, err := FromSentencePiece(b, SentencePieceOptions{})
			if err != nil {
				t.Fatal(err)
			}
			m, enc := newTextMaker(t), tok.NewEncoder()
			for i, hash := range strings.Fields(want[name]) {
				m.x = uint64(1000003*i + len(name))
				h := sha256.New()
				for range 100 {
					// The library's Python binding ends a text at a zero byte.
					ids, err := enc.IDs(strings.ReplaceAll(m.text(), "\x00", ""))
					if err != nil {
						t.Fatal(err)
					}
					for i, id := range ids {
						if i > 0 {
							h.Write([]byte(","))
						}
						fmt.Fprint(h, id)
					}
					h.Write([]byte("\n"))
				}
				if got := fmt.Sprintf("%x", h.Sum(nil))[:8]; got != hash {
					t.Errorf("block %d differs", i)
				}
			}
		})
	}
}
