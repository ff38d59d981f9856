package tokenizer

import (
	"reflect"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// kinds is one golden tokenizer of each kind of model, those of the tree first.
var kinds = []string{"wordpiece-uncased", "wordpiece-cased", "bpe-gpt2", "bpe-roberta", "bpe-llama3", "bpe-llama2", "bpe-gemma", "bpe-clip", "unigram-xlmr", "unigram-t5", "unigram-bytes", "unigram-albert", "wordlevel"}

// eachKind runs a test for each; those whose files are not there are skipped.
func eachKind(t *testing.T, test func(t *testing.T, tok *Tokenizer)) {
	for _, name := range kinds {
		t.Run(name, func(t *testing.T) {
			path := golden.Path
			if strings.HasPrefix(name, "wordpiece") {
				path = golden.Tree
			}
			test(t, load(t, path(t, "tokenizers", name, "tokenizer.json")).WithPadding(Padding{}))
		})
	}
}

// TestEncoder: an encoder gives what Encode gives, in memory that it keeps.
func TestEncoder(t *testing.T) {
	corpus := rows[row](t, golden.Tree(t, "tokenizers", "corpus.jsonl"))
	eachKind(t, func(t *testing.T, tok *Tokenizer) {
		for _, tok := range []*Tokenizer{tok, tok.WithTruncation(Truncation{MaxLength: 7, Direction: Left}), tok.WithSpecialTokens(false)} {
			enc := tok.NewEncoder()
			for i := range 300 {
				a, b := corpus[i].Text, corpus[len(corpus)-1-i].Text
				for _, pair := range [][]string{nil, {b}} {
					want, err := tok.Encode(a, pair...)
					if err != nil {
						t.Fatal(err)
					}
					got, err := enc.Encode(a)
					if pair != nil {
						got, err = enc.EncodePair(a, b)
					}
					if err != nil {
						t.Fatal(err)
					}
					full := &Encoding{IDs: got.IDs, TypeIDs: got.TypeIDs, Offsets: got.Offsets, Bytes: got.Bytes, Input: got.Input, Truncated: got.Truncated}
					want.Tokens, want.Mask, want.SpecialMask = nil, nil, nil
					if len(want.IDs) != len(full.IDs) || len(want.IDs) > 0 && !reflect.DeepEqual(full, want) {
						t.Fatalf("%q %q: got %v, want %v", a, pair, full, want)
					}
				}
			}
			if _, err := enc.IDs(corpus[0].Text); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestNoAllocations: an encoder that has seen a text allocates nothing for it.
func TestNoAllocations(t *testing.T) {
	corpus := rows[row](t, golden.Tree(t, "tokenizers", "corpus.jsonl"))
	eachKind(t, func(t *testing.T, tok *Tokenizer) {
		enc := tok.NewEncoder()
		all := func() {
			for i := range 200 {
				if _, err := enc.Encode(corpus[i*5].Text); err != nil {
					t.Fatal(err)
				}
			}
		}
		all()
		if n := testing.AllocsPerRun(5, all); n > 0 {
			t.Errorf("%v allocations for 200 texts", n)
		}
	})
}
