package tokenizer

import "unicode/utf8"

// A preTokenizer cuts text into words, which it hands to w.stage(next, word). They are in order; empty ones are ignored.
type preTokenizer interface {
	split(w *work, next int, s segment)
}

// behavior says what becomes of the text that a pattern matches.
type behavior uint8

const (
	isolated           behavior = iota // a word of its own
	dropped                            // dropped
	mergedWithPrevious                 // the end of the word before it
	mergedWithNext                     // the start of the word after it
	contiguous                         // one word with the matches beside it
)

// splitter cuts at the matches of a pattern.
type splitter struct {
	find     finder
	behavior behavior
	invert   bool // what does not match counts as the match
}

func (p *splitter) split(w *work, next int, s segment) {
	held := cutter{w: w, next: next, s: s, behavior: p.behavior}
	n, done := len(s.text), 0
	for done < n {
		from, to := p.find.find(s.text, done)
		if from < 0 {
			break
		}
		if done < from {
			held.piece(done, from, p.invert)
		}
		held.piece(from, to, !p.invert)
		done = to
	}
	if done < n {
		held.piece(done, n, p.invert)
	}
	held.flush()
}

// cutter gets all pieces of a text in order and emits words of them.
type cutter struct {
	w        *work
	next     int
	s        segment
	behavior behavior
	start    int // of what is held back
	stop     int
	held     bool
	match    bool // what the piece before was
}

func (c *cutter) piece(i, j int, match bool) {
	switch c.behavior {
	case isolated:
		c.w.stage(c.next, c.s.slice(i, j))
	case dropped:
		if !match {
			c.w.stage(c.next, c.s.slice(i, j))
		}
	case contiguous:
		if c.held && match == c.match {
			c.stop = j
			break
		}
		c.flush()
		c.start, c.stop, c.held = i, j, true
	case mergedWithPrevious:
		if match && !c.match && c.held {
			c.stop = j
			break
		}
		c.flush()
		c.start, c.stop, c.held = i, j, true
	case mergedWithNext:
		if c.held && c.match && !match {
			c.stop = j
			c.flush()
			break
		}
		c.flush()
		c.start, c.stop, c.held = i, j, true
	}
	c.match = match
}

func (c *cutter) flush() {
	if c.held {
		c.held = false
		c.w.stage(c.next, c.s.slice(c.start, c.stop))
	}
}

// anyOf finds single characters of a class.
type anyOf class

func (a anyOf) find(text []byte, from int) (int, int) {
	table := classes()
	for i := from; i < len(text); {
		r, n := rune(text[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(text[i:])
		}
		if table.of(r)&class(a) != 0 {
			return i, i + n
		}
		i += n
	}
	return -1, -1
}

// runOf finds the longest runs of at least min characters of a class.
type runOf struct {
	class class
	min   int
}

func (f runOf) find(text []byte, from int) (int, int) {
	for {
		i, j := anyOf(f.class).find(text, from)
		if i < 0 {
			return -1, -1
		}
		n := 1
		table := classes()
		for j < len(text) {
			r, size := utf8.DecodeRune(text[j:])
			if table.of(r)&f.class == 0 {
				break
			}
			j += size
			n++
		}
		if n >= f.min {
			return i, j
		}
		from = j
	}
}

// spaces finds runs of at least min spaces.
type spaces int

func (f spaces) find(text []byte, from int) (int, int) {
	for i := from; i < len(text); i++ {
		j := i
		for j < len(text) && text[j] == ' ' {
			j++
		}
		if j-i >= int(f) {
			return i, j
		}
		i = j
	}
	return -1, -1
}

// whitespace finds what \w+|[^\w\s]+ matches.
type whitespace struct{}

func (whitespace) find(text []byte, from int) (int, int) {
	table := classes()
	kind := func(i int) (class, int) {
		r, n := rune(text[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(text[i:])
		}
		switch c := table.of(r); {
		case c&clWord != 0:
			return clWord, n
		case c&clSpace != 0:
			return clSpace, n
		}
		return 0, n
	}
	for i := from; i < len(text); {
		k, n := kind(i)
		if k == clSpace {
			i += n
			continue
		}
		j := i + n
		for j < len(text) {
			other, n := kind(j)
			if other != k {
				break
			}
			j += n
		}
		return i, j
	}
	return -1, -1
}

// fixedLength cuts words of so many characters.
type fixedLength int

func (p fixedLength) split(w *work, next int, s segment) {
	start, n := 0, 0
	for i := 0; i < len(s.text); {
		_, size := utf8.DecodeRune(s.text[i:])
		i += size
		if n++; n == int(p) || i == len(s.text) {
			w.stage(next, s.slice(start, i))
			start, n = i, 0
		}
	}
}

// bertPreTokenizer splits at white space, which it drops, and around each punctuation character.
type bertPreTokenizer struct{}

func (bertPreTokenizer) split(w *work, next int, s segment) {
	table := classes()
	start := 0
	for i := 0; i < len(s.text); {
		r, n := rune(s.text[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRune(s.text[i:])
		}
		c := table.of(r)
		if c&(clSpace|clPunct) == 0 {
			i += n
			continue
		}
		if start < i {
			w.stage(next, s.slice(start, i))
		}
		if c&clSpace == 0 {
			w.stage(next, s.slice(i, i+n))
		}
		i += n
		start = i
	}
	if start < len(s.text) {
		w.stage(next, s.slice(start, len(s.text)))
	}
}

// metaspace puts a mark for each space and at the start, and cuts before the marks.
type metaspace struct {
	mark   string // one character
	scheme prependScheme
	cut    bool
}

type prependScheme uint8

const (
	prependAlways prependScheme = iota
	prependFirst
	prependNever
)

func (p *metaspace) split(w *work, next int, s segment) {
	if len(s.text) == 0 {
		return
	}
	old := len(w.meta.text)
	b := &w.meta
	mark := s.text[0] == ' ' || hasPrefix(s.text, p.mark)
	if !mark && (p.scheme == prependAlways || p.scheme == prependFirst && s.start() == 0) {
		mark = true
		_, n := utf8.DecodeRune(s.text)
		b.string(p.mark, s.span(0, n))
	}
	start := 0 // of the word in the buffer, behind old
	for i := 0; i < len(s.text); {
		if c := s.text[i]; c == ' ' || c == p.mark[0] && hasPrefix(s.text[i:], p.mark) {
			n := 1
			if c != ' ' {
				n = len(p.mark)
			}
			if at := len(b.text) - old; p.cut && at > start {
				w.stage(next, b.segment().slice(old+start, old+at))
				start = at
			}
			b.string(p.mark, s.span(i, i+n))
			i += n
			continue
		}
		j := i + 1
		for j < len(s.text) && s.text[j] != ' ' && s.text[j] != p.mark[0] {
			j++
		}
		b.text = append(b.text, s.text[i:j]...)
		if s.from != nil {
			b.from = append(b.from, s.from[i:j]...)
		} else {
			part := s.slice(i, j)
			b.from = part.appendFrom(b.from)
		}
		i = j
	}
	w.stage(next, b.segment().slice(old+start, len(b.text)))
	b.text, b.from = b.text[:old], b.from[:old]
}

func hasPrefix(text []byte, s string) bool { return len(text) >= len(s) && string(text[:len(s)]) == s }

// start is where in the original the segment starts.
func (s *segment) start() int32 {
	if len(s.text) == 0 {
		return s.base
	}
	return s.span(0, 1).start
}

// byteLevel puts a space before a text that has none, if it should, and cuts as the pattern of GPT-2 does, if it should. It
// is the last stage: that each byte becomes a character of its own afterwards is left to the vocabulary, whose keys are bytes.
type byteLevel struct {
	prefix bool
	cut    bool
}

func (p *byteLevel) split(w *work, next int, s segment) {
	if len(s.text) == 0 {
		return
	}
	old := len(w.meta.text)
	if p.prefix && s.text[0] != ' ' {
		_, n := utf8.DecodeRune(s.text)
		at := s.span(0, n)
		b := &w.meta
		b.text = append(b.text, ' ')
		b.text = append(b.text, s.text...)
		if s.from != nil || s.lead > 0 {
			b.from = append(b.from, at)
			b.from = s.appendFrom(b.from)
			s = segment{text: b.text[old:], from: b.from[len(b.from)-len(s.text)-1:]}
		} else {
			s = segment{text: b.text[old:], base: s.base, lead: 1, leadSpan: at}
		}
	}
	if !p.cut {
		w.stage(next, s)
	} else {
		for i := 0; i < len(s.text); {
			j := gpt2(s.text, i)
			w.stage(next, s.slice(i, j))
			i = j
		}
	}
	w.meta.text = w.meta.text[:old]
	w.meta.from = w.meta.from[:min(old, len(w.meta.from))]
}
