package tokenizer

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// A decoder changes tokens on their way to text; what the last one gives is joined.
type decoder interface {
	decode(tokens []string) []string
}

type decoders []decoder

func (l decoders) decode(tokens []string) []string {
	for _, d := range l {
		tokens = d.decode(tokens)
	}
	return tokens
}

// each changes tokens by themselves.
func each(tokens []string, change func(i int, s string) string) []string {
	for i, s := range tokens {
		tokens[i] = change(i, s)
	}
	return tokens
}

// wordPieceDecoder joins pieces to words, and words with spaces.
type wordPieceDecoder struct {
	prefix  string
	cleanup bool
}

// tidy undoes the spaces that splitting at punctuation leaves, rule by rule and in this order.
var tidy = [][2]string{
	{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
	{" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
}

func tidied(s string) string {
	for _, r := range tidy {
		s = strings.ReplaceAll(s, r[0], r[1])
	}
	return s
}

func (d wordPieceDecoder) decode(tokens []string) []string {
	return each(tokens, func(i int, s string) string {
		if i > 0 {
			if rest, ok := strings.CutPrefix(s, d.prefix); ok {
				s = rest
			} else {
				s = " " + s
			}
		}
		if d.cleanup {
			s = tidied(s)
		}
		return s
	})
}

// byteLevelDecoder turns the alphabet of byte-level models back into bytes. A token with other characters is its own text.
type byteLevelDecoder struct{}

func (byteLevelDecoder) decode(tokens []string) []string {
	var out []byte
	for _, s := range tokens {
		if b, ok := bytesOfAlphabet(bytesOf(s)); ok {
			out = append(out, b...)
		} else {
			out = append(out, s...)
		}
	}
	return []string{lossy(out)}
}

// lossy is text with one U+FFFD for each longest start of a character that is not one, as the Unicode standard advises.
func lossy(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var out []byte
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r != utf8.RuneError || n > 1 {
			out = append(out, b[:n]...)
			b = b[n:]
			continue
		}
		out = append(out, "\uFFFD"...)
		b = b[brokenLength(b):]
	}
	return string(out)
}

// brokenLength is the length of the longest start of b that could begin a character, at least 1.
func brokenLength(b []byte) int {
	low, high, n := byte(0x80), byte(0xbf), 0
	switch c := b[0]; {
	case c >= 0xc2 && c <= 0xdf:
		n = 2
	case c >= 0xe0 && c <= 0xef:
		n = 3
		if c == 0xe0 {
			low = 0xa0
		} else if c == 0xed {
			high = 0x9f
		}
	case c >= 0xf0 && c <= 0xf4:
		n = 4
		if c == 0xf0 {
			low = 0x90
		} else if c == 0xf4 {
			high = 0x8f
		}
	}
	i := 1
	for i < n && i < len(b) && b[i] >= low && b[i] <= high {
		low, high = 0x80, 0xbf
		i++
	}
	return i
}

// metaspaceDecoder makes spaces of the marks; the one that was put in at the start goes.
type metaspaceDecoder struct {
	mark  rune
	first bool // the start has one
}

func (d metaspaceDecoder) decode(tokens []string) []string {
	return each(tokens, func(i int, s string) string {
		to := " "
		if i == 0 && d.first {
			to = ""
		}
		return strings.ReplaceAll(s, string(d.mark), to)
	})
}

// byteFallbackDecoder makes text of runs of tokens such as <0x41>; each byte of a run that is no text is U+FFFD.
type byteFallbackDecoder struct{}

func (byteFallbackDecoder) decode(tokens []string) []string {
	var out []string
	var run []byte
	flush := func() {
		switch {
		case len(run) == 0:
		case utf8.Valid(run):
			out = append(out, string(run))
		default:
			for range run {
				out = append(out, "\uFFFD")
			}
		}
		run = run[:0]
	}
	for _, s := range tokens {
		if len(s) == 6 && strings.HasPrefix(s, "<0x") && s[5] == '>' {
			digits := s[3:5]
			if digits[0] == '+' { // as the reference implementation reads numbers
				digits = digits[1:]
			}
			if b, err := strconv.ParseUint(digits, 16, 8); err == nil {
				run = append(run, byte(b))
				continue
			}
		}
		flush()
		out = append(out, s)
	}
	flush()
	return out
}

// fuse joins all tokens to one.
type fuse struct{}

func (fuse) decode(tokens []string) []string { return []string{strings.Join(tokens, "")} }

// stripDecoder drops a character from the ends of each token, at most so many.
type stripDecoder struct {
	content     string
	start, stop int
}

func (d stripDecoder) decode(tokens []string) []string {
	return each(tokens, func(_ int, s string) string {
		start, stop := s, s
		for range d.start {
			rest, ok := strings.CutPrefix(start, d.content)
			if !ok {
				break
			}
			start = rest
		}
		for range d.stop {
			rest, ok := strings.CutSuffix(stop, d.content)
			if !ok {
				break
			}
			stop = rest
		}
		from, to := len(s)-len(start), len(stop)
		return s[min(from, to):to]
	})
}

// replaceDecoder replaces what a pattern matches.
type replaceDecoder struct{ replace }

func (d replaceDecoder) decode(tokens []string) []string {
	return each(tokens, func(_ int, s string) string {
		var out []byte
		text, done := []byte(s), 0
		for done < len(text) {
			from, to := d.find.find(text, done)
			if from < 0 {
				break
			}
			out = append(append(out, text[done:from]...), d.content...)
			done = to
		}
		return string(append(out, text[done:]...))
	})
}

// bpeDecoder makes spaces of the ends of words, but not of the last.
type bpeDecoder struct{ suffix string }

func (d bpeDecoder) decode(tokens []string) []string {
	return each(tokens, func(i int, s string) string {
		to := " "
		if i == len(tokens)-1 {
			to = ""
		}
		return strings.ReplaceAll(s, d.suffix, to)
	})
}

// ctcDecoder drops repeated tokens and those for nothing, and makes spaces of the ends of words.
type ctcDecoder struct {
	pad, delimiter string
	cleanup        bool
}

func (d ctcDecoder) decode(tokens []string) []string {
	var out []string
	for i, s := range tokens {
		if i > 0 && s == tokens[i-1] {
			continue
		}
		s = strings.ReplaceAll(s, d.pad, "")
		if d.cleanup {
			s = strings.ReplaceAll(tidied(s), d.delimiter, " ")
		}
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
