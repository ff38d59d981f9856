package region

import "unsafe"

// Why this is sound: the address is only compared with other addresses, never turned back into a pointer; the memory is
// mapped, not of the Go heap, so it does not move.

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
