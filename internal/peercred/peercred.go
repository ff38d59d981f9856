// Package peercred says who is on the other end of a Unix socket.
//
// The answer is the kernel's, not the peer's, and it is the one of the moment of connect (or listen): a process that
// changed its uid since, or handed the socket on, is still the one that connected. Pids are reused; whoever must be
// sure that a process is gone, or signal it, takes a pidfd as well.
package peercred

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Cred is what the kernel noted of the peer when the connection was made.
type Cred struct {
	UID, GID uint32
	PID      int32 // 0 when the peer is in a pid namespace that is not visible from here

	// Process tells processes apart that had the same pid one after the other: the inode of the peer's pidfd where the kernel
	// gives each process one of its own (6.9), else when it was started. Only Identify sets it; 0: not known.
	Process uint64
}

func (c Cred) String() string { return fmt.Sprintf("uid %d, gid %d, pid %d", c.UID, c.GID, c.PID) }

// Of asks for the peer's credentials (SO_PEERCRED). It borrows conn.
func Of(conn *net.UnixConn) (Cred, error) {
	var c Cred
	err := control(conn, func(fd int) error {
		u, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			c = Cred{UID: u.Uid, GID: u.Gid, PID: u.Pid}
		}
		return err
	})
	if err != nil {
		return Cred{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return c, nil
}

// Identify is Of with Process: two connections of one process have equal answers, and those of two processes never do,
// unless the kernel can tell neither way. It keeps no descriptor.
func Identify(conn *net.UnixConn) (Cred, error) {
	c, err := Of(conn)
	if err != nil {
		return Cred{}, err
	}
	fd, err := PIDFD(conn)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODATA): // it is gone
		return c, nil
	case err != nil:
		return Cred{}, err
	}
	if fd >= 0 {
		c.Process = inode(fd)
		unix.Close(fd)
	}
	if c.Process == 0 {
		c.Process = startTime(c.PID)
	}
	return c, nil
}

const pidfsMagic = 0x50494446

// inode is the inode of a pidfd, 0 where all pidfds share one.
func inode(fd int) uint64 {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != pidfsMagic || unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

// startTime is the 22nd field of /proc/PID/stat: clock ticks from boot to the process's start. 0: gone, or hidden.
func startTime(pid int32) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/stat")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // the command before it may hold anything
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(string(fields[19]), 10, 64)
	return n
}

// PIDFD returns a pidfd of the peer (SO_PEERPIDFD, Linux 6.5), close-on-exec; the caller owns it and must close it.
// It borrows conn. A kernel without the option is no error: the descriptor is then -1. A peer that is already gone
// may be one (ESRCH), depending on the kernel.
func PIDFD(conn *net.UnixConn) (int, error) {
	pidfd := -1
	err := control(conn, func(fd int) (err error) {
		pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		return err
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("open a pidfd of the peer: %w", err)
	}
	return pidfd, nil
}

func control(conn *net.UnixConn, f func(fd int) error) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
