package tokenizer

import "encoding/binary"

// The cache of words: half a megabyte, of which a word takes a line of 64 bytes. A word that falls on the place of another
// replaces it.
const (
	cacheSize   = 8192
	cacheKey    = 32 // bytes of the longest word that is kept
	cachePieces = 6
)

// cacheEntry is a word and its pieces, which follow each other from its start. n is 0 where there is none.
type cacheEntry struct {
	key    wordKey
	ids    [cachePieces]int32
	ends   [cachePieces]uint8
	length uint8 // of the word
	n      uint8
}

// is reports whether this is the word of so many bytes.
func (e *cacheEntry) is(key *wordKey, length int) bool {
	return e.key == *key && int(e.length) == length && e.n > 0
}

// set keeps a word, if its pieces fit.
func (e *cacheEntry) set(key *wordKey, length int, pieces []piecePart) bool {
	if len(pieces) > cachePieces {
		return false
	}
	start := int32(0)
	for _, p := range pieces {
		if p.start != start {
			return false
		}
		start = p.end
	}
	e.key, e.length, e.n = *key, uint8(length), uint8(len(pieces))
	for i, p := range pieces {
		e.ids[i], e.ends[i] = p.id, uint8(p.end)
	}
	return true
}

// wordKey is the bytes of a word of at most 32, taken from both ends. With its length it says what the word is.
type wordKey struct{ a, b, c, d uint64 }

func newWordKey(s []byte) (k wordKey, hash uint64) {
	n := len(s)
	switch {
	case n > 16:
		k.a, k.b = binary.LittleEndian.Uint64(s), binary.LittleEndian.Uint64(s[8:])
		k.c, k.d = binary.LittleEndian.Uint64(s[n-16:]), binary.LittleEndian.Uint64(s[n-8:])
	case n >= 8:
		k.a, k.b = binary.LittleEndian.Uint64(s), binary.LittleEndian.Uint64(s[n-8:])
	case n >= 4:
		k.a = uint64(binary.LittleEndian.Uint32(s)) | uint64(binary.LittleEndian.Uint32(s[n-4:]))<<32
	case n > 0:
		k.a = uint64(s[0])<<16 | uint64(s[n/2])<<8 | uint64(s[n-1])
	}
	hash = mix(k.a^0xa0761d6478bd642f, k.b^0xe7037ed1a0b428db^uint64(n))
	if n > 16 {
		hash = mix(hash^k.c, k.d^0x8ebc6af09c88c6e3)
	}
	return k, hash
}
