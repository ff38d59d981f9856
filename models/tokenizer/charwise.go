package tokenizer

import "unicode/utf8"

// Most normalizers rewrite each character by itself, most characters stay as they are, and a text has few different ones. So
// what becomes of a character is found out once, by the normalizers themselves, and kept. Characters that bear on each other
// go through the normalizers together, with nothing else.

// A charwise normalizer gives for a text what it gives for its parts, cut anywhere but between characters that join.
type charwise interface {
	normalizer
	joins(r rune) joins
}

// joins says how a character bears on its neighbours.
type joins uint8

const (
	joinsBefore    joins = 1 << iota // on the one before it
	joinsBehind                      // on the one behind it
	joinsFewBefore                   // the same, if both have less than fewBytes together
	joinsFewBehind
	entangled // on any other
)

// memo is charwise normalizers one after the other.
type memo struct {
	stages []charwise
	slot   int // of its memory in a work
}

// memoized puts memos around all charwise normalizers in n.
func memoized(n normalizer) normalizer {
	list := flat(n, nil)
	var out normalizers
	var last *memo
	slots := 0
	for _, n := range list {
		c, ok := n.(charwise)
		if r, is := n.(replace); is && !r.oneRune() {
			ok = false
		}
		switch {
		case !ok:
			out, last = append(out, n), nil
		case last != nil:
			last.stages = append(last.stages, c)
		default:
			last = &memo{stages: []charwise{c}, slot: slots}
			slots++
			out = append(out, last)
		}
	}
	switch len(out) {
	case 0:
		return nil
	case 1:
		return out[0]
	}
	return out
}

// flat appends the members of sequences within sequences.
func flat(n normalizer, out []normalizer) []normalizer {
	switch n := n.(type) {
	case nil:
	case normalizers:
		for _, x := range n {
			out = flat(x, out)
		}
	default:
		out = append(out, n)
	}
	return out
}

// memoWork is the memory of a memo.
type memoWork struct {
	same  [256]bool // the ASCII characters that stay as they are and join nothing
	ascii [utf8.RuneSelf]charEntry
	wide  [1024]charEntry // by the last bits of the character
	out   buffer

	buffers [2]buffer // of the normalizers in the memo; what they work on lies in those of the work
}

// charEntry is what becomes of a character.
type charEntry struct {
	r     rune
	joins joins
	size  uint8 // of the text; longText: it is too long for this place
	one   bool  // the text is one character
	text  [9]byte
}

const longText = 255

func (m *memo) work(w *work) *memoWork {
	for m.slot >= len(w.memos) {
		w.memos = append(w.memos, nil)
	}
	mw := w.memos[m.slot]
	if mw == nil {
		mw = &memoWork{}
		w.memos[m.slot] = mw
		for c := range mw.ascii {
			e := m.entry(w, mw, rune(c))
			mw.ascii[c] = e
			mw.same[c] = e.joins == 0 && e.size == 1 && e.text[0] == byte(c)
		}
	}
	return mw
}

// entry asks the normalizers.
func (m *memo) entry(w *work, mw *memoWork, r rune) charEntry {
	e := charEntry{r: r}
	s := segment{text: utf8.AppendRune(w.char[:0], r)}
	w.removed = false
	mw.buffers, w.buffers = w.buffers, mw.buffers
	for _, n := range m.stages {
		for i := 0; i < len(s.text); {
			r, size := utf8.DecodeRune(s.text[i:])
			e.joins |= n.joins(r)
			i += size
		}
		s = n.normalize(w, s)
	}
	mw.buffers, w.buffers = w.buffers, mw.buffers
	if w.removed {
		e.joins |= entangled
	}
	e.one = utf8.RuneCount(s.text) == 1
	if len(s.text) > len(e.text) {
		e.size = longText
	} else {
		e.size = uint8(copy(e.text[:], s.text))
	}
	return e
}

// all sends a text through the normalizers.
func (m *memo) all(w *work, mw *memoWork, s segment) segment {
	mw.buffers, w.buffers = w.buffers, mw.buffers
	for _, n := range m.stages {
		s = n.normalize(w, s)
	}
	mw.buffers, w.buffers = w.buffers, mw.buffers
	return s
}

// look is the entry of the character that text starts with.
func (m *memo) look(w *work, mw *memoWork, text []byte) (*charEntry, int) {
	if c := text[0]; c < utf8.RuneSelf {
		return &mw.ascii[c], 1
	}
	r, size := decode(text)
	e := &mw.wide[uint32(r)%uint32(len(mw.wide))]
	if e.r != r {
		*e = m.entry(w, mw, r)
	}
	return e, size
}

func (m *memo) normalize(w *work, s segment) segment {
	mw := m.work(w)
	if s.lead > 0 {
		return m.all(w, mw, s)
	}
	o := memoOutput{s: s, buffer: buffer{mw.out.text[:0], mw.out.from[:0]}, table: s.from != nil}
	text := s.text
	before := 0      // the character before
	open := joins(0) // how it bears on this one
	for i := 0; i < len(text); {
		if mw.same[text[i]] && open == 0 {
			for i++; i < len(text) && mw.same[text[i]]; i++ {
			}
			before = i - 1
			continue
		}
		e, n := m.look(w, mw, text[i:])
		j := e.joins
		switch {
		case j&entangled != 0:
			return m.all(w, mw, s)
		case i > 0 && joined(open, j):
			end := i + n
			for end < len(text) {
				var e *charEntry
				e, n = m.look(w, mw, text[end:])
				if e.joins&entangled != 0 {
					return m.all(w, mw, s)
				}
				if !joined(j, e.joins) {
					break
				}
				j = e.joins
				end += n
			}
			if !m.part(w, mw, &o, before, end) {
				return m.all(w, mw, s)
			}
			i, open = end, 0
			continue
		case e.size == longText:
			if !m.part(w, mw, &o, i, i+n) {
				return m.all(w, mw, s)
			}
		case int(e.size) != n || string(e.text[:n]) != string(text[i:i+n]):
			o.char(i, n, e)
		}
		before, open = i, j&joinsBehind
		i += n
	}
	return o.end(mw)
}

// joined reports whether two neighbours bear on each other: what the first says of the one behind it, or the second of the
// one before it.
func joined(first, second joins) bool { return first&joinsBehind != 0 || second&joinsBefore != 0 }

// part sends what lies between i and j, which bears on nothing else, through the normalizers. It fails where that is not so.
func (m *memo) part(w *work, mw *memoWork, o *memoOutput, i, j int) bool {
	w.removed = false
	p := m.all(w, mw, o.s.slice(i, j))
	if w.removed {
		return false
	}
	if i >= o.done && string(p.text) == string(o.s.text[i:j]) && p.from == nil {
		return true
	}
	o.start(i)
	o.tabled()
	o.last = len(o.text)
	o.text = append(o.text, p.text...)
	o.from = p.appendFrom(o.from)
	o.done, o.changed = j, true
	return true
}

// memoOutput is a segment on the way into another buffer. What lies behind done is not there yet.
type memoOutput struct {
	buffer
	s       segment
	done    int
	last    int  // where the last character that was written starts in the buffer
	table   bool // from is filled in; else all characters have the length that they had
	changed bool
}

// start brings the buffer to what stands before i: it writes what is missing or takes the last character back.
func (o *memoOutput) start(i int) {
	if i < o.done {
		o.text = o.text[:o.last]
		if o.table {
			o.from = o.from[:o.last]
		}
		o.done = i
		return
	}
	if o.table {
		part := o.s.slice(o.done, i)
		o.from = part.appendFrom(o.from)
	}
	o.text = append(o.text, o.s.text[o.done:i]...)
	o.done = i
}

// tabled starts the table.
func (o *memoOutput) tabled() {
	if !o.table {
		before := o.s.slice(0, o.done)
		o.from = before.appendFrom(o.from)
		o.table = true
	}
}

// char writes what becomes of the character of n bytes at i.
func (o *memoOutput) char(i, n int, e *charEntry) {
	o.start(i)
	if !e.one || int(e.size) != n {
		o.tabled()
	}
	o.last = len(o.text)
	o.text = append(o.text, e.text[:e.size]...)
	if o.table {
		at := o.s.span(i, i+n)
		for range e.size {
			o.from = append(o.from, at)
		}
	}
	o.done, o.changed = i+n, true
}

func (o *memoOutput) end(mw *memoWork) segment {
	if o.changed {
		o.start(len(o.s.text))
	}
	mw.out = o.buffer
	switch {
	case !o.changed:
		return o.s
	case o.table:
		return o.segment()
	}
	return segment{text: o.text, base: o.s.base}
}
