package tokenizer

import "unicode/utf8"

// A preTokenizer cuts the text of a segment from i to j into words, which it hands to w.stage(next, ...). They are in order;
// empty ones are ignored.
type preTokenizer interface {
	split(w *work, next int, s *segment, i, j int)
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

func (p *splitter) split(w *work, next int, s *segment, i, j int) {
	held := cutter{w: w, next: next, s: s, behavior: p.behavior}
	text := s.text[:j]
	n, done := j, i
	for done < n {
		from, to := p.find.find(text, done)
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
	s        *segment
	behavior behavior
	start    int // of what is held back
	stop     int
	held     bool
	match    bool // what the piece before was
}

func (c *cutter) piece(i, j int, match bool) {
	switch c.behavior {
	case isolated:
		c.w.stage(c.next, c.s, i, j)
	case dropped:
		if !match {
			c.w.stage(c.next, c.s, i, j)
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
		c.w.stage(c.next, c.s, c.start, c.stop)
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

func (p fixedLength) split(w *work, next int, s *segment, i, j int) {
	start, n := i, 0
	for i < j {
		_, size := utf8.DecodeRune(s.text[i:j])
		i += size
		if n++; n == int(p) || i == j {
			w.stage(next, s, start, i)
			start, n = i, 0
		}
	}
}

// bertPreTokenizer splits at white space, which it drops, and around each punctuation character.
type bertPreTokenizer struct{}

func (bertPreTokenizer) split(w *work, next int, s *segment, i, j int) {
	table := classes()
	ascii := &table.ascii
	text := s.text[:j]
	start := i
	for i < len(text) {
		c, n := ascii[text[i]&0x7f], 1
		if text[i] >= utf8.RuneSelf {
			var r rune
			r, n = decode(text[i:])
			c = table.of(r)
		}
		if c&(clSpace|clPunct) == 0 {
			i += n
			continue
		}
		w.stage(next, s, start, i)
		if c&clSpace == 0 {
			w.stage(next, s, i, i+n)
		}
		i += n
		start = i
	}
	w.stage(next, s, start, j)
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

func (p *metaspace) split(w *work, next int, s *segment, i, j int) {
	b := &w.meta
	oldText, oldFrom := len(b.text), len(b.from)
	// Where the text is the original, so is a word behind its mark. All others have a table.
	direct := p.cut && s.from == nil && i >= int(s.lead)
	var lead span32
	put := func(at span32) {
		lead = at
		if direct {
			b.text = append(b.text, p.mark...)
		} else {
			b.string(p.mark, at)
		}
	}
	if !p.isMark(s.text[i:j]) && (p.scheme == prependAlways || p.scheme == prependFirst && s.span(i, i+1).start == 0) {
		put(s.span(i, i+1))
	}
	for i < j {
		start := i // of the word behind its mark
		if p.isMark(s.text[i:j]) {
			start++
			if s.text[i] != ' ' {
				start += len(p.mark) - 1
			}
			put(s.span(i, start))
		}
		i = start
		for i < j && s.text[i] != ' ' && !(s.text[i] == p.mark[0] && hasPrefix(s.text[i:j], p.mark)) {
			i++
		}
		marked := len(b.text) - oldText
		b.text = append(b.text, s.text[start:i]...)
		if !direct {
			part := s.slice(start, i)
			b.from = part.appendFrom(b.from)
		}
		if !p.cut && i < j {
			continue
		}
		word := w.segment(next + 1)
		if direct {
			*word = segment{text: b.text[oldText:], base: s.base + int32(start) - s.lead, lead: int32(marked), leadSpan: lead}
		} else {
			*word = segment{text: b.text[oldText:], from: b.from[oldFrom:]}
		}
		w.stage(next, word, 0, len(word.text))
		b.text, b.from = b.text[:oldText], b.from[:oldFrom]
	}
}

// isMark reports whether text starts with a space or a mark.
func (p *metaspace) isMark(text []byte) bool {
	return len(text) > 0 && (text[0] == ' ' || text[0] == p.mark[0] && hasPrefix(text, p.mark))
}

func hasPrefix(text []byte, s string) bool { return len(text) >= len(s) && string(text[:len(s)]) == s }

// byteLevel puts a space before a text that has none, if it should, and cuts as the pattern of GPT-2 does, if it should. It
// is the last stage: that each byte becomes a character of its own afterwards is left to the vocabulary, whose keys are bytes.
type byteLevel struct {
	prefix bool
	cut    bool
}

func (p *byteLevel) split(w *work, next int, s *segment, i, j int) {
	b := &w.meta
	oldText, oldFrom := len(b.text), len(b.from)
	if p.prefix && s.text[i] != ' ' {
		at := s.span(i, i+1)
		b.text = append(append(b.text, ' '), s.text[i:j]...)
		spaced := w.segment(next + 1)
		if s.from == nil && i >= int(s.lead) {
			*spaced = segment{text: b.text[oldText:], base: s.base + int32(i) - s.lead, lead: 1, leadSpan: at}
		} else {
			part := s.slice(i, j)
			b.from = part.appendFrom(append(b.from, at))
			*spaced = segment{text: b.text[oldText:], from: b.from[oldFrom:]}
		}
		s, i, j = spaced, 0, len(spaced.text)
	}
	if !p.cut {
		w.stage(next, s, i, j)
	} else {
		text := s.text[:j]
		for i < j {
			end := gpt2(text, i)
			w.stage(next, s, i, end)
			i = end
		}
	}
	b.text, b.from = b.text[:oldText], b.from[:oldFrom]
}
