package tokenizer

// work is the memory of one call at a time. Nothing in it survives a call but capacity, and the cache of words.
type work struct {
	core *core

	noRunes bool // the offsets in code points are not wanted

	tokens  []token
	texts   []byte // of tokens that are not what the vocabulary says
	pieces  []piecePart
	buffers [2]buffer
	turn    int
	fixed   buffer // the text with invalid bytes replaced
	meta    buffer // what pre-tokenizers build
	spans   []span32
	changes []change

	composedBuf []change
	key         []byte // of a vocabulary lookup
	bpe         bpeWork
	lattice     []latticeNode
	cache       []cacheEntry
}

// token is a piece of the original with its id.
type token struct {
	id    int32
	runes span32 // of the original text, in code points
	bytes span32
	text  span32 // in work.texts, if it is not the text of the id; else start is -1
}

// piecePart is a piece of a word.
type piecePart struct {
	id         int32
	start, end int32 // in the word
}

// stage hands a piece of text to a pre-tokenizer, or to the model behind the last one.
func (w *work) stage(n int, s segment) {
	if len(s.text) == 0 {
		return
	}
	if n < len(w.core.pre) {
		w.core.pre[n].split(w, n+1, s)
		return
	}
	w.core.model.words(w, s)
}

// word cuts one word into tokens: most are one token that the vocabulary knows to be what the model makes of it, most
// others were seen before.
func (w *work) word(s *segment) {
	v := &w.core.vocab
	key := s.text
	if suffix := w.core.suffix; suffix != "" {
		w.key = append(append(w.key[:0], key...), suffix...)
		key = w.key
	}
	hash := hashBytes(key)
	if id := v.find(key, hash); id >= 0 && v.flags[id]&flagWhole != 0 {
		w.tokens = append(w.tokens, token{id: id, bytes: s.span(0, len(s.text)), text: span32{-1, 0}})
		return
	}
	var slot *cacheEntry
	if len(s.text) <= cacheKey {
		if w.cache == nil {
			w.cache = make([]cacheEntry, cacheSize)
		}
		slot = &w.cache[hash>>32%cacheSize]
		if slot.hash == hash && int(slot.length) == len(s.text) && string(slot.key[:slot.length]) == string(s.text) {
			for i := range int(slot.n) {
				w.emit(s, piecePart{slot.ids[i], int32(slot.at[i][0]), int32(slot.at[i][1])})
			}
			return
		}
	}
	w.pieces = w.core.model.tokenize(w, s.text, w.pieces[:0])
	for _, p := range w.pieces {
		w.emit(s, p)
	}
	if slot != nil && len(w.pieces) <= cachePieces {
		slot.hash, slot.length, slot.n = hash, uint8(len(s.text)), uint8(len(w.pieces))
		copy(slot.key[:], s.text)
		for i, p := range w.pieces {
			slot.ids[i], slot.at[i] = p.id, [2]uint8{uint8(p.start), uint8(p.end)}
		}
	}
}

func (w *work) emit(s *segment, p piecePart) {
	t := token{id: p.id, bytes: s.span(int(p.start), int(p.end)), text: span32{-1, 0}}
	if p.id == w.core.literalUnk {
		t.text = w.keep(s.text[p.start:p.end])
	}
	w.tokens = append(w.tokens, t)
}

// keep keeps the text of a token.
func (w *work) keep(text []byte) span32 {
	at := int32(len(w.texts))
	w.texts = append(w.texts, text...)
	return span32{at, int32(len(w.texts))}
}

const (
	cacheSize   = 4096
	cacheKey    = 30
	cachePieces = 8
)

// cacheEntry is a word that the model cut into pieces.
type cacheEntry struct {
	hash      uint64
	length, n uint8
	key       [cacheKey]byte
	ids       [cachePieces]int32
	at        [cachePieces][2]uint8
}
