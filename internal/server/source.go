package server

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// checkSource takes only what can be read at any place without side effects: a regular file that was opened for reading. It
// gives the file's size. Errors: Invalid, naming what it is.
func checkSource(f *os.File) (size uint64, err error) {
	refuse := func(what string) (uint64, error) {
		return 0, zcerr.New(zcerr.Invalid, "the source is %s, not a regular file opened for reading", what).
			WithHint("pass a descriptor that was opened with O_RDONLY, or send the bytes over the raw channel")
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	var flags int
	var link string
	var serr error
	if err := raw.Control(func(fd uintptr) {
		if serr = unix.Fstat(int(fd), &st); serr == nil {
			flags, serr = unix.FcntlInt(fd, unix.F_GETFL, 0)
		}
		link, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	}); err != nil {
		return 0, err
	}
	if serr != nil {
		return 0, serr
	}
	if flags&unix.O_PATH != 0 {
		return refuse("opened with O_PATH")
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return refuse("a pipe")
	case unix.S_IFDIR:
		return refuse("a directory")
	case unix.S_IFSOCK:
		return refuse("a socket")
	case unix.S_IFCHR:
		return refuse("a character device")
	case unix.S_IFBLK:
		return refuse("a block device")
	}
	// Kernel objects without a path: epoll, eventfd, io_uring; newer kernels make a pidfd look like a regular file.
	if name, ok := strings.CutPrefix(link, "anon_inode:"); ok {
		return refuse("a kernel object " + name)
	}
	if strings.HasPrefix(link, "pidfd:") || strings.HasPrefix(link, "pidfs:") {
		return refuse("a kernel object [pidfd]")
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return refuse(fmt.Sprintf("of type %#o", st.Mode&unix.S_IFMT))
	}
	switch flags & unix.O_ACCMODE {
	case unix.O_RDONLY:
		return uint64(st.Size), nil
	case unix.O_WRONLY:
		return refuse("opened for writing")
	}
	return refuse("opened for reading and writing")
}
