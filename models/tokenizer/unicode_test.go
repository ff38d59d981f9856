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
	w := &work{core: &core{}}
	norm := func(n normalizer, s string) string { return string(n.normalize(w, segmentOf(w, s)).text) }
	nfd := func(s string) string { return norm(unicodeForm{}, s) }
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
		words := countWords(bertPreTokenizer{}, "a"+c+"b")
		fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%s\x00%d%d%d\n", nfd(c), norm(bertNormalizer{stripAccents: true}, c),
			norm(bertNormalizer{lowercase: true}, c), nfd("a"+c+"\u0334"), nfd("a\u0345"+c), cleaned, chinese, [...]int{0, 0, 2, 1}[words])
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// countWords is how many words a pre-tokenizer cuts text into.
func countWords(p preTokenizer, text string) int {
	n := wordCounter(0)
	w := &work{core: &core{pre: []preTokenizer{p, &n}}}
	s := segmentOf(w, text)
	p.split(w, 1, &s, 0, len(text))
	return int(n)
}

// wordCounter counts the words that the stage before it cuts.
type wordCounter int

func (n *wordCounter) split(*work, int, *segment, int, int) { *n++ }

func segmentOf(w *work, text string) segment {
	c := newRuneCounter([]byte(text))
	return w.newSegment(&c)
}

// TestLongRunsOfMarks: unlike norm.NFD, unicodeForm does not break up runs of more than 30 marks.
func TestLongRunsOfMarks(t *testing.T) {
	text := []rune("e")
	for i := range 100 {
		text = append(text, rune(0x300+i%2*0x23)) // classes 230 and 220
	}
	w := &work{core: &core{}}
	s := unicodeForm{}.normalize(w, segmentOf(w, string(text)))
	for i, r := range []rune(string(s.text))[1:] {
		if want := []rune{0x323, 0x300}[i/50]; r != want {
			t.Fatalf("mark %d is U+%04X, want U+%04X", i, r, want)
		}
		if got := s.from[1+2*i]; got != (span32{int32(1 + 2*i), int32(3 + 2*i)}) {
			t.Fatalf("mark %d comes from %v", i, got)
		}
	}
}
