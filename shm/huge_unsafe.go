package shm

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Why this is sound: the address of the first mapped byte is taken only to find the mapping's paragraph in /proc/self/smaps,
// as a number. Nothing is read or written through it.

// HugeBytes measures how much of a published file the kernel maps with pages of 2 MiB: what a worker gets. On a mount without
// them it costs one fstat; otherwise one page of each 2 MiB is mapped for a moment, none is allocated. The file is whole.
func HugeBytes(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	if st.Blksize < hugePage || st.Size < hugePage {
		return 0, nil
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("mmap: %w", err)
	}
	n, err := measureHuge(data)
	return n, errors.Join(err, unix.Munmap(data))
}

func measureHuge(data []byte) (uint64, error) {
	if err := unix.Madvise(data, unix.MADV_DONTDUMP); err != nil {
		return 0, fmt.Errorf("keep the mapping out of core dumps: %w", err)
	}
	for at := 0; at+PageSize <= len(data); at += hugePage {
		if err := unix.Madvise(data[at:at+PageSize], unix.MADV_POPULATE_READ); err != nil {
			return 0, fmt.Errorf("map a page: %w", err)
		}
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	head := fmt.Sprintf("%08x-", uintptr(unsafe.Pointer(&data[0])))
	ours := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if !ours {
			ours = strings.HasPrefix(line, head)
			continue
		}
		var kb uint64
		if n, _ := fmt.Sscanf(line, "ShmemPmdMapped: %d kB", &kb); n == 1 {
			return kb << 10, nil
		}
		if strings.HasPrefix(line, "VmFlags:") {
			break
		}
	}
	return 0, errors.New("the kernel does not tell which pages are of 2 MiB")
}
