package peercred

import (
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Groups gives the supplementary groups that the peer had when the connection was made (SO_PEERGROUPS, Linux 4.13).
//
// unsafe: x/sys has no call for this option. The kernel writes at most size bytes, which is the length of buf in bytes, and
// says in size how many it wrote or wants (ERANGE). buf is kept alive by the pointer in the same expression as the call.
func Groups(conn *net.UnixConn) ([]uint32, error) {
	var groups []uint32
	err := control(conn, func(fd int) error {
		buf := make([]uint32, 64)
		for {
			size := uint32(4 * len(buf))
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
			switch {
			case errno == unix.ERANGE && int(size/4) > len(buf) && size <= 4<<16: // NGROUPS_MAX
				buf = make([]uint32, size/4)
			case errno != 0:
				return errno
			default:
				groups = buf[:size/4]
				return nil
			}
		}
	})
	return groups, err
}
