package tokenizer

import (
	"encoding/binary"
	"math/bits"
)

// hashBytes spreads a key over 64 bits. It is part of the compiled form: changing it changes the format's version.
func hashBytes(b []byte) uint64 {
	const k0, k1, k2 = 0xa0761d6478bd642f, 0xe7037ed1a0b428db, 0x8ebc6af09c88c6e3
	n := len(b)
	h := uint64(n) ^ k0
	var x, y uint64
	switch {
	case n > 16:
		for len(b) > 16 {
			h = mix(binary.LittleEndian.Uint64(b)^k1, binary.LittleEndian.Uint64(b[8:])^h)
			b = b[16:]
		}
		var last [16]byte
		copy(last[:], b)
		x, y = binary.LittleEndian.Uint64(last[:]), binary.LittleEndian.Uint64(last[8:])
	case n >= 8:
		x, y = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[n-8:])
	case n >= 4:
		x, y = uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[n-4:]))
	case n > 0:
		x = uint64(b[0])<<16 | uint64(b[n/2])<<8 | uint64(b[n-1])
	}
	return mix(k2^h, mix(x^k1, y^h))
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

func hashPair(a, b uint32) uint64 {
	return mix((uint64(a)<<32|uint64(b))^0xa0761d6478bd642f, 0xe7037ed1a0b428db)
}

// tableSize is a power of two with room to spare for n entries.
func tableSize(n int) int {
	size := 8
	for size < n+n/2 {
		size *= 2
	}
	return size
}
