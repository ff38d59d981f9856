package tokenizer

import (
	"cmp"
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// unicodeForm brings text into a Unicode normalisation form: D, or C if it composes, with compatibility KD and KC. It
// does not use package norm for whole texts: that breaks up long runs of marks with U+034F, has newer data, and does not say
// where a character came from.
type unicodeForm struct{ compat, compose bool }

func (f unicodeForm) normalize(w *work, s segment) segment {
	table := classes()
	changes := w.changes[:0]
	marks := 0 // where the run of marks at the end of changes starts
	for i := 0; i < len(s.text); {
		r, n := utf8.DecodeRune(s.text[i:])
		i += n
		from := len(changes)
		changes = f.decompose(changes, table, r)
		for i := from; i < len(changes); i++ {
			if combiningClass(changes[i].r) == 0 {
				reorder(changes[marks:i])
				marks = i + 1
			}
		}
	}
	reorder(changes[marks:])
	w.changes = changes
	if f.compose {
		changes = w.composed(changes)
	}
	return w.transform(s, changes, 0)
}

// joins: marks change places, and what composes does so with the character before it.
func (f unicodeForm) joins(r rune) joins {
	if r < 0xa0 {
		return 0
	}
	var buf [maxDecomposed]change
	first := f.decompose(buf[:0], classes(), r)[0].r
	var b [utf8.UTFMax]byte
	if combiningClass(first) != 0 || !norm.NFC.Properties(b[:utf8.EncodeRune(b[:], first)]).BoundaryBefore() {
		return joinsBefore
	}
	return 0
}

// maxDecomposed is the most characters that one decomposes into.
const maxDecomposed = 18

func (f unicodeForm) decompose(changes []change, table *classTable, r rune) []change {
	const (
		sBase, lBase, vBase, tBase = 0xac00, 0x1100, 0x1161, 0x11a7
		vCount, tCount, sCount     = 21, 28, 11172
	)
	if r < 0xa0 {
		return append(changes, change{r, 0})
	}
	if i := r - sBase; i >= 0 && i < sCount { // Hangul syllables decompose by rule
		changes = append(changes, change{lBase + i/(vCount*tCount), 0}, change{vBase + i/tCount%vCount, 1})
		if t := i % tCount; t != 0 {
			changes = append(changes, change{tBase + t, 1})
		}
		return changes
	}
	form, want := norm.NFD, clCanon
	if f.compat {
		form, want = norm.NFKD, clCompat
	}
	if !table.is(r, want) {
		return append(changes, change{r, 0})
	}
	var b [utf8.UTFMax]byte
	inserted := int32(0)
	for d := form.Properties(b[:utf8.EncodeRune(b[:], r)]).Decomposition(); len(d) > 0; {
		c, n := utf8.DecodeRune(d)
		changes = append(changes, change{c, inserted})
		inserted = 1
		d = d[n:]
	}
	if inserted == 0 { // x/text does not know it
		changes = append(changes, change{r, 0})
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

// compositions has the character for a pair of a character and the next one, those of Unicode 9.
var compositions = sync.OnceValue(func() map[[2]rune]rune {
	m := map[[2]rune]rune{}
	table := classes()
	for r := rune(0xc0); r <= unicode.MaxRune; r++ {
		if !table.is(r, clCanon) || r >= 0xac00 && r < 0xac00+11172 {
			continue
		}
		whole := norm.NFD.String(string(r))
		if norm.NFC.String(whole) != string(r) {
			continue // excluded from composition
		}
		last, n := utf8.DecodeLastRuneInString(whole)
		first := []rune(norm.NFC.String(whole[:len(whole)-n]))
		if len(first) == 1 {
			m[[2]rune{first[0], last}] = r
		}
	}
	return m
})

func compose(a, b rune) (rune, bool) {
	if l := a - 0x1100; l >= 0 && l < 19 {
		if v := b - 0x1161; v >= 0 && v < 21 {
			return 0xac00 + (l*21+v)*28, true
		}
	}
	if s := a - 0xac00; s >= 0 && s < 11172 && s%28 == 0 {
		if t := b - 0x11a7; t > 0 && t < 28 {
			return a + t, true
		}
	}
	if b < 0x300 {
		return 0, false
	}
	r, ok := compositions()[[2]rune{a, b}]
	return r, ok
}

// composed joins what composes. The counts of both are added, less the one that goes.
func (w *work) composed(in []change) []change {
	out := w.composedBuf[:0]
	base := -1 // in out, of the character that the next ones may join
	last := -1 // combining class of the mark before, if it stayed; -1: the base stands before
	for _, c := range in {
		class := int(combiningClass(c.r))
		if base < 0 {
			if class == 0 {
				base = len(out)
			}
			out = append(out, c)
			continue
		}
		if last < class {
			if r, ok := compose(out[base].r, c.r); ok {
				out[base] = change{r, out[base].n + c.n - 1}
				continue
			}
		}
		if class == 0 {
			base, last = len(out), -1
		} else {
			last = class
		}
		out = append(out, c)
	}
	w.composedBuf = out
	return out
}
