package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// The write attacks: what a process tries that has a read-only descriptor of somebody's weights, or none, and wants to change
// them. Each attack has a segment of its own, so that one that destroys it spoils no other's answer.

const envProbe = "ZCSTORE_TEST_PROBE"

// probeOrder is what an attacker is told. Descriptor 3+i is the segment of attack i.
type probeOrder struct {
	Attacks []string
	Names   []string // the segments' names on the file system; empty where they have none
	Dir     string
	Daemon  int // its pid
}

// probeMain makes the test binary an attacker. It says how each attack ended: with an errno, or "done".
func probeMain() {
	text := os.Getenv(envProbe)
	if text == "" {
		return
	}
	runtime.LockOSThread() // ptrace is a thread's business
	var o probeOrder
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := map[string]string{}
	for i, name := range o.Attacks {
		err := attacks[name](3+i, o.Names[i], o)
		out[name] = "done"
		var errno unix.Errno
		switch {
		case errors.As(err, &errno):
			out[name] = unix.ErrnoName(errno)
		case err != nil:
			out[name] = err.Error()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

var errNoName = errors.New("no name")

// spoil writes through a descriptor that is open for writing.
func spoil(fd int, err error) error {
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Pwrite(fd, []byte("SPOILED"), 0)
	return err
}

// byName makes a file writable, as its owner may, and writes.
func byName(path string) error {
	_ = unix.Chmod(path, 0o666) // whether that went well, the next step shows
	return spoil(unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0))
}

func again(fd, flags int) (int, error) {
	return unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC, 0)
}

// with does something to the segment opened again for writing.
func with(fd int, f func(rw int) error) error {
	rw, err := again(fd, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer unix.Close(rw)
	return f(rw)
}

const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE

var attacks = map[string]func(fd int, name string, o probeOrder) error{
	// Through the descriptor as it came.
	"write": func(fd int, _ string, _ probeOrder) error {
		_, err := unix.Pwrite(fd, []byte("SPOILED"), 0)
		return err
	},
	"truncate": func(fd int, _ string, _ probeOrder) error { return unix.Ftruncate(fd, 1) },
	"punch":    func(fd int, _ string, _ probeOrder) error { return unix.Fallocate(fd, punch, 0, 4096) },
	"mprotect": func(fd int, _ string, _ probeOrder) error {
		b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		if err := unix.Mprotect(b, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			return err
		}
		copy(b, "SPOILED")
		return nil
	},
	// Opened again.
	"reopen, write": func(fd int, _ string, _ probeOrder) error { return spoil(again(fd, unix.O_RDWR)) },
	"reopen to truncate": func(fd int, _ string, _ probeOrder) error {
		f, err := again(fd, unix.O_WRONLY|unix.O_TRUNC)
		return spoil(f, err)
	},
	"reopen, truncate": func(fd int, _ string, _ probeOrder) error {
		return with(fd, func(rw int) error { return unix.Ftruncate(rw, 1) })
	},
	"reopen, punch": func(fd int, _ string, _ probeOrder) error {
		return with(fd, func(rw int) error { return unix.Fallocate(rw, punch, 0, 4096) })
	},
	"reopen, map": func(fd int, _ string, _ probeOrder) error {
		return with(fd, func(rw int) error {
			b, err := unix.Mmap(rw, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err == nil {
				copy(b, "SPOILED")
			}
			return err
		})
	},
	"chmod, reopen": func(fd int, _ string, _ probeOrder) error {
		if err := unix.Fchmod(fd, 0o666); err != nil {
			return err
		}
		return spoil(again(fd, unix.O_RDWR))
	},
	// By its name.
	"by name": func(_ int, name string, o probeOrder) error {
		if name == "" {
			return errNoName
		}
		return byName(filepath.Join(o.Dir, name))
	},
	// Through the daemon.
	"daemon's descriptors": func(fd int, name string, o probeOrder) error {
		list := fmt.Sprintf("/proc/%d/fd", o.Daemon)
		open, err := os.ReadDir(list)
		if err != nil {
			return err
		}
		var mine unix.Stat_t
		if err := unix.Fstat(fd, &mine); err != nil {
			return err
		}
		last := errors.New("none of the segment")
		for _, e := range open {
			path := filepath.Join(list, e.Name())
			var st unix.Stat_t
			if unix.Stat(path, &st) != nil {
				continue
			}
			if st.Dev == mine.Dev && st.Ino == mine.Ino {
				if last = spoil(unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)); last == nil {
					return nil
				}
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR && name != "" {
				if err := byName(filepath.Join(path, name)); err == nil {
					return nil
				}
			}
		}
		return last
	},
	"pidfd_getfd": func(fd int, _ string, o probeOrder) error {
		pidfd, err := unix.PidfdOpen(o.Daemon, 0)
		if err != nil {
			return err
		}
		defer unix.Close(pidfd)
		var mine unix.Stat_t
		if err := unix.Fstat(fd, &mine); err != nil {
			return err
		}
		last := errors.New("none of the segment")
		for n := range 256 {
			got, err := unix.PidfdGetfd(pidfd, n, 0)
			if err != nil && !errors.Is(err, unix.EBADF) {
				return err
			}
			if err != nil {
				continue
			}
			var st unix.Stat_t
			if unix.Fstat(got, &st) == nil && st.Dev == mine.Dev && st.Ino == mine.Ino {
				if _, last = unix.Pwrite(got, []byte("SPOILED"), 0); last == nil {
					return nil
				}
			}
			unix.Close(got)
		}
		return last
	},
	// The daemon itself: with it, everything is possible that its uid may do.
	"memory": func(_ int, _ string, o probeOrder) error {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", o.Daemon), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	},
	"read memory": func(_ int, _ string, o probeOrder) error {
		var b [8]byte
		local := unix.Iovec{Base: &b[0]}
		local.SetLen(len(b))
		_, err := unix.ProcessVMReadv(o.Daemon, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 0x400000, Len: len(b)}}, 0)
		return err
	},
	"environment": func(_ int, _ string, o probeOrder) error {
		_, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", o.Daemon))
		return err
	},
	"ptrace": func(_ int, _ string, o probeOrder) error { return unix.PtraceSeize(o.Daemon) },
}

// attackOrder is the order of the table's columns.
var attackOrder = strings.Split("write|truncate|punch|mprotect|reopen, write|reopen to truncate|reopen, truncate|reopen, punch|reopen, map|chmod, reopen|by name|daemon's descriptors|pidfd_getfd|ptrace", "|")
