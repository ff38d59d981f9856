package tokenizer

import "unicode/utf8"

// The classes of grapheme breaking, as classes.bin numbers them.
const (
	grCR = iota + 1
	grLF
	grControl
	grExtend
	grL
	grV
	grT
	grLV
	grLVT
	grFlag
	grSpacing
	grZWJ
	grPrepend
	grPicture
)

// grapheme is the length of the extended grapheme cluster that text, which is not empty, starts with. The rule for Indic
// conjuncts is left out: their consonants are so long that the only caller takes them one by one anyway.
func grapheme(text []byte) int {
	if len(text) == 1 || text[0] < utf8.RuneSelf && text[1] < utf8.RuneSelf && text[0] != '\r' {
		return 1
	}
	table := classes()
	kind := func(r rune) int { return int(table.of(r) >> clGrapheme) }
	r, i := utf8.DecodeRune(text)
	before := kind(r)
	picture := before == grPicture // a picture and extenders stand before
	flags := 0                     // before
	if before == grFlag {
		flags = 1
	}
	for i < len(text) {
		r, n := utf8.DecodeRune(text[i:])
		k := kind(r)
		join := false
		switch {
		case before == grCR && k == grLF:
			join = true
		case before == grCR || before == grLF || before == grControl || k == grCR || k == grLF || k == grControl:
		case before == grL && (k == grL || k == grV || k == grLV || k == grLVT),
			(before == grLV || before == grV) && (k == grV || k == grT),
			(before == grLVT || before == grT) && k == grT,
			k == grExtend || k == grZWJ || k == grSpacing, before == grPrepend:
			join = true
		case before == grZWJ && picture && k == grPicture:
			join = true
		case before == grFlag && k == grFlag:
			join = flags%2 == 1
		}
		if !join {
			return i
		}
		picture = k == grPicture || picture && (k == grExtend || k == grZWJ)
		if k == grFlag {
			flags++
		} else {
			flags = 0
		}
		before = k
		i += n
	}
	return i
}
