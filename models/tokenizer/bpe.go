package tokenizer

import (
	"math"
	"unicode/utf8"
)

// bpe starts with the characters of a word and joins neighbours, those of the best rank first, until none of its rules
// applies. The words of a byte-level model are bytes, and so are its characters.
type bpe struct {
	v      *vocabulary
	merges []uint32 // hash table, four words a slot: left id, right id plus one or 0, rank, id of both together
	glue   []uint32 // 65,536 bits: a rule joins something that ends with the first byte to what starts with the second; empty: unknown

	byteLevel    bool
	prefix       string // of every character but the first
	suffix       string // of the last character
	unk          int32  // -1: unknown characters go
	fuse         bool   // unknown characters side by side are one
	ignoreMerges bool
	bytes        *[256]int32 // the tokens of bytes that stand for unknown characters
	single       *[256]int32 // the tokens of single bytes, where there is neither prefix nor suffix
}

// bpeWork is memory.
type bpeWork struct {
	symbols []symbol
	heap    []pairRank
	key     []byte
}

type symbol struct {
	id         int32
	length     int32  // in bytes of the word, 0: it was joined to another
	prev, next int32  // in long words
	rank       uint32 // of joining it with the next, in short words
	joined     int32  // what that gives
}

type pairRank struct {
	rank uint32
	at   int32
	id   int32
}

const noRank = math.MaxUint32

func (m *bpe) merge(a, b int32) (rank uint32, id int32) {
	mask := len(m.merges)/4 - 1
	if mask < 0 {
		return noRank, 0
	}
	for i, n := int(hashPair(uint32(a), uint32(b)))&mask, 0; n <= mask; i, n = (i+1)&mask, n+1 {
		e := m.merges[4*i : 4*i+4 : 4*i+4]
		if e[0] == uint32(a) && e[1] == uint32(b)+1 {
			return e[2], int32(e[3])
		}
		if e[1] == 0 {
			break
		}
	}
	return noRank, 0
}

// words cuts the text from i to j where no rule joins anything, which changes nothing but the time that it takes.
func (m *bpe) words(w *work, s *segment, i, j int) {
	first := len(w.tokens)
	emit := func(i, j int) {
		n := len(w.tokens)
		w.word(s, i, j)
		if m.fuse && n > first && n < len(w.tokens) && w.tokens[n].id == m.unk && w.tokens[n-1].id == m.unk {
			w.tokens[n-1].bytes.end = w.tokens[n].bytes.end
			w.tokens = append(w.tokens[:n], w.tokens[n+1:]...)
		}
	}
	start := i
	for i++; i < j; i++ {
		c := s.text[i]
		if c&0xc0 == 0x80 {
			continue
		}
		if pair := int(s.text[i-1])<<8 | int(c); m.glue[pair>>5]>>(pair&31)&1 == 0 {
			emit(start, i)
			start = i
		}
	}
	emit(start, j)
}

func (m *bpe) tokenize(w *work, word []byte, out []piecePart) []piecePart {
	if m.ignoreMerges {
		if id := m.v.find(word, hashBytes(word)); id >= 0 {
			return append(out, piecePart{id, 0, int32(len(word))})
		}
	}
	symbols := m.symbols(w, word)
	if len(symbols) <= 64 {
		symbols = m.mergeShort(symbols)
	} else {
		m.mergeLong(w, symbols)
	}
	at := int32(0)
	for _, s := range symbols {
		if s.length > 0 {
			out = append(out, piecePart{s.id, at, at + s.length})
			at += s.length
		}
	}
	return out
}

// symbols is the word in characters.
func (m *bpe) symbols(w *work, word []byte) []symbol {
	out := w.bpe.symbols[:0]
	if m.single != nil {
		for i, c := range word {
			if id := m.single[c]; id >= 0 {
				out = append(out, symbol{id: id, length: 1})
			} else if m.unk >= 0 {
				if n := len(out); m.fuse && i > 0 && m.single[word[i-1]] < 0 {
					out[n-1].length++
				} else {
					out = append(out, symbol{id: m.unk, length: 1})
				}
			}
		}
		w.bpe.symbols = out
		return out
	}
	unk := int32(0) // the length of what is unknown and not yet appended
	flush := func() {
		if unk > 0 {
			out = append(out, symbol{id: m.unk, length: unk})
			unk = 0
		}
	}
	for i := 0; i < len(word); {
		n := 1
		if !m.byteLevel && word[i] >= utf8.RuneSelf {
			_, n = utf8.DecodeRune(word[i:])
		}
		key := word[i : i+n]
		if m.prefix != "" && i > 0 || m.suffix != "" && i+n == len(word) {
			k := w.bpe.key[:0]
			if i > 0 {
				k = append(k, m.prefix...)
			}
			k = append(k, key...)
			if i+n == len(word) {
				k = append(k, m.suffix...)
			}
			w.bpe.key, key = k, k
		}
		i += n
		switch id := m.v.find(key, hashBytes(key)); {
		case id >= 0:
			flush()
			out = append(out, symbol{id: id, length: int32(n)})
		case m.bytes != nil && haveAll(m.bytes, key):
			for _, c := range key {
				out = append(out, symbol{id: m.bytes[c], length: 1})
			}
		case m.unk >= 0:
			if !m.fuse {
				flush()
			}
			unk += int32(n)
		}
	}
	flush()
	w.bpe.symbols = out
	return out
}

// mergeShort looks at all pairs for each rule. In the words of a text that is the fastest.
func (m *bpe) mergeShort(s []symbol) []symbol {
	for i := range s {
		s[i].rank = noRank
		if i+1 < len(s) {
			s[i].rank, s[i].joined = m.merge(s[i].id, s[i+1].id)
		}
	}
	for {
		best, at := uint32(noRank), -1
		for i := range s {
			if s[i].rank < best {
				best, at = s[i].rank, i
			}
		}
		if at < 0 || at+1 >= len(s) {
			return s
		}
		s[at].id = s[at].joined
		s[at].length += s[at+1].length
		copy(s[at+1:], s[at+2:])
		s = s[:len(s)-1]
		s[at].rank = noRank
		if at+1 < len(s) {
			s[at].rank, s[at].joined = m.merge(s[at].id, s[at+1].id)
		}
		if at > 0 {
			s[at-1].rank, s[at-1].joined = m.merge(s[at-1].id, s[at].id)
		}
	}
}

// mergeLong keeps the pairs in a heap. Symbols that were joined to another get the length 0.
func (m *bpe) mergeLong(w *work, s []symbol) {
	h := w.bpe.heap[:0]
	for i := range s {
		s[i].prev, s[i].next = int32(i)-1, int32(i)+1
		if i+1 < len(s) {
			if rank, id := m.merge(s[i].id, s[i+1].id); rank != noRank {
				h = append(h, pairRank{rank, int32(i), id})
			}
		}
	}
	for i := len(h)/2 - 1; i >= 0; i-- {
		sink(h, i)
	}
	push := func(at int32) {
		if rank, id := m.merge(s[at].id, s[s[at].next].id); rank != noRank {
			h = append(h, pairRank{rank, at, id})
			rise(h, len(h)-1)
		}
	}
	for len(h) > 0 {
		top := h[0]
		h[0] = h[len(h)-1]
		h = h[:len(h)-1]
		sink(h, 0)
		at := &s[top.at]
		if at.length == 0 || int(at.next) >= len(s) {
			continue
		}
		right := &s[at.next]
		if rank, id := m.merge(at.id, right.id); rank == noRank || id != top.id {
			continue // the pair is no longer there
		}
		at.id = top.id
		at.length += right.length
		right.length = 0
		at.next = right.next
		if int(at.next) < len(s) {
			s[at.next].prev = top.at
		}
		if at.prev >= 0 {
			push(at.prev)
		}
		if int(at.next) < len(s) {
			push(top.at)
		}
	}
	w.bpe.heap = h
}

func (a pairRank) before(b pairRank) bool { return a.rank < b.rank || a.rank == b.rank && a.at < b.at }

func sink(h []pairRank, i int) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h[c+1].before(h[c]) {
			c++
		}
		if !h[c].before(h[i]) {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

func rise(h []pairRank, i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !h[i].before(h[p]) {
			return
		}
		h[i], h[p] = h[p], h[i]
		i = p
	}
}

// newMerges is the hash table of the rules.
func newMerges(rules []mergeRule) []uint32 {
	size := tableSize(len(rules))
	t := make([]uint32, 4*size)
	for _, r := range rules {
		i := int(hashPair(uint32(r.left), uint32(r.right))) & (size - 1)
		for t[4*i+1] != 0 && (t[4*i] != uint32(r.left) || t[4*i+1] != uint32(r.right)+1) {
			i = (i + 1) & (size - 1)
		}
		// Of two equal rules the later one counts.
		t[4*i], t[4*i+1], t[4*i+2], t[4*i+3] = uint32(r.left), uint32(r.right)+1, r.rank, uint32(r.joined)
	}
	return t
}

// mergeRule joins two tokens. The rules of the lowest rank are applied first, equal ones from the left.
type mergeRule struct {
	left, right, joined int32
	rank                uint32
}

// newGlue finds which characters may come to stand in one token, by the last byte of the one and the first of the other.
func newGlue(rules []mergeRule, name func(id int32) []byte) []uint32 {
	glue := make([]uint32, 1<<11)
	for _, r := range rules {
		text := name(r.joined)
		for i := 1; i < len(text); i++ {
			if text[i]&0xc0 != 0x80 {
				pair := int(text[i-1])<<8 | int(text[i])
				glue[pair>>5] |= 1 << (pair & 31)
			}
		}
	}
	return glue
}
