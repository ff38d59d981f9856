package tokenizer

import (
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// TestCharwise holds memos to the normalizers in them, over generated texts: the same text, the same origin of each byte.
func TestCharwise(t *testing.T) {
	for _, name := range []string{"wordpiece-uncased", "wordpiece-cased", "unigram-t5", "unigram-xlmr", "unigram-albert", "unigram-bytes", "bpe-qwen2", "bpe-clip", "bpe-llama2"} {
		t.Run(name, func(t *testing.T) {
			tok := load(t, golden.Path(t, "tokenizers", name, "tokenizer.json"))
			var memos []*memo
			for _, n := range flat(tok.core.normalizer, nil) {
				if m, ok := n.(*memo); ok {
					memos = append(memos, m)
				}
			}
			m := newTextMaker(t)
			m.x = 7
			w, v := &work{core: tok.core}, &work{core: tok.core}
			for range 20_000 {
				text := m.text()
				for _, n := range memos {
					a, b := segmentOf(w, text), segmentOf(v, text)
					a = n.normalize(w, a)
					for _, x := range n.stages {
						b = x.normalize(v, b)
					}
					if string(a.text) != string(b.text) {
						t.Fatalf("%q: got %q, want %q", text, a.text, b.text)
					}
					for i := range a.text {
						if got, want := a.span(i, i+1), b.span(i, i+1); got != want {
							t.Fatalf("%q: byte %d of %q comes from %v, want %v", text, i, a.text, got, want)
						}
					}
				}
			}
		})
	}
}
