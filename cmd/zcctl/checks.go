package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/internal/units"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
)

// The checks of doctor. Each looks at one thing and gives what to do about it.

const (
	shmDir      = "/dev/shm"
	tmpfsMagic  = 0x01021994
	maxSockPath = 107
	smallSpace  = 1 << 30
	moreSpace   = "mount -o remount,size=8g /dev/shm; in a container: docker run --shm-size=8g, in Kubernetes an emptyDir with medium: Memory on /dev/shm"
)

// socketAccess says who may connect to a socket: "" when there is none, or what is wrong with it.
func socketAccess(path string) (string, *check) {
	bad := func(fix, format string, args ...any) (string, *check) {
		c := fail("daemon", fix, format, args...)
		return "", &c
	}
	if len(path) > maxSockPath {
		return bad("choose a shorter --socket", "socket path %s has %d bytes, the kernel takes %d", path, len(path), maxSockPath)
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case errors.Is(err, fs.ErrPermission):
		return bad("ls -ld "+filepath.Dir(path), "uid %d may not enter %s", os.Geteuid(), filepath.Dir(path))
	case err != nil:
		return bad("choose another --socket", "%v", err)
	case st.Mode()&fs.ModeSocket == 0:
		return bad("move it away, or choose another --socket", "%s is there and is no socket", path)
	}
	if err := unix.Access(path, unix.W_OK); errors.Is(err, unix.EACCES) {
		return bad("ls -l "+path+" shows the group that may: join it", "uid %d may not connect to %s", os.Geteuid(), path)
	}
	var raw unix.Stat_t
	if err := unix.Stat(path, &raw); err != nil {
		return bad("", "%v", err)
	}
	who := []string{"root"}
	if raw.Mode&0o200 != 0 && raw.Uid != 0 {
		who = append(who, "user "+userName(raw.Uid))
	}
	if raw.Mode&0o020 != 0 {
		who = append(who, "group "+groupName(raw.Gid))
	}
	if raw.Mode&0o002 != 0 {
		who = append(who, "everybody")
	}
	return fmt.Sprintf("%s may connect (mode %04o)", strings.Join(who, ", "), raw.Mode&0o7777), nil
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// checkSpace looks at the file system of the segments, and at the memory behind it.
func checkSpace(dir string) []check {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []check{fail("shared memory", "mount -t tmpfs -o size=8g,mode=1777 tmpfs /dev/shm", "%s: %v", dir, err)}
	}
	if st.Type != tmpfsMagic {
		return []check{fail("shared memory", "mount a tmpfs there, or give the daemon a --dir on one", "%s is on no tmpfs (file system type %#x)", dir, st.Type)}
	}
	size, free := st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
	var out []check
	switch {
	case size == 0: // a tmpfs without a limit
		out = append(out, ok("shared memory", "%s is a tmpfs without a size limit", dir))
		free = math.MaxUint64
	case size < smallSpace:
		out = append(out, warn("shared memory", moreSpace, "%s has only %s, %s free: models that do not fit are refused", dir, units.Bytes(size), units.Bytes(free)))
	default:
		out = append(out, ok("shared memory", "%s is a tmpfs, %s free of %s", dir, units.Bytes(free), units.Bytes(size)))
	}
	return append(out, checkMemory(size, free)...)
}

// checkMemory looks at the memory behind shared memory of size bytes with free left; both are 0 where no file system limits it.
func checkMemory(size, free uint64) (out []check) {
	total, avail := shm.Memory()
	known := total > 0 && avail > 0
	switch {
	case !known:
	case avail < smallSpace/2:
		out = append(out, warn("memory", "end something, or remove versions: zcctl ls", "only %s available of %s", units.Bytes(avail), units.Bytes(total)))
	case size > 0 && free > avail:
		out = append(out, ok("memory", "%s available of %s: the daemon refuses what goes beyond, though shared memory has %s free", units.Bytes(avail), units.Bytes(total), units.Bytes(free)))
	default:
		out = append(out, ok("memory", "%s available of %s", units.Bytes(avail), units.Bytes(total)))
	}
	return out
}

// checkPublish really makes a segment, reads it back and removes it.
func checkPublish(parent string) check {
	const name = "segments"
	if err := publish(parent); err != nil {
		return fail(name, "a daemon needs O_TMPFILE, fallocate and links on a tmpfs, and /proc: Linux 3.11 or newer", "cannot make a segment in %s: %v", parent, err)
	}
	return ok(name, "made, published, mapped and removed one in %s", parent)
}

func publish(parent string) (err error) {
	tmp, err := os.MkdirTemp(parent, "zcctl-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	dir, err := shm.OpenDir(tmp, false)
	if err != nil {
		return err
	}
	defer dir.Close()
	w, err := dir.Create(shm.PageSize)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.WriteAt([]byte("zcctl"), 0); err != nil {
		return err
	}
	if err := w.Publish("s-probe"); err != nil {
		return err
	}
	f, err := dir.Open("s-probe")
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := shm.Map(f, shm.PageSize)
	if err != nil {
		return err
	}
	defer m.Close()
	if got := string(m.Bytes()[:5]); got != "zcctl" {
		return fmt.Errorf("wrote zcctl, mapped %q", got)
	}
	return nil
}

// checkCgroup reads the memory limit of this process: segments count for the process that writes them, the daemon.
func checkCgroup(dir string) check {
	const name = "cgroup"
	limit, used, where := cgroupLimit("/proc/self/cgroup", "/sys/fs/cgroup")
	if where == "" {
		return ok(name, "no memory limit for this process")
	}
	msg := fmt.Sprintf("memory limit %s, %s used (%s)", units.Bytes(limit), units.Bytes(used), where)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Bavail*uint64(st.Bsize) > limit-min(limit, used) {
		return warn(name, "raise the limit, or start the daemon with a smaller --max-bytes",
			"%s: less than shared memory has free; a daemon started here would be killed before that is full", msg)
	}
	return ok(name, "%s", msg)
}

// cgroupLimit is the smallest memory limit from a process's cgroup up to the root, in version 2 or 1. where is "" when
// there is none.
func cgroupLimit(self, root string) (limit, used uint64, where string) {
	b, err := os.ReadFile(self)
	if err != nil {
		return 0, 0, ""
	}
	const unlimited = 1 << 62 // version 1 writes a huge number for none
	limit = unlimited
	look := func(base, path, limitFile, usedFile string) {
		for p := filepath.Clean("/" + path); ; p = filepath.Dir(p) {
			dir := filepath.Join(base, p)
			if n, ok := readNumber(filepath.Join(dir, limitFile)); ok && n < limit {
				limit, where = n, filepath.Join(dir, limitFile)
				used, _ = readNumber(filepath.Join(dir, usedFile))
			}
			if p == "/" {
				return
			}
		}
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			look(root, parts[2], "memory.max", "memory.current")
		case strings.Contains(","+parts[1]+",", ",memory,"):
			look(filepath.Join(root, "memory"), parts[2], "memory.limit_in_bytes", "memory.usage_in_bytes")
		}
	}
	return limit, used, where
}

func readNumber(path string) (uint64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64) // "max" is none
	return n, err == nil
}

// checkLeftovers finds segment directories that no daemon serves.
func (a *app) checkLeftovers(st *zcstorev1.StatusReply) []check {
	const name = "leftovers"
	uid := strconv.Itoa(os.Geteuid())
	if os.Geteuid() == 0 {
		uid = "[0-9]*" // root sees those of everybody
	}
	var out []check
	served := 0
	for _, dir := range inShm("zcstore-" + uid + "-*") {
		switch size := blocksIn(dir); {
		case st != nil && st.Directory == dir, isLocked(filepath.Join(dir, "lock")):
			served++
		case dir == socketpath.SegmentDir(a.socket):
			out = append(out, ok(name, "%s (%s) waits for the next daemon on %s", dir, units.Bytes(size), a.socket))
		default:
			out = append(out, warn(name, "start its daemon again to use it, or give the memory back: rm -r "+dir, "no daemon serves %s, which holds %s", dir, units.Bytes(size)))
		}
	}
	// Those of `zcctl demo` and of doctor itself, when they were killed. An empty one is just being made.
	for _, dir := range append(inShm("zcstore-demo-"+uid+"-*"), inShm("zcctl-doctor-*")...) {
		locked := isLocked(filepath.Join(dir, "demo.lock")) || isLocked(filepath.Join(dir, "segments", "lock"))
		if size := blocksIn(dir); !locked && size > 0 {
			out = append(out, warn(name, "rm -r "+dir, "an interrupted command has left %s, which holds %s", dir, units.Bytes(size)))
		}
	}
	if len(out) == 0 {
		out = append(out, ok(name, "none (%d in use)", served))
	}
	return out
}

func inShm(pattern string) []string {
	dirs, _ := filepath.Glob(filepath.Join(shmDir, pattern)) // fails only for a bad pattern
	return dirs
}

// isLocked tells whether somebody has the lock of a file. In doubt, yes.
func isLocked(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return !errors.Is(err, unix.ENOENT)
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) != nil
}

// blocksIn is the memory of the files in a directory.
func blocksIn(dir string) uint64 {
	n := uint64(0)
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && !d.IsDir() && unix.Lstat(path, &st) == nil {
			n += uint64(st.Blocks) * 512
		}
		return nil
	})
	return n
}

// checkFiles looks at the limit of open files. The Go runtime has already raised the soft one to the hard one.
func checkFiles() check {
	const name, few = "open files", 1024
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return warn(name, "ulimit -Hn", "%v", err)
	}
	if r.Max < few {
		return warn(name, "ulimit -Hn 4096, or LimitNOFILE= in the unit", "at most %d: a daemon with many clients needs more", r.Max)
	}
	return ok(name, "at most %d", r.Max)
}

// checkKernel tries what the kernel gives, whatever number it calls itself.
func checkKernel() check {
	const name = "kernel"
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail(name, "", "%v", err)
	}
	have := "Linux " + unix.ByteSliceToString(u.Release[:])
	var lacks []string
	if hasPeerPIDFD() {
		have += ", SO_PEERPIDFD"
	} else {
		lacks = append(lacks, "SO_PEERPIDFD (6.5): a holder's pid can be of a process that took it over")
	}
	if hasPopulate() {
		have += ", MADV_POPULATE_READ"
	} else {
		lacks = append(lacks, "MADV_POPULATE_READ (5.14): first use of a model faults page by page")
	}
	if len(lacks) > 0 {
		return warn(name, "a newer kernel; everything works without", "%s, without %s", have, strings.Join(lacks, "; "))
	}
	return ok(name, "%s", have)
}

func hasPeerPIDFD() bool {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func hasPopulate() bool {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return false
	}
	defer unix.Munmap(b)
	return unix.Madvise(b, unix.MADV_POPULATE_READ) == nil
}

// checkCPU says what the kernels for this CPU can use.
func checkCPU() check {
	const name = "cpu"
	var features []string
	add := func(has bool, feature string) {
		if has {
			features = append(features, feature)
		}
	}
	head := fmt.Sprintf("%s, %s", runtime.GOARCH, count(runtime.NumCPU(), "core"))
	switch runtime.GOARCH {
	case "amd64":
		add(cpu.X86.HasAVX2 && cpu.X86.HasFMA, "AVX2")
		add(cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL, "AVX-512")
		add(cpu.X86.HasAVX512VNNI, "AVX-512 VNNI")
		add(cpu.X86.HasAVXVNNI, "AVX-VNNI")
		add(cpu.X86.HasAVX512BF16, "AVX-512 BF16")
		add(cpu.X86.HasAMXTile && cpu.X86.HasAMXBF16, "AMX BF16")
	case "arm64":
		add(cpu.ARM64.HasASIMD, "NEON")
		add(cpu.ARM64.HasASIMDDP, "dot product")
		add(cpu.ARM64.HasSVE, "SVE")
	}
	if len(features) == 0 {
		return warn(name, "inference works, slower; a CPU with AVX2 or NEON is faster", "%s, without vector units that are used", head)
	}
	return ok(name, "%s: %s", head, strings.Join(features, ", "))
}
