package tokenizer

import (
	"encoding/binary"
	"fmt"
)

// The compiled form is a header and sections of little-endian numbers and bytes, each on a multiple of 64, that are used where
// they lie:
//
//	8 bytes   magic
//	4 bytes   version; it changes with the meaning of any section, and with hashBytes and hashPair
//	4 bytes   number of sections
//	16 bytes  of each section, where it starts and how long it is

// CompiledVersion is that of the compiled form. Open takes no other.
const CompiledVersion = 1

const (
	compiledMagic = "zctoken\x00"
	sectionAlign  = 64
	maxSections   = 64
)

// The sections, in their order. A table that a tokenizer does not need is empty.
const (
	secConfig = iota // the tokenizer.json without its tables
	secFlags
	secNameEnds
	secNameBlob
	secKeyEnds // empty: the keys are the names
	secKeyBlob
	secTable
	secNamed
	secMerges
	secGlue
	secTrie
	secScores
	secAdded // two words each: id, flags
	secAddedEnds
	secAddedBlob
	secAddedRaw        // trie of the tokens that are looked for in the text as given
	secAddedNormalized // of those in the normalised text
	secCharsmap        // the first of the character maps of normalizers
)

// seal puts sections together.
func seal(sections [][]byte) []byte {
	at := 16 + 16*len(sections)
	align := func() { at = (at + sectionAlign - 1) / sectionAlign * sectionAlign }
	out := append([]byte(compiledMagic), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.LittleEndian.PutUint32(out[8:], CompiledVersion)
	binary.LittleEndian.PutUint32(out[12:], uint32(len(sections)))
	for _, s := range sections {
		align()
		out = binary.LittleEndian.AppendUint64(out, uint64(at))
		out = binary.LittleEndian.AppendUint64(out, uint64(len(s)))
		at += len(s)
	}
	align()
	whole := make([]byte, at)
	copy(whole, out)
	for i, s := range sections {
		copy(whole[binary.LittleEndian.Uint64(out[16+16*i:]):], s)
	}
	return whole
}

// unseal finds the sections. What it gives lies in b.
func unseal(b []byte) ([][]byte, error) {
	if len(b) < 16 || string(b[:8]) != compiledMagic {
		return nil, fmt.Errorf("this is no compiled tokenizer")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != CompiledVersion {
		return nil, fmt.Errorf("compiled by version %d of the format, this program has version %d", v, CompiledVersion)
	}
	n := int(binary.LittleEndian.Uint32(b[12:]))
	if n < secCharsmap || n > maxSections || len(b) < 16+16*n {
		return nil, fmt.Errorf("%d sections in %d bytes", n, len(b))
	}
	out := make([][]byte, n)
	for i := range out {
		at, size := binary.LittleEndian.Uint64(b[16+16*i:]), binary.LittleEndian.Uint64(b[24+16*i:])
		if at%sectionAlign != 0 || at > uint64(len(b)) || size > uint64(len(b))-at {
			return nil, fmt.Errorf("section %d lies at %d and has %d bytes, the whole has %d", i, at, size, len(b))
		}
		out[i] = b[at : at+size : at+size]
	}
	return out, nil
}

// bytesOfWords is the little-endian form of a table.
func bytesOfWords(t []uint32) []byte {
	out := make([]byte, 0, 4*len(t))
	for _, v := range t {
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return out
}
