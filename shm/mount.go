package shm

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hugePage is the page size that a tmpfs with huge= uses where it can.
const hugePage = 2 << 20

// ownMount tells that nothing but this directory is on its file system: it is the root of the mount, or the only entry of
// that root, in which others may make none (as they may in /dev/shm, and unlink it at once). In doubt it is not.
func (d *Dir) ownMount() bool {
	here, err := mountRoot(int(d.f.Fd()))
	if err != nil || here {
		return here
	}
	up, err := unix.Openat(int(d.f.Fd()), "..", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	parent := os.NewFile(uintptr(up), "parent")
	defer parent.Close()
	if root, err := mountRoot(up); err != nil || !root {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(up, &st); err != nil || st.Mode&0o022 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return false
	}
	names, err := parent.Readdirnames(2)
	return err == nil && len(names) == 1 && names[0] == filepath.Base(d.path)
}

// mountRoot tells that a directory is the root of a mount.
func mountRoot(fd int) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO, &st); err != nil {
		return false, err
	}
	return st.Attributes_mask&st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// MachineSwap tells whether this machine has swap space at all.
func MachineSwap() Swap {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return SwapUnknown
	}
	if strings.Count(string(b), "\n") > 1 { // a line of headings, then one for each
		return SwapPossible
	}
	return SwapNone
}

// mountHas looks for an option of the file system on a device.
func mountHas(dev uint64, option string) bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	want := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev))
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 10 || fields[2] != want {
			continue
		}
		for _, o := range strings.Split(fields[len(fields)-1], ",") {
			if o == option {
				return true
			}
		}
	}
	return false
}

// Memory is what the machine has and what is available without swapping, in bytes; none at all when the kernel does not say.
func Memory() (total, available uint64) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		var kb uint64
		if n, _ := fmt.Sscanf(sc.Text(), "MemTotal: %d kB", &kb); n == 1 {
			total = kb << 10
		}
		if n, _ := fmt.Sscanf(sc.Text(), "MemAvailable: %d kB", &kb); n == 1 {
			available = kb << 10
		}
	}
	return total, min(available, math.MaxInt64)
}
