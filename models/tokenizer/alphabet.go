package tokenizer

import "unicode/utf8"

// The alphabet of byte-level models has a printable character for each byte: itself if it is one, else one from U+0100 on.
var alphabet = func() map[rune]byte {
	bytes, next := map[rune]byte{}, rune(0x100)
	for b := range 256 {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			bytes[rune(b)] = byte(b)
		} else {
			bytes[next] = byte(b)
			next++
		}
	}
	return bytes
}()

// bytesOfAlphabet is the bytes that a token stands for, if all its characters are of the alphabet.
func bytesOfAlphabet(token []byte) ([]byte, bool) {
	out := make([]byte, 0, len(token))
	for i := 0; i < len(token); {
		r, n := utf8.DecodeRune(token[i:])
		b, ok := alphabet[r]
		if !ok {
			return nil, false
		}
		out = append(out, b)
		i += n
	}
	return out, true
}
