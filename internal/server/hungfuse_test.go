package server

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The file system is served by a process of its own: a call that waits for it, such as the one that tells the runtime's poller
// of a file, would otherwise hold up the very process that has to answer, and with it the whole test binary.

const envFuse = "ZCSTORE_TEST_FUSE" // where to mount; set in the child alone

// hungFuse mounts a file system with one file, "weights", of size bytes, whose reads are answered only when they are as short
// as a client's samples; others hang. It gives the file's path, how many reads hang, and what ends them all: with an error.
// It speaks just enough of the FUSE protocol for that.
func hungFuse(t *testing.T, size uint64) (path string, hanging *atomic.Int32, end func()) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe", strconv.FormatUint(size, 10))
	cmd.Env = append(os.Environ(), envFuse+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	alive, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	says, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(says)
	if !lines.Scan() || lines.Text() != "mounted" {
		alive.Close()
		_ = cmd.Wait()
		t.Skipf("no FUSE here: %s", lines.Text())
	}
	hanging = &atomic.Int32{}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for lines.Scan() { // a line for each read that hangs
			hanging.Add(1)
		}
	}()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		alive.Close() // the child unmounts, which aborts what hangs
		<-served
		if err := cmd.Wait(); err != nil {
			t.Errorf("the file system's process: %v", err)
		}
	}
	t.Cleanup(end)
	return filepath.Join(dir, "weights"), hanging, end
}

// fuseMain is the child: it serves until its standard input ends.
func fuseMain(dir string) {
	size, _ := strconv.ParseUint(os.Args[1], 10, 64)
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", dev, os.Getuid(), os.Getgid())
	if err := unix.Mount("zcstore-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		fmt.Println("mount:", err)
		os.Exit(1)
	}
	fmt.Println("mounted")
	go serveFuse(dev, size)
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		fmt.Fprintln(os.Stderr, "unmount:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

const fuseNode = 2

func serveFuse(dev int, size uint64) {
	le := binary.LittleEndian
	attr := func(node uint64) []byte {
		b := make([]byte, 88)
		le.PutUint64(b[0:], node)
		mode := uint32(unix.S_IFDIR | 0o755)
		if node == fuseNode {
			mode = unix.S_IFREG | 0o444
			le.PutUint64(b[8:], size)
		}
		le.PutUint32(b[60:], mode)
		le.PutUint32(b[64:], 1) // links
		le.PutUint32(b[80:], 4096)
		return b
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(dev, buf)
		if err == unix.EINTR || err == unix.EAGAIN || err == unix.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return // unmounted
		}
		opcode, unique, node, body := le.Uint32(buf[4:]), le.Uint64(buf[8:]), le.Uint64(buf[16:]), buf[40:n]
		answer := func(code unix.Errno, b []byte) {
			out := make([]byte, 16, 16+len(b))
			le.PutUint32(out, uint32(16+len(b)))
			le.PutUint32(out[4:], uint32(-int32(code)))
			le.PutUint64(out[8:], unique)
			_, _ = unix.Write(dev, append(out, b...))
		}
		switch opcode {
		case 26: // init
			b := make([]byte, 64)
			le.PutUint32(b, 7)
			le.PutUint32(b[4:], 31)
			le.PutUint32(b[20:], 1<<17)
			answer(0, b)
		case 1: // lookup
			b := make([]byte, 40)
			le.PutUint64(b, fuseNode)
			answer(0, append(b, attr(fuseNode)...))
		case 3: // getattr
			answer(0, append(make([]byte, 16), attr(node)...))
		case 14: // open, with direct IO: reads come as they were made
			b := make([]byte, 16)
			le.PutUint32(b[8:], 1)
			answer(0, b)
		case 15: // read
			if want := le.Uint32(body[16:]); want <= 4096 {
				answer(0, make([]byte, want))
				continue
			}
			fmt.Println("hangs")
		case 18, 25: // release, flush
			answer(0, nil)
		case 2, 36, 42: // forget, interrupt, forget many: no answer
		default:
			answer(unix.ENOSYS, nil)
		}
	}
}
