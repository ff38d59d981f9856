package tokenizer

import "unicode/utf8"

// work is the memory of one call at a time. Nothing in it survives a call but capacity, and the cache of words.
type work struct {
	core *core

	inputs   [2]runeCounter // of both texts
	tokens   []token
	texts    []byte   // of tokens that are not what the vocabulary says
	literals []span32 // in texts
	pieces   []piecePart
	segments []segment
	buffers  [2]buffer
	turn     int
	fixed    buffer // the text with invalid bytes replaced
	meta     buffer // what pre-tokenizers build
	spans    []span32
	changes  []change

	composedBuf []change
	key         []byte // of a vocabulary lookup
	bpe         bpeWork
	lattice     []latticeNode
	cache       *[cacheSize]cacheEntry
	memos       []*memoWork
	char        [utf8.UTFMax]byte
	removed     bool // Precompiled put nothing in the place of something: that changes where the character before comes from
}

// token is a piece of the original with its id.
type token struct {
	id    int32
	text  int32 // in work.literals, if it is not the text of the id; else -1
	bytes span32
}

// piecePart is a piece of a word.
type piecePart struct {
	id         int32
	start, end int32 // in the word
}

// stage hands the text of s from i to j to a pre-tokenizer, or to the model behind the last one.
func (w *work) stage(n int, s *segment, i, j int) {
	switch {
	case i >= j:
	case n < len(w.core.pre):
		w.core.pre[n].split(w, n+1, s, i, j)
	case w.core.cutter != nil:
		w.core.cutter.words(w, s, i, j)
	default:
		w.word(s, i, j)
	}
}

// segment is a place for what the stage before n makes. It is kept in the work, because stages get a pointer to it.
func (w *work) segment(n int) *segment {
	for n >= len(w.segments) {
		w.segments = append(w.segments, segment{})
	}
	return &w.segments[n]
}

// word cuts one word, the text of s from i to j, into tokens. Most words were seen before.
func (w *work) word(s *segment, i, j int) {
	word := s.text[i:j]
	if len(word) > cacheKey {
		w.pieces = w.cut(word, w.pieces[:0])
		w.emit(s, i, w.pieces)
		return
	}
	if w.cache == nil {
		w.cache = new([cacheSize]cacheEntry)
	}
	key, hash := newWordKey(word)
	e := &w.cache[hash%cacheSize]
	if !e.is(&key, len(word)) {
		w.pieces = w.cut(word, w.pieces[:0])
		if !e.set(&key, len(word), w.pieces) {
			w.emit(s, i, w.pieces)
			return
		}
	}
	start := i
	for k := range min(int(e.n), cachePieces) {
		end := i + int(e.ends[k])
		w.add(s, e.ids[k], start, end)
		start = end
	}
}

// cut appends the pieces of a word: often it is one, which the vocabulary knows to be what the model makes of it.
func (w *work) cut(word []byte, out []piecePart) []piecePart {
	v := &w.core.vocab
	key := word
	if suffix := w.core.suffix; suffix != "" {
		w.key = append(append(w.key[:0], word...), suffix...)
		key = w.key
	}
	if id := v.find(key, hashBytes(key)); id >= 0 && v.flags[id]&flagWhole != 0 {
		return append(out, piecePart{id, 0, int32(len(word))})
	}
	return w.core.model.tokenize(w, word, out)
}

// emit appends the tokens of a word that starts at i.
func (w *work) emit(s *segment, i int, pieces []piecePart) {
	for _, p := range pieces {
		w.add(s, p.id, i+int(p.start), i+int(p.end))
	}
}

func (w *work) add(s *segment, id int32, i, j int) {
	text := int32(-1)
	if id == w.core.literalUnk {
		text = w.keep(s.text[i:j])
	}
	w.tokens = append(w.tokens, token{id: id, text: text, bytes: s.span(i, j)})
}

// keep keeps the text of a token.
func (w *work) keep(text []byte) int32 {
	at := int32(len(w.texts))
	w.texts = append(w.texts, text...)
	w.literals = append(w.literals, span32{at, int32(len(w.texts))})
	return int32(len(w.literals) - 1)
}

func (w *work) reset() {
	w.tokens, w.texts, w.literals = w.tokens[:0], w.texts[:0], w.literals[:0]
}
