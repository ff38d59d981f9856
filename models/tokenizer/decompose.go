package tokenizer

import (
	"cmp"
	"slices"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// decompose brings text into Unicode normalisation form D. It does not use norm.NFD for whole texts because that
// breaks up long runs of marks with U+034F and does not say where a rune came from.
func decompose(s *sequence) {
	plain := true
	for _, r := range s.runes {
		if r >= 0xc0 { // the first rune with a decomposition
			plain = false
			break
		}
	}
	if plain {
		return
	}
	changes := make([]change, 0, len(s.runes)+len(s.runes)/4)
	marks := 0 // where the run of marks at the end of changes starts
	for _, r := range s.runes {
		from := len(changes)
		changes = appendDecomposed(changes, r)
		for i := from; i < len(changes); i++ {
			if combiningClass(changes[i].r) == 0 {
				reorder(changes[marks:i])
				marks = i + 1
			}
		}
	}
	reorder(changes[marks:])
	s.rewrite(changes)
}

func appendDecomposed(changes []change, r rune) []change {
	const (
		sBase, lBase, vBase, tBase = 0xac00, 0x1100, 0x1161, 0x11a7
		vCount, tCount, sCount     = 21, 28, 11172
	)
	if r < 0xc0 {
		return append(changes, change{r, false})
	}
	if i := r - sBase; i >= 0 && i < sCount { // Hangul syllables decompose by rule
		changes = append(changes, change{lBase + i/(vCount*tCount), false}, change{vBase + i/tCount%vCount, true})
		if t := i % tCount; t != 0 {
			changes = append(changes, change{tBase + t, true})
		}
		return changes
	}
	if !unicode.Is(decomposeTable, r) {
		return append(changes, change{r, false})
	}
	var b [utf8.UTFMax]byte
	inserted := false
	for d := norm.NFD.Properties(b[:utf8.EncodeRune(b[:], r)]).Decomposition(); len(d) > 0; {
		c, n := utf8.DecodeRune(d)
		changes = append(changes, change{c, inserted})
		inserted = true
		d = d[n:]
	}
	if !inserted { // x/text does not know it
		changes = append(changes, change{r, false})
	}
	return changes
}

func combiningClass(r rune) uint8 {
	if r < 0x300 || !unicode.Is(cccTable, r) {
		return 0
	}
	var b [utf8.UTFMax]byte
	return norm.NFD.Properties(b[:utf8.EncodeRune(b[:], r)]).CCC()
}

// reorder sorts a run of marks by combining class, equal ones in their order.
func reorder(marks []change) {
	if len(marks) < 2 {
		return
	}
	slices.SortStableFunc(marks, func(a, b change) int { return cmp.Compare(combiningClass(a.r), combiningClass(b.r)) })
}
