package tokenizer

import "unicode/utf8"

// decode is utf8.DecodeRune for text that is valid, or else gives any character: it does not look at the bytes that
// continue one.
func decode(b []byte) (rune, int) {
	if len(b) < utf8.UTFMax {
		return utf8.DecodeRune(b)
	}
	switch c := rune(b[0]); {
	case c < 0x80:
		return c, 1
	case c < 0xe0:
		return c&0x1f<<6 | rune(b[1])&0x3f, 2
	case c < 0xf0:
		return c&0xf<<12 | rune(b[1])&0x3f<<6 | rune(b[2])&0x3f, 3
	case c < 0xf4 || c == 0xf4 && b[1] < 0x90:
		return c&7<<18 | rune(b[1])&0x3f<<12 | rune(b[2])&0x3f<<6 | rune(b[3])&0x3f, 4
	}
	return utf8.RuneError, 1
}

// runeCounter counts the characters of a text, each byte that is no UTF-8 as one.
type runeCounter struct {
	text         []byte
	ascii, valid bool
	at, runes    int32 // the last offset asked for
}

func newRuneCounter(text []byte) runeCounter {
	all := ascii(text)
	return runeCounter{text: text, ascii: all, valid: all || utf8.Valid(text)}
}

// before is the number of characters before an offset at which one starts. It is fast where offsets rise.
func (c *runeCounter) before(offset int32) int32 {
	if c.ascii {
		return offset
	}
	at, runes, text := c.at, c.runes, c.text
	to := min(offset, int32(len(text)))
	switch {
	case at > to: // spans of neighbours overlap a little
		for at > to {
			_, n := utf8.DecodeLastRune(text[:at])
			at -= int32(n)
			runes--
		}
	case c.valid:
		for _, b := range text[at:to] {
			if b&0xc0 != 0x80 {
				runes++
			}
		}
		at = to
	default:
		for at < to {
			_, n := utf8.DecodeRune(text[at:])
			at += int32(n)
			runes++
		}
	}
	c.at, c.runes = at, runes
	return runes
}

// span is a range in characters.
func (c *runeCounter) span(bytes span32) span32 {
	return span32{c.before(bytes.start), c.before(bytes.end)}
}
