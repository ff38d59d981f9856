package tokenizer

import (
	"bytes"
	"unicode/utf8"
)

// A normalizer rewrites text. What it gives lies in the work's buffers, or is what it got.
type normalizer interface {
	normalize(w *work, s segment) segment
}

type normalizers []normalizer

func (l normalizers) normalize(w *work, s segment) segment {
	for _, n := range l {
		s = n.normalize(w, s)
	}
	return s
}

// ascii reports whether text has only ASCII.
func ascii(text []byte) bool {
	for len(text) >= 8 {
		if (text[0]|text[1]|text[2]|text[3]|text[4]|text[5]|text[6]|text[7])&0x80 != 0 {
			return false
		}
		text = text[8:]
	}
	for _, c := range text {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// filter keeps the characters that keep wants.
func (w *work) filter(s segment, keep func(c class, r rune) bool) segment {
	table := classes()
	changes, removed, skip := w.changes[:0], int32(0), 0
	all := true
	for i := 0; i < len(s.text); {
		r, n := utf8.DecodeRune(s.text[i:])
		i += n
		if !keep(table.of(r), r) {
			removed++
			all = false
			continue
		}
		if len(changes) > 0 {
			changes[len(changes)-1].n = -removed
		} else {
			skip = int(removed)
		}
		removed = 0
		changes = append(changes, change{r, 0})
	}
	if len(changes) > 0 {
		changes[len(changes)-1].n = -removed
	}
	w.changes = changes
	if all {
		return s
	}
	return w.transform(s, changes, skip)
}

// mapRunes replaces each character by one.
func (w *work) mapRunes(s segment, to func(c class, r rune) rune) segment {
	table := classes()
	changes, same := w.changes[:0], true
	for i := 0; i < len(s.text); {
		r, n := utf8.DecodeRune(s.text[i:])
		i += n
		m := to(table.of(r), r)
		same = same && m == r
		changes = append(changes, change{m, 0})
	}
	w.changes = changes
	if same {
		return s
	}
	return w.transform(s, changes, 0)
}

// lowercase maps each character by itself: a final sigma is not looked for.
type lowercase struct{}

func (lowercase) normalize(w *work, s segment) segment {
	changes, same := w.changes[:0], true
	for i := 0; i < len(s.text); {
		r, n := utf8.DecodeRune(s.text[i:])
		i += n
		l := lower(r)
		same = same && l == r
		changes = append(changes, change{l, 0})
		if r == 'İ' { // the only one that becomes two characters
			changes = append(changes, change{0x307, 1})
		}
	}
	w.changes = changes
	if same {
		return s
	}
	return w.transform(s, changes, 0)
}

func (lowercase) joins(rune) joins { return 0 }

type stripAccents struct{}

func (stripAccents) normalize(w *work, s segment) segment {
	return w.filter(s, func(c class, _ rune) bool { return c&clAccent == 0 })
}

func (stripAccents) joins(rune) joins { return 0 }

// strip drops the white space at the ends.
type strip struct{ left, right bool }

func (n strip) normalize(w *work, s segment) segment {
	table := classes()
	i, j := 0, len(s.text)
	for n.left && i < j {
		r, size := utf8.DecodeRune(s.text[i:j])
		if !table.is(r, clSpace) {
			break
		}
		i += size
	}
	for n.right && i < j {
		r, size := utf8.DecodeLastRune(s.text[i:j])
		if !table.is(r, clSpace) {
			break
		}
		j -= size
	}
	if i == j {
		return segment{}
	}
	return s.slice(i, j)
}

// prepend puts a text before any that is not empty.
type prepend struct{ text string }

func (n prepend) normalize(w *work, s segment) segment {
	if len(s.text) == 0 || n.text == "" {
		return s
	}
	_, size := utf8.DecodeRune(s.text)
	at := s.span(0, size)
	b := w.next()
	b.string(n.text, at)
	b.text = append(b.text, s.text...)
	b.from = s.appendFrom(b.from)
	return b.segment()
}

// replace puts content in the place of what its pattern matches.
type replace struct {
	find    finder
	content string
}

func (n replace) normalize(w *work, s segment) segment {
	from, to := n.find.find(s.text, 0)
	if from < 0 {
		return s
	}
	b := w.next()
	spans := s.from
	if spans == nil {
		w.spans = s.appendFrom(w.spans[:0])
		spans = w.spans
	}
	done := 0
	for from >= 0 {
		b.text = append(b.text, s.text[done:from]...)
		b.from = append(b.from, spans[done:from]...)
		b.string(n.content, spans[to-1])
		done = to
		if done >= len(s.text) {
			break
		}
		from, to = n.find.find(s.text, done)
	}
	b.text = append(b.text, s.text[done:]...)
	b.from = append(b.from, spans[done:]...)
	return b.segment()
}

func (replace) joins(rune) joins { return 0 }

// oneRune reports whether the pattern is one character, so that it is charwise.
func (n replace) oneRune() bool {
	l, ok := n.find.(literal)
	return ok && utf8.RuneCountInString(string(l)) == 1
}

// A finder looks for the first match that starts at from or later; a match is not empty. -1: there is none.
type finder interface {
	find(text []byte, from int) (start, end int)
}

// literal finds a text.
type literal string

func (l literal) find(text []byte, from int) (int, int) {
	if len(l) == 0 {
		return -1, -1
	}
	i := bytes.Index(text[from:], bytesOf(string(l)))
	if i < 0 {
		return -1, -1
	}
	return from + i, from + i + len(l)
}

// nmt is the cleaning of Google's machine translation.
type nmt struct{}

func (nmt) joins(rune) joins { return 0 }

func (nmt) normalize(w *work, s segment) segment {
	s = w.filter(s, func(_ class, r rune) bool {
		return !(r >= 1 && r <= 8 || r == 0xb || r >= 0xe && r <= 0x1f || r == 0x7f || r == 0x8f || r == 0x9f)
	})
	return w.mapRunes(s, func(_ class, r rune) rune {
		switch {
		case r == 9 || r == 0xa || r == 0xc || r == 0xd || r == 0x1680 || r >= 0x200b && r <= 0x200f, r == 0x2028, r == 0x2029,
			r == 0x2581, r == 0xfeff, r == 0xfffd:
			return ' '
		}
		return r
	})
}
