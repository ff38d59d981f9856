package tokenizer

import "unicode"

// bertNormalizer prepares text as BERT was trained: control characters go, white space becomes a space, ideographs
// become words of their own, and optionally accents and case go.
type bertNormalizer struct {
	cleanText, chinese, stripAccents, lowercase bool
}

func (n bertNormalizer) normalize(s *sequence) {
	if n.cleanText {
		s.filter(func(r rune) bool { return !removed(r) })
		for i, r := range s.runes {
			if unicode.IsSpace(r) {
				s.runes[i] = ' '
			}
		}
	}
	if n.chinese {
		spaceIdeographs(s)
	}
	if n.stripAccents {
		decompose(s)
		s.filter(func(r rune) bool { return r < 0x300 || !unicode.Is(mnTable, r) })
	}
	if n.lowercase {
		lowercase(s)
	}
}

// removed reports whether clean_text drops the rune.
func removed(r rune) bool {
	if r >= ' ' && r < 0x7f {
		return false
	}
	return r == 0 || r == unicode.ReplacementChar || unicode.Is(otherTable, r)
}

// spaceIdeographs puts a space on both sides of each ideograph.
func spaceIdeographs(s *sequence) {
	n := 0
	for _, r := range s.runes {
		if ideograph(r) {
			n++
		}
	}
	if n == 0 {
		return
	}
	runes, from := make([]rune, 0, len(s.runes)+2*n), make([]span32, 0, len(s.runes)+2*n)
	for i, r := range s.runes {
		at := s.from[i]
		if ideograph(r) {
			runes, from = append(runes, ' ', r, ' '), append(from, at, at, at)
		} else {
			runes, from = append(runes, r), append(from, at)
		}
	}
	s.runes, s.from = runes, from
}

// ideograph has the blocks of the reference implementation, which leaves out U+2B820 to U+2B91F.
func ideograph(r rune) bool {
	return r >= 0x3400 && (r <= 0x4dbf || r >= 0x4e00 && r <= 0x9fff || r >= 0xf900 && r <= 0xfaff || r >= 0x20000 &&
		(r <= 0x2a6df || r >= 0x2a700 && r <= 0x2b81f || r >= 0x2b920 && r <= 0x2ceaf || r >= 0x2f800 && r <= 0x2fa1f))
}

// lowercase maps each rune by itself: a final sigma is not looked for.
func lowercase(s *sequence) {
	for _, r := range s.runes {
		if r == 'İ' { // the only one that becomes two runes
			changes := make([]change, 0, len(s.runes)+16)
			for _, r := range s.runes {
				changes = append(changes, change{lower(r), false})
				if r == 'İ' {
					changes = append(changes, change{0x307, true})
				}
			}
			s.rewrite(changes)
			return
		}
	}
	for i, r := range s.runes {
		s.runes[i] = lower(r)
	}
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
