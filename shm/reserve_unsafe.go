package shm

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Why this is sound: the address of the mapping is a number for mmap and madvise. The mapping has no rights at all, so nothing
// can be read or written through it, and it is gone before reserve returns.

const (
	// collapseFrom is the size from which pages of 2 MiB are asked for: below, they save a put three milliseconds at most.
	collapseFrom = 8 * hugePage
	// collapseSlice is how much one call of the kernel collapses.
	collapseSlice = 4 * hugePage
	// smallTime is about what fallocate takes for 2 MiB in small pages, of its one core; collapsing takes a fifth of it. A core
	// that falls collapseLoss behind gives up: that kernel has to move memory about for pages of 2 MiB, or its hypervisor to
	// find some.
	smallTime    = 600 * time.Microsecond
	collapseLoss = 20 * time.Millisecond
)

// reserve allocates every page of a file that is empty; afterwards it is size bytes long. On a plain tmpfs fallocate takes pages
// of 4 KiB, one by one and on one core, so a large file is collapsed into pages of 2 MiB first, unless the file system is huge:
// there fallocate takes those itself. What cannot be collapsed, for want of such pages or of a kernel that can (6.1), fallocate
// allocates in small ones. It is the one that says whether there was room; so nothing is collapsed that memory cannot have.
func reserve(f *os.File, size int64, huge bool) error {
	if size >= collapseFrom && !huge {
		if _, free := Memory(); uint64(size) < free {
			_ = call("collapse", func() error { return collapse(int(f.Fd()), size) })
		}
	}
	return call("fallocate", func() error { return unix.Fallocate(int(f.Fd()), 0, 0, size) })
}

// collapse allocates the whole pages of 2 MiB of an empty file, on all cores. The kernel collapses what is not quite empty, so
// each gets one small page before.
func collapse(fd int, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	size -= size % hugePage
	for at := int64(0); at < size; at += hugePage {
		if err := unix.Fallocate(fd, 0, at, PageSize); err != nil {
			return err
		}
	}
	data, unmap, err := mapAligned(fd, size, unix.PROT_NONE)
	if err != nil {
		return err
	}
	defer unmap()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for limit := threadTime() + collapseLoss; threadTime() < limit; limit += collapseSlice / hugePage * smallTime {
				at := next.Add(collapseSlice) - collapseSlice
				if at >= size {
					return
				}
				err := unix.Madvise(data[at:min(size, at+collapseSlice)], unix.MADV_COLLAPSE)
				if err != nil && err != unix.EAGAIN { // EAGAIN: some of them could not, the next may
					return
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// mapAligned maps a file at an address that is a multiple of 2 MiB, inside a larger mapping that finds the room for it.
func mapAligned(fd int, size int64, prot int) (data []byte, unmap func(), err error) {
	room := uintptr(size + hugePage)
	outer, err := unix.MmapPtr(-1, 0, nil, room, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap: %w", err)
	}
	unmap = func() { _ = unix.MunmapPtr(outer, room) }
	inner := unsafe.Add(outer, -uintptr(outer)%hugePage)
	if _, err := unix.MmapPtr(fd, 0, inner, uintptr(size), prot, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		unmap()
		return nil, nil, fmt.Errorf("mmap: %w", err)
	}
	return unsafe.Slice((*byte)(inner), size), unmap, nil
}

// threadTime is what the calling thread has used of its core.
func threadTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &u) // it cannot fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
