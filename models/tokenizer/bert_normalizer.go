package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// bertNormalizer prepares text as BERT was trained: control characters go, white space becomes a space, ideographs
// become words of their own, and optionally accents and case go.
type bertNormalizer struct {
	cleanText, chinese, stripAccents, lowercase bool
}

func (n bertNormalizer) normalize(w *work, s segment) segment {
	if n.cleanText {
		s = w.filter(s, func(_ class, r rune) bool { return !removed(r) })
		s = w.mapRunes(s, func(c class, r rune) rune {
			if c&clSpace != 0 {
				return ' '
			}
			return r
		})
	}
	if n.chinese {
		s = spaceIdeographs(w, s)
	}
	if n.stripAccents {
		s = unicodeForm{}.normalize(w, s)
		s = w.filter(s, func(_ class, r rune) bool { return r < 0x300 || !unicode.Is(mnTable, r) })
	}
	if n.lowercase {
		s = lowercase{}.normalize(w, s)
	}
	return s
}

// joins: marks that stay when accents go change places with others.
func (n bertNormalizer) joins(r rune) joins {
	if !n.stripAccents {
		return 0
	}
	var buf [maxDecomposed]change
	for _, c := range (unicodeForm{}).decompose(buf[:0], classes(), r) {
		if combiningClass(c.r) != 0 && !unicode.Is(mnTable, c.r) {
			return entangled
		}
	}
	return 0
}

// removed reports whether clean_text drops the rune.
func removed(r rune) bool {
	if r >= ' ' && r < 0x7f || r == '\t' || r == '\n' || r == '\r' {
		return false
	}
	return r == 0 || r == unicode.ReplacementChar || unicode.Is(otherTable, r)
}

// spaceIdeographs puts a space on both sides of each ideograph.
func spaceIdeographs(w *work, s segment) segment {
	changes, some := w.changes[:0], false
	for i := 0; i < len(s.text); {
		r, n := utf8.DecodeRune(s.text[i:])
		i += n
		if ideograph(r) {
			changes = append(changes, change{' ', 0}, change{r, 1}, change{' ', 1})
			some = true
		} else {
			changes = append(changes, change{r, 0})
		}
	}
	w.changes = changes
	if !some {
		return s
	}
	return w.transform(s, changes, 0)
}

// ideograph has the blocks of the reference implementation, which leaves out U+2B820 to U+2B91F.
func ideograph(r rune) bool {
	return r >= 0x3400 && (r <= 0x4dbf || r >= 0x4e00 && r <= 0x9fff || r >= 0xf900 && r <= 0xfaff || r >= 0x20000 &&
		(r <= 0x2a6df || r >= 0x2a700 && r <= 0x2b81f || r >= 0x2b920 && r <= 0x2ceaf || r >= 0x2f800 && r <= 0x2fa1f))
}

// lower is the lower case of Unicode 17, which the reference implementation has; Go's own table is older.
func lower(r rune) rune {
	if r < 0x80 {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	switch {
	case r == 'İ':
		return 'i'
	case r < 0x1c89:
	case r == 0x1c89, r == 0xa7cc, r == 0xa7ce, r == 0xa7d2, r == 0xa7d4, r == 0xa7da:
		return r + 1
	case r == 0xa7cb:
		return 0x264
	case r == 0xa7dc:
		return 0x19b
	case r >= 0x10d50 && r <= 0x10d65:
		return r + 0x20
	case r >= 0x16ea0 && r <= 0x16eb8:
		return r + 0x1b
	}
	return unicode.ToLower(r)
}
