package tokenizer

import (
	"math"
	"unicode/utf8"
)

// The patterns that published files split with need look-ahead, which package regexp does not have. There are few of them,
// so each is a scanner written by hand. Files that state another pattern are refused.

// The classes that scanners look at.
const (
	scLetter = iota + 1
	scNumber
	scSpace
	scNewline // \r and \n, which are space too
	scOther
)

var scASCII = func() (t [128]uint8) {
	for c := range t {
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
			t[c] = scLetter
		case c >= '0' && c <= '9':
			t[c] = scNumber
		case c == '\r' || c == '\n':
			t[c] = scNewline
		case c == ' ' || c >= 9 && c <= 13:
			t[c] = scSpace
		default:
			t[c] = scOther
		}
	}
	return t
}()

// scan is the class of the character at i and its length; behind the text it is 0.
func scan(text []byte, i int) (kind uint8, size int) {
	if i >= len(text) {
		return 0, 0
	}
	if c := text[i]; c < utf8.RuneSelf {
		return scASCII[c], 1
	}
	return scanWide(text, i)
}

func scanWide(text []byte, i int) (uint8, int) {
	r, n := utf8.DecodeRune(text[i:])
	switch c := classes().of(r); {
	case c&clLetter != 0:
		return scLetter, n
	case c&clNumber != 0:
		return scNumber, n
	case c&clSpace != 0:
		return scSpace, n
	}
	return scOther, n
}

// run is the end of the characters of the kind from i on, at most max of them.
func run(text []byte, i int, kind uint8, max int) int {
	for n := 0; n < max && i < len(text); n++ {
		if c := text[i]; c < utf8.RuneSelf {
			if scASCII[c] != kind {
				break
			}
			i++
			continue
		}
		k, size := scanWide(text, i)
		if k != kind {
			break
		}
		i += size
	}
	return i
}

func newlines(text []byte, i int, also byte) int {
	for i < len(text) && (text[i] == '\r' || text[i] == '\n' || also != 0 && text[i] == also) {
		i++
	}
	return i
}

// contraction is the end of 's 't 're 've 'm 'll 'd at i, or 0. Without case, a long s counts too.
func contraction(text []byte, i int, anyCase bool) int {
	if i+1 >= len(text) || text[i] != '\'' {
		return 0
	}
	low := func(j int) byte {
		if j >= len(text) {
			return 0
		}
		c := text[j]
		if anyCase && c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	a, b := low(i+1), low(i+2)
	switch {
	case a == 's' || a == 't' || a == 'm' || a == 'd':
		return i + 2
	case a == 'r' && b == 'e' || a == 'v' && b == 'e' || a == 'l' && b == 'l':
		return i + 3
	case anyCase && a == 0xc5 && b == 0xbf: // ſ
		return i + 3
	}
	return 0
}

// space is the end of \s+(?!\S)|\s+ at white space: all but the last character of a run that something follows.
func space(text []byte, i int) int {
	last, n, j := i, 0, i
	for j < len(text) {
		k, size := scan(text, j)
		if k != scSpace && k != scNewline {
			break
		}
		last = j
		j += size
		n++
	}
	if j < len(text) && n > 1 {
		return last
	}
	return j
}

// gpt2 is the end of the match at i of the pattern of GPT-2:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func gpt2(text []byte, i int) int {
	if text[i] == '\'' {
		if end := contraction(text, i, false); end > 0 {
			return end
		}
	}
	at := i
	if text[i] == ' ' {
		at++
	}
	switch kind, size := scan(text, at); kind {
	case scLetter, scNumber, scOther:
		return run(text, at+size, kind, math.MaxInt)
	}
	return space(text, i)
}

const gpt2Pattern = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

type gpt2Finder struct{}

func (gpt2Finder) find(text []byte, from int) (int, int) {
	if from >= len(text) {
		return -1, -1
	}
	return from, gpt2(text, from)
}

// tiktoken is the family of patterns that OpenAI's cl100k and o200k began:
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
type tiktoken struct {
	digits int // how many in one match
	// cased: in place of \p{L}+ words that end where case rises, with the contraction at their end:
	//
	//	[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
	//	[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
	cased        bool
	contractions bool
	slash        bool // [\r\n/]* behind punctuation
}

func (p *tiktoken) find(text []byte, from int) (int, int) {
	if from >= len(text) {
		return -1, -1
	}
	return from, p.match(text, from)
}

func (p *tiktoken) match(text []byte, i int) int {
	if p.contractions && !p.cased && text[i] == '\'' {
		if end := contraction(text, i, true); end > 0 {
			return end
		}
	}
	kind, size := scan(text, i)
	if p.cased {
		if end := p.word(text, i, kind, size); end > 0 {
			return end
		}
	} else {
		if kind == scLetter {
			return run(text, i, scLetter, math.MaxInt)
		}
		if kind == scSpace || kind == scOther {
			if k, _ := scan(text, i+size); k == scLetter {
				return run(text, i+size, scLetter, math.MaxInt)
			}
		}
	}
	if kind == scNumber {
		return run(text, i, scNumber, p.digits)
	}
	at := i
	if text[i] == ' ' {
		at++
	}
	if k, _ := scan(text, at); k == scOther {
		end := run(text, at, scOther, math.MaxInt)
		slash := byte(0)
		if p.slash {
			slash = '/'
		}
		return newlines(text, end, slash)
	}
	// White space: as far as the last newline of the run.
	end := 0
	for j := i; j < len(text); {
		k, size := scan(text, j)
		if k != scSpace && k != scNewline {
			break
		}
		j += size
		if k == scNewline {
			end = j
		}
	}
	if end > 0 {
		return end
	}
	return space(text, i)
}

const (
	upperish = clUpper | clTitle | clModLet | clOtherL | clMark
	lowerish = clLower | clModLet | clOtherL | clMark
)

// word matches the two alternatives of words with case, first with a character before the word, then without.
func (p *tiktoken) word(text []byte, i int, kind uint8, size int) int {
	starts := [2]int{-1, i}
	if kind == scSpace || kind == scOther {
		starts[0] = i + size
	}
	table := classes()
	for _, rising := range []bool{true, false} {
		for _, start := range starts {
			if start < 0 {
				continue
			}
			// Upper case as far as it goes, and the last character in it that could be lower case.
			j, lower := start, -1
			for j < len(text) {
				r, n := utf8.DecodeRune(text[j:])
				c := table.of(r)
				if c&upperish == 0 {
					break
				}
				if j += n; c&lowerish != 0 {
					lower = j
				}
			}
			end := j
			for end < len(text) {
				r, n := utf8.DecodeRune(text[end:])
				if table.of(r)&lowerish == 0 {
					break
				}
				end += n
			}
			switch {
			case rising && end == j:
				end = lower
			case !rising && j == start:
				end = -1
			}
			if end < 0 {
				continue
			}
			if p.contractions {
				end = max(end, contraction(text, end, true))
			}
			return end
		}
	}
	return 0
}

// clip finds what CLIP's pattern matches; the rest is white space.
type clip struct{}

func (clip) find(text []byte, from int) (int, int) {
	for i := from; i < len(text); {
		for _, s := range [...]string{"<|startoftext|>", "<|endoftext|>"} {
			if hasPrefix(text[i:], s) {
				return i, i + len(s)
			}
		}
		if end := contraction(text, i, false); end > 0 {
			return i, end
		}
		switch kind, size := scan(text, i); kind {
		case scLetter, scOther:
			return i, run(text, i, kind, math.MaxInt)
		case scNumber:
			return i, i + size
		default:
			i += size
		}
	}
	return -1, -1
}

// bloom finds what BLOOM's pattern matches: an optional space and a run of what is neither white space nor among ten
// punctuation characters, the parentheses and the bar.
type bloom struct{}

func (bloom) find(text []byte, from int) (int, int) {
	for i := from; i < len(text); {
		j := i
		if text[j] == ' ' {
			j++
		}
		end := j
		for end < len(text) {
			r, n := utf8.DecodeRune(text[end:])
			switch r {
			case '(', ')', '|', '.', ',', '!', '?', '…', '。', '，', '、', '।', '۔', '،':
				n = 0
			default:
				if classes().is(r, clSpace) {
					n = 0
				}
			}
			if n == 0 {
				break
			}
			end += n
		}
		if end > j {
			return i, end
		}
		_, n := utf8.DecodeRune(text[i:])
		i += n
	}
	return -1, -1
}

// threeDigits finds [0-9][0-9][0-9].
type threeDigits struct{}

func (threeDigits) find(text []byte, from int) (int, int) {
	n := 0
	for i := from; i < len(text); i++ {
		if text[i] < '0' || text[i] > '9' {
			n = 0
		} else if n++; n == 3 {
			return i - 2, i + 1
		}
	}
	return -1, -1
}

// patterns has the scanner of each regular expression that published files state.
var patterns = map[string]finder{
	`\s+`:             runOf{clSpace, 1},
	`\s`:              anyOf(clSpace),
	` {2,}`:           spaces(2),
	` +`:              spaces(1),
	`\n`:              literal("\n"),
	`[0-9][0-9][0-9]`: threeDigits{},
	`\p{N}`:           anyOf(clNumber),
	gpt2Pattern:       gpt2Finder{},
	`<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`:                         clip{},
	` ?[^(\s|[.,!?…。，、।۔،])]+`:                                                                                            bloom{},
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`: &tiktoken{digits: 3, contractions: true},
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`:      &tiktoken{digits: 1, contractions: true},
	`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`: &tiktoken{digits: 3, contractions: true, cased: true, slash: true},
	`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`:                                                                &tiktoken{digits: 1, cased: true, slash: true},
}
