package e2e

import (
	"syscall"
	"unsafe"
)

// addressOf is where b lies. It is only compared, never turned back into a pointer.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// strayRead reads memory that was unmapped, which no mapping of ours has: what a bug would do.
func strayRead() int {
	b, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		panic(err)
	}
	p := unsafe.SliceData(b)
	if err := syscall.Munmap(b); err != nil {
		panic(err)
	}
	return int(*p)
}
