package tokenizer

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"unicode"
)

// TestEveryCodePoint holds normaliser and pre-tokenizer to what tokenizers 0.22.2 does with each code point: a hash
// over its answers for all of them. It fails when a newer Go or x/text moves a boundary.
func TestEveryCodePoint(t *testing.T) {
	const want = "2655d4785960622c72b605c903984f731054c5c92509bc971ae5fc364bacb4d6"
	norm := func(n bertNormalizer, s string) string {
		q := newSequence(s)
		n.normalize(&q)
		return string(q.runes)
	}
	nfd := func(s string) string {
		q := newSequence(s)
		decompose(&q)
		return string(q.runes)
	}
	h := sha256.New()
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if r >= 0xd800 && r < 0xe000 {
			continue
		}
		c := string(r)
		cleaned, chinese := 0, 0
		switch norm(bertNormalizer{cleanText: true}, c) {
		case c:
		case " ":
			cleaned = 1
		case "":
			cleaned = 2
		default:
			t.Fatalf("U+%04X is cleaned to something else", r)
		}
		if norm(bertNormalizer{chinese: true}, c) != c {
			chinese = 1
		}
		words := 0
		bertPreTokenizer{}.split(newSequence("a"+c+"b"), func(sequence) { words++ })
		fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%s\x00%d%d%d\n", nfd(c), norm(bertNormalizer{stripAccents: true}, c),
			norm(bertNormalizer{lowercase: true}, c), nfd("a"+c+"\u0334"), nfd("a\u0345"+c), cleaned, chinese, [...]int{0, 0, 2, 1}[words])
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLongRunsOfMarks: unlike norm.NFD, decompose does not break up runs of more than 30 marks.
func TestLongRunsOfMarks(t *testing.T) {
	s := newSequence("e")
	for i := range 100 {
		s.runes = append(s.runes, rune(0x300+i%2*0x23)) // classes 230 and 220
		s.from = append(s.from, span32{int32(1 + 2*i), int32(3 + 2*i)})
	}
	decompose(&s)
	for i, r := range s.runes[1:] {
		if want := []rune{0x323, 0x300}[i/50]; r != want {
			t.Fatalf("mark %d is U+%04X, want U+%04X", i, r, want)
		}
		if s.from[i+1] != (span32{int32(1 + 2*i), int32(3 + 2*i)}) {
			t.Fatalf("mark %d comes from %v", i, s.from[i+1])
		}
	}
}
