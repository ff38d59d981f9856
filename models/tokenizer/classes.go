package tokenizer

import (
	_ "embed"
	"encoding/binary"
	"sync"
)

// The reference implementation pins the Unicode data of each of its libraries, and they differ. Go's own tables grow with
// each release, and a token boundary must not move with them, so what the reference takes each code point for stands in a
// file of runs, made by testdata/classes.py.
//
//go:embed classes.bin
var classRuns []byte

// class is a set of bits about a code point.
type class uint32

const (
	clUpper   class = 1 << iota // \p{Lu} of the regular expressions in files
	clLower                     // \p{Ll}
	clTitle                     // \p{Lt}
	clModLet                    // \p{Lm}
	clOtherL                    // \p{Lo}
	clNumber                    // \p{N}
	clMark                      // \p{M}
	clPunctP                    // \p{P}
	clSymbol                    // \p{S}
	clSpace                     // \s, and white space everywhere else
	clPunct                     // what the pre-tokenizers Punctuation and Bert call punctuation
	clNumeric                   // what Digits calls a digit
	clWord                      // \w
	clAccent                    // what StripAccents removes
	clCanon                     // has a canonical decomposition
	clCompat                    // has a compatibility decomposition
	clLetter  = clUpper | clLower | clTitle | clModLet | clOtherL

	clGrapheme = 16 // four bits from here are the class of grapheme breaking
)

// classTable has pages of 256 code points; equal pages are one.
type classTable struct {
	ascii [128]class
	pages [0x1100]uint16
	table [][256]class
}

var classes = sync.OnceValue(func() *classTable {
	t := &classTable{}
	b := classRuns
	number := func() int {
		n, size := binary.Uvarint(b)
		b = b[size:]
		return int(n)
	}
	kinds := make([]class, number())
	for i := range kinds {
		kinds[i] = class(number())
	}
	seen := map[[256]class]uint16{}
	var page [256]class
	at := 0
	for len(b) > 0 {
		n, kind := number(), kinds[number()]
		for ; n > 0; n-- {
			page[at&255] = kind
			if at++; at&255 == 0 {
				i, ok := seen[page]
				if !ok {
					i = uint16(len(t.table))
					seen[page] = i
					t.table = append(t.table, page)
				}
				t.pages[at>>8-1] = i
			}
		}
	}
	copy(t.ascii[:], t.table[t.pages[0]][:])
	return t
})

func (t *classTable) of(r rune) class {
	return t.table[t.pages[uint32(r)>>8]][uint32(r)&255]
}

func (t *classTable) is(r rune, c class) bool { return t.of(r)&c != 0 }
