package tokenizer

// sequence is text on its way through the pieces: runes, and for each the bytes of the original that it came from.
// The spans never go backwards. Sub-slices share memory, so only a normalizer, which owns its sequence, may write.
type sequence struct {
	runes []rune
	from  []span32
}

func newSequence(text string) sequence {
	s := sequence{make([]rune, 0, len(text)), make([]span32, 0, len(text))}
	for i, r := range text { // an invalid byte is U+FFFD
		if n := len(s.from); n > 0 {
			s.from[n-1].end = int32(i)
		}
		s.runes = append(s.runes, r)
		s.from = append(s.from, span32{int32(i), int32(len(text))})
	}
	return s
}

func (s sequence) slice(i, j int) sequence { return sequence{s.runes[i:j:j], s.from[i:j:j]} }

// bytes is the range of the original that the runes from i to j, at least one, came from.
func (s sequence) bytes(i, j int) span32 { return span32{s.from[i].start, s.from[j-1].end} }

// filter drops the runes that keep does not want.
func (s *sequence) filter(keep func(rune) bool) {
	n := 0
	for i, r := range s.runes {
		if keep(r) {
			s.runes[n], s.from[n] = r, s.from[i]
			n++
		}
	}
	s.runes, s.from = s.runes[:n], s.from[:n]
}

// change is a rune of rewritten text. The new ones that replace runes of the old text do so in order, one each;
// inserted ones come from where the old rune before them came from.
type change struct {
	r        rune
	inserted bool
}

// rewrite replaces the whole text. Exactly as many changes as there are runes must not be inserted ones.
func (s *sequence) rewrite(changes []change) {
	from := make([]span32, len(changes))
	runes := make([]rune, len(changes))
	next := 0
	for i, c := range changes {
		runes[i] = c.r
		if !c.inserted {
			next++
		}
		from[i] = s.from[max(next-1, 0)]
	}
	s.runes, s.from = runes, from
}
