package cpu

import "unsafe"

// Why this is sound: float32 and int32 have the same size and alignment and no invalid bit patterns, the result covers
// exactly the elements of the argument and keeps its array alive.

// int32s is the same memory as indices.
func int32s(f []float32) []int32 {
	if len(f) == 0 {
		return nil
	}
	return unsafe.Slice((*int32)(unsafe.Pointer(unsafe.SliceData(f))), len(f))
}
