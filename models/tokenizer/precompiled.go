package tokenizer

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// precompiled is SentencePiece's table of replacements: a double array over the bytes to replace, whose values are places
// in a text of replacements that end with a zero byte. It is used as it stands in the file.
type precompiled struct {
	units []byte // four bytes each
	texts []byte
}

// newPrecompiled takes the table apart: the length of the double array in bytes, the array, the texts.
func newPrecompiled(b []byte) (precompiled, error) {
	if len(b) < 4 {
		return precompiled{}, fmt.Errorf("a character map of %d bytes, it starts with a length of 4", len(b))
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n%4 != 0 || n > int64(len(b)-4) {
		return precompiled{}, fmt.Errorf("a character map of %d bytes says that its table has %d", len(b), n)
	}
	return precompiled{units: b[4 : 4+n], texts: b[4+n:]}, nil
}

// lookup is the replacement of the shortest prefix of text that has one: the reference implementation takes that one, for
// the whole of the text.
func (p precompiled) lookup(text []byte) (replacement []byte, ok bool) {
	to, n := p.match(text, true)
	return to, n > 0
}

// longest is the replacement of the longest prefix of text that has one, and the length of that prefix.
func (p precompiled) longest(text []byte) (replacement []byte, size int) { return p.match(text, false) }

func (p precompiled) match(text []byte, shortest bool) (replacement []byte, size int) {
	unit := func(i uint32) (uint32, bool) {
		if int64(i)*4+4 > int64(len(p.units)) {
			return 0, false
		}
		return binary.LittleEndian.Uint32(p.units[i*4:]), true
	}
	offset := func(u uint32) uint32 { return u >> 10 << (u & (1 << 9) >> 6) }
	u, ok := unit(0)
	if !ok {
		return nil, 0
	}
	at := offset(u)
	for i, c := range text {
		if c == 0 {
			break
		}
		at ^= uint32(c)
		if u, ok = unit(at); !ok || u&(1<<31|0xff) != uint32(c) {
			break
		}
		at ^= offset(u)
		if u>>8&1 == 0 {
			continue
		}
		leaf, ok := unit(at)
		start := leaf & (1<<31 - 1)
		if !ok || int64(start) >= int64(len(p.texts)) {
			break
		}
		to := p.texts[start:]
		for j, c := range to {
			if c == 0 {
				to = to[:j]
				break
			}
		}
		if !utf8.Valid(to) {
			break
		}
		replacement, size = to, i+1
		if shortest {
			break
		}
	}
	return replacement, size
}

func (p precompiled) normalize(w *work, s segment) segment {
	changes, modified := w.changes[:0], false
	for i := 0; i < len(s.text); {
		n := grapheme(s.text[i:])
		part := s.text[i : i+n]
		i += n
		if n < 6 {
			if to, ok := p.lookup(part); ok {
				modified = true
				changes = replaceRunes(changes, part, to)
				w.removed = w.removed || len(to) == 0
				continue
			}
		}
		for len(part) > 0 {
			r, size := utf8.DecodeRune(part)
			if to, ok := p.lookup(part[:size]); ok {
				modified = true
				changes = replaceRunes(changes, part[:size], to)
				w.removed = w.removed || len(to) == 0
			} else {
				changes = append(changes, change{r, 0})
			}
			part = part[size:]
		}
	}
	w.changes = changes
	if !modified {
		return s
	}
	return w.transform(s, changes, 0)
}

// joins: clusters of characters are looked up as one.
func (p precompiled) joins(r rune) joins {
	if r < utf8.RuneSelf && r != '\r' {
		return 0
	}
	switch classes().of(r) >> clGrapheme {
	case grExtend, grSpacing, grV, grT:
		return joinsBefore
	case grCR, grL, grFlag, grPrepend:
		return joinsBehind
	case grZWJ:
		return joinsBefore | joinsBehind
	}
	return 0
}

// replaceRunes puts the characters of to in the place of those of old.
func replaceRunes(changes []change, old, to []byte) []change {
	from, n := len(changes), int32(utf8.RuneCount(old))
	for len(to) > 0 {
		r, size := utf8.DecodeRune(to)
		to = to[size:]
		changes = append(changes, change{r, 0})
	}
	switch diff := int32(len(changes)-from) - n; {
	case diff > 0:
		for i := len(changes) - int(diff); i < len(changes); i++ {
			changes[i].n = 1
		}
	case diff < 0 && len(changes) > 0:
		changes[len(changes)-1].n += diff
	}
	return changes
}
