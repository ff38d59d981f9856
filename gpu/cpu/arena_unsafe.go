package cpu

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/gpu"
)

// AllocScratch implements gpu.Scratcher: memory beside the Go heap. Scratch comes in pieces of many megabytes, and what a stream
// gives up when it knows how much it needs would stay with the process until the garbage collector thinks of it.
func (d *Device) AllocScratch(bytes int) (gpu.Buf, error) {
	const page = 4096
	if bytes < 16*page {
		return d.Alloc(bytes)
	}
	if bytes > maxAlloc {
		return nil, tooMuch(bytes)
	}
	mem, err := unix.Mmap(-1, 0, (bytes+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, &gpu.OpError{Op: "alloc", Kind: gpu.ErrMemory, Reason: fmt.Sprintf("%d bytes: %v", bytes, err)}
	}
	// Sound: a mapping begins on a page and has no pointers; nobody looks at it after Free, which is its owner's to call.
	f := unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/4)
	return &buf{d: d, f: f[:(bytes+3)/4], mapped: mem}, nil
}

func (b *buf) unmap() {
	if b.mapped != nil {
		_ = unix.Munmap(b.mapped) // of what Mmap gave
		b.mapped = nil
	}
}
