package tokenizer

import "unicode/utf8"

// trim is the post-processor that leaves the white space at the ends of tokens out of their offsets.
type trim struct {
	prefix bool // one space at the start of a text was put in and is not counted
}

// apply trims the offsets of the token that is i-th of its part. The count is in characters; the bytes follow it.
func (t trim) apply(i int, name []byte, at span32) span32 {
	lead, trail := spacesAt(name)
	if lead > 0 {
		if !((i == 0 || at.start == 0) && t.prefix && lead == 1) {
			at.start = min(at.start+lead, at.end)
		}
	}
	if trail > 0 && at.end >= trail {
		at.end = max(at.end-trail, at.start)
	}
	return at
}

// spacesAt counts the characters at both ends of a token that stand for a space or are white space.
func spacesAt(name []byte) (lead, trail int32) {
	space := func(r rune) bool { return r == 'Ġ' || classes().is(r, clSpace) }
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRune(name[i:])
		if !space(r) {
			break
		}
		lead++
		i += n
	}
	for i := len(name); i > 0; {
		r, n := utf8.DecodeLastRune(name[:i])
		if !space(r) {
			break
		}
		trail++
		i -= n
	}
	return lead, trail
}
