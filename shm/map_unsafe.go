package shm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/shm/region"
)

// Why this is sound: the slice is exactly the mapping, which is PROT_READ, so a write through it faults instead of changing
// anybody's weights; the file is a regular one, at least as long as the mapping, and whoever publishes segments never cuts
// them. After Close the pages are gone and a read faults: Mapping's owner says when that may happen.

// Mapping is a file mapped read-only and shared: the kernel's own pages, no copy. Bytes may be read from any goroutine
// until Close.
type Mapping struct {
	data    []byte
	inode   uint64
	known   *region.Region
	once    sync.Once
	err     error
	cleanup runtime.Cleanup
}

// Map maps size bytes of f, which must be a regular file of at least that size, opened for reading only. It does not keep
// f, and the caller may close it at once: the mapping holds the memory. Weights are kept out of core dumps.
func Map(f *os.File, size int) (*Mapping, error) { return MapIn(nil, f, size) }

// MapIn is Map for readers who go through a gate: weights on the mapping are computed with only while they are inside. The
// mapping does not use the gate itself: whoever closes the mapping closes the gate first.
func MapIn(gate *region.Gate, f *os.File, size int) (*Mapping, error) {
	if size <= 0 {
		return nil, fmt.Errorf("map %d bytes: nothing to map", size)
	}
	st, err := checkReadOnly(f)
	if err != nil {
		return nil, err
	}
	if st.Size < int64(size) {
		return nil, fmt.Errorf("segment has %d bytes, %d were announced", st.Size, size)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap %d bytes: %w", size, err)
	}
	if err := unix.Madvise(data, unix.MADV_DONTDUMP); err != nil {
		return nil, errors.Join(fmt.Errorf("keep the mapping out of core dumps: %w", err), unix.Munmap(data))
	}
	m := &Mapping{data: data, inode: st.Ino, known: region.Register(data, gate)}
	// A safety net: reaching it means that somebody forgot Close.
	known := m.known
	m.cleanup = runtime.AddCleanup(m, func(d []byte) { known.Remove(); _ = unix.Munmap(d) }, data)
	return m, nil
}

func checkReadOnly(f *os.File) (st unix.Stat_t, err error) {
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return st, fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return st, fmt.Errorf("descriptor is no regular file (mode %#o)", st.Mode)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return st, fmt.Errorf("fcntl: %w", err)
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		return st, fmt.Errorf("descriptor is open for writing; a published segment never is")
	}
	return st, nil
}

// Bytes is the mapped memory: read-only, valid until Close. A write to it is a fault.
func (m *Mapping) Bytes() []byte { return m.data }

// Inode is the number of the file behind the mapping: equal in every process that maps the same segment.
func (m *Mapping) Inode() uint64 { return m.inode }

// Populate maps every page in now, without copying: later reads do not fault. It costs about 35 ms a GiB with 4 KiB pages.
// Unlike MAP_POPULATE it says when it fails: EFAULT where the file was cut, ENOMEM, EINVAL on kernels before 5.14.
func (m *Mapping) Populate() error { return m.PopulateRange(0, len(m.data)) }

// PopulateRange is Populate for n bytes from a page boundary on.
func (m *Mapping) PopulateRange(from, n int) error {
	for {
		err := unix.Madvise(m.data[from:from+n], unix.MADV_POPULATE_READ)
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}

// Close unmaps. Views on the mapping must not be used afterwards: reading one is a fault. A second Close does nothing.
func (m *Mapping) Close() error {
	m.once.Do(func() {
		m.cleanup.Stop()
		m.known.Remove()
		m.err = unix.Munmap(m.data)
	})
	return m.err
}
