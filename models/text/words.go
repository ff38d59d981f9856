package text

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/zcstore/zcstore/models/tokenizer"
)

// startsWord reports whether token i of an encoding begins a word. Where tokens do not tell, a word begins behind a space
// and where letters, digits and other characters meet.
func (p *Pipeline) startsWord(e *tokenizer.Encoding, i int, text string) bool {
	if prefix := p.tok.ContinuingPrefix(); prefix != "" {
		return !strings.HasPrefix(e.Tokens[i], prefix)
	}
	if i > 0 && e.Input[i-1] == e.Input[i] && (e.Tokens[i-1] == "▁" || e.Tokens[i-1] == "Ġ") {
		return false // the space before a word is a part of it
	}
	at := e.Bytes[i].Start
	if at == 0 || strings.HasPrefix(e.Tokens[i], "▁") || strings.HasPrefix(e.Tokens[i], "Ġ") {
		return true
	}
	before, _ := utf8.DecodeLastRuneInString(text[:at])
	here, _ := utf8.DecodeRuneInString(text[at:])
	return class(before) != class(here)
}

func class(r rune) int {
	switch {
	case unicode.IsSpace(r):
		return 0
	case unicode.IsLetter(r) || unicode.IsMark(r):
		return 1
	case unicode.IsNumber(r):
		return 2
	}
	return 3
}
