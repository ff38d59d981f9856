package tokenizer

import "unicode/utf8"

// segment is text on its way through the pieces, always valid UTF-8, and where it came from. Segments share memory: only
// the buffers of a work are written to.
type segment struct {
	text []byte
	// from has for each byte the bytes of the original that its character came from. Without it the text is the original
	// from base on, but for the first lead bytes, which were put in and count as what leadSpan says.
	from     []span32
	base     int32
	lead     int32
	leadSpan span32
}

// span32 is a Span at half the size; texts are shorter than 2 GiB.
type span32 struct{ start, end int32 }

func (s span32) wide() Span { return Span{int(s.start), int(s.end)} }

func (s segment) slice(i, j int) segment {
	if s.from != nil {
		return segment{text: s.text[i:j:j], from: s.from[i:j:j]}
	}
	if n := int32(i); n >= s.lead {
		return segment{text: s.text[i:j:j], base: s.base + n - s.lead}
	}
	return segment{text: s.text[i:j:j], base: s.base, lead: s.lead - int32(i), leadSpan: s.leadSpan}
}

// span is the range of the original that the bytes from i to j, at least one, came from. Characters count whole.
func (s *segment) span(i, j int) span32 {
	if s.from != nil {
		return span32{s.from[i].start, s.from[j-1].end}
	}
	lead := int(s.lead)
	var out span32
	if i < lead {
		out.start = s.leadSpan.start
	} else {
		for i > lead && s.text[i]&0xc0 == 0x80 {
			i--
		}
		out.start = s.base + int32(i-lead)
	}
	if j <= lead {
		out.end = s.leadSpan.end
	} else {
		for j < len(s.text) && s.text[j]&0xc0 == 0x80 {
			j++
		}
		out.end = s.base + int32(j-lead)
	}
	return out
}

// appendFrom appends the spans of all bytes.
func (s *segment) appendFrom(out []span32) []span32 {
	if s.from != nil {
		return append(out, s.from...)
	}
	for range min(int(s.lead), len(s.text)) {
		out = append(out, s.leadSpan)
	}
	for i := int(s.lead); i < len(s.text); {
		n := 1
		if s.text[i] >= utf8.RuneSelf {
			_, n = utf8.DecodeRune(s.text[i:])
		}
		at := s.base + int32(i) - s.lead
		for range n {
			out = append(out, span32{at, at + int32(n)})
		}
		i += n
	}
	return out
}

// buffer is memory that a segment is rewritten into.
type buffer struct {
	text []byte
	from []span32
}

func (b *buffer) reset() { b.text, b.from = b.text[:0], b.from[:0] }

func (b *buffer) rune(r rune, at span32) {
	n := len(b.text)
	b.text = utf8.AppendRune(b.text, r)
	for ; n < len(b.text); n++ {
		b.from = append(b.from, at)
	}
}

func (b *buffer) string(s string, at span32) {
	b.text = append(b.text, s...)
	for range len(s) {
		b.from = append(b.from, at)
	}
}

func (b *buffer) segment() segment { return segment{text: b.text, from: b.from} }

// change is a character of rewritten text. n is how it relates to the text before: above 0 it was put in, 0 replaces a
// character, -n replaces one and removes the n after it.
type change struct {
	r rune
	n int32
}

// transform rewrites the whole text: first the skip characters at its start go, then the changes follow each other.
// What was put in counts as the character before it. The rule is that of the reference implementation, with its
// oddities: it is what offsets are made of.
func (w *work) transform(s segment, changes []change, skip int) segment {
	b := w.next()
	from := s.from
	if from == nil {
		w.spans = s.appendFrom(w.spans[:0])
		from = w.spans
	}
	at := 0
	step := func() {
		if at < len(s.text) {
			_, n := utf8.DecodeRune(s.text[at:])
			at += n
		}
	}
	for range skip {
		step()
	}
	for _, c := range changes {
		var span span32
		switch {
		case c.n > 0:
			if at > 0 {
				span = from[at-1]
			}
		case at < len(from):
			span = from[at]
			step()
			for range -c.n {
				step()
			}
		case at > 0:
			span = from[at-1]
		}
		b.rune(c.r, span)
	}
	return b.segment()
}

// next is a buffer that the segment which is rewritten does not lie in, as long as it came from the one before.
func (w *work) next() *buffer {
	w.turn ^= 1
	b := &w.buffers[w.turn]
	b.reset()
	return b
}

// newSegment is a whole text; an invalid byte becomes U+FFFD that counts as this byte.
func (w *work) newSegment(c *runeCounter) segment {
	if c.valid {
		return segment{text: c.text}
	}
	w.fixed.reset()
	for i := 0; i < len(c.text); {
		r, n := utf8.DecodeRune(c.text[i:])
		w.fixed.rune(r, span32{int32(i), int32(i + n)})
		i += n
	}
	return w.fixed.segment()
}
