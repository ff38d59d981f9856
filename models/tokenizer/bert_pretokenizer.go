package tokenizer

import "unicode"

// bertPreTokenizer splits at white space, which it drops, and around each punctuation character.
type bertPreTokenizer struct{}

func (bertPreTokenizer) split(text sequence, emit func(sequence)) {
	start := 0
	for i, r := range text.runes {
		space := unicode.IsSpace(r)
		if !space && !punctuation(r) {
			continue
		}
		if start < i {
			emit(text.slice(start, i))
		}
		if !space {
			emit(text.slice(i, i+1))
		}
		start = i + 1
	}
	if n := len(text.runes); start < n {
		emit(text.slice(start, n))
	}
}

func punctuation(r rune) bool {
	if r < 0x80 {
		return r > ' ' && r < '0' || r > '9' && r < 'A' || r > 'Z' && r < 'a' || r > 'z' && r < 0x7f
	}
	return unicode.Is(punctTable, r)
}
