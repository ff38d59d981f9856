package tokenizer

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// wordPiece splits a word greedily into the longest pieces of its vocabulary; those that do not start the word stand
// in the vocabulary with a prefix. A word that does not divide, or is too long, is one unknown token.
type wordPiece struct {
	ids    map[string]int32
	tokens map[int32]string
	inner  map[string]int32 // the pieces that continue a word, by their text without the prefix

	unk      token
	maxRunes int // of a word
	longest  int // piece, in runes
}

func newWordPiece(vocab map[string]int32, unk, prefix string, maxRunes int) (*wordPiece, error) {
	m := &wordPiece{ids: vocab, tokens: make(map[int32]string, len(vocab)), inner: map[string]int32{}, maxRunes: maxRunes}
	for s, id := range vocab {
		if other, dup := m.tokens[id]; dup {
			return nil, fmt.Errorf("vocabulary: %q and %q both have the id %d", min(s, other), max(s, other), id)
		}
		m.tokens[id] = s
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			m.inner[rest] = id
		}
		m.longest = max(m.longest, utf8.RuneCountInString(s))
	}
	id, ok := vocab[unk]
	if !ok {
		return nil, fmt.Errorf("the unknown token %q is not in the vocabulary", unk)
	}
	m.unk = token{id: id, text: unk}
	return m, nil
}

func (m *wordPiece) tokenize(word sequence, out []token) []token {
	unknown := m.unk
	unknown.bytes = word.bytes(0, len(word.runes))
	if len(word.runes) > m.maxRunes {
		return append(out, unknown)
	}
	text := string(word.runes)
	var space [129]int
	at := space[:0] // where each rune of text starts
	for i := range text {
		at = append(at, i)
	}
	at = append(at, len(text))

	first := len(out)
	pieces := m.ids
	for start := 0; start < len(word.runes); {
		end := min(len(word.runes), start+m.longest)
		for ; end > start; end-- {
			if id, ok := pieces[text[at[start]:at[end]]]; ok {
				out = append(out, token{id: id, text: m.tokens[id], bytes: word.bytes(start, end)})
				break
			}
		}
		if end == start {
			return append(out[:first], unknown)
		}
		start = end
		pieces = m.inner
	}
	return out
}

func (m *wordPiece) id(token string) (int32, bool) { id, ok := m.ids[token]; return id, ok }
func (m *wordPiece) token(id int32) (string, bool) { s, ok := m.tokens[id]; return s, ok }
func (m *wordPiece) size() int                     { return len(m.ids) }

// wordPieceDecoder joins pieces to words, and words with spaces.
type wordPieceDecoder struct {
	prefix  string
	cleanup bool
}

// tidy undoes the spaces that splitting at punctuation leaves, rule by rule and in this order.
var tidy = [][2]string{
	{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
	{" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
}

func (d wordPieceDecoder) decode(tokens []string) string {
	var b strings.Builder
	for i, s := range tokens {
		if i > 0 {
			if rest, ok := strings.CutPrefix(s, d.prefix); ok {
				s = rest
			} else {
				s = " " + s
			}
		}
		if d.cleanup {
			for _, r := range tidy {
				s = strings.ReplaceAll(s, r[0], r[1])
			}
		}
		b.WriteString(s)
	}
	return b.String()
}

func joinSpaces(tokens []string) string { return strings.Join(tokens, " ") }
