package tokenizer

import "unsafe"

// bytesOf is the bytes of a string, not copied. Nobody in this package writes to the text of a segment that it did not
// build itself, and the result does not outlive the call that got the string.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// words sees bytes as 32-bit numbers in the order of this machine. It refuses what is not aligned or not whole; a slice
// of plain integers has no invalid bit patterns, and it keeps its length, so every index stays checked.
func words(b []byte) ([]uint32, bool) {
	if len(b)%4 != 0 {
		return nil, false
	}
	if len(b) == 0 {
		return nil, true
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(p)%4 != 0 {
		return nil, false
	}
	return unsafe.Slice((*uint32)(p), len(b)/4), true
}
