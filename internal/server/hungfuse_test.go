package server

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// hungFuse mounts a file system with one file, "weights", of size bytes, whose reads are answered only when they are as short
// as a client's samples; others hang. It gives the file's path, how many reads hang, and what ends them all: with an error.
// It speaks just enough of the FUSE protocol for that.
func hungFuse(t *testing.T, size uint64) (path string, hanging *atomic.Int32, end func()) {
	t.Helper()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	dir := t.TempDir()
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d", dev, os.Getuid(), os.Getgid())
	if err := unix.Mount("zcstore-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		unix.Close(dev)
		t.Skipf("FUSE cannot be mounted here: %v", err)
	}
	hanging = &atomic.Int32{}
	served := make(chan struct{})
	go func() { defer close(served); serveFuse(dev, size, hanging) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil { // aborts what hangs
			t.Errorf("unmount: %v", err)
		}
		<-served
		unix.Close(dev)
	}
	t.Cleanup(end)
	return filepath.Join(dir, "weights"), hanging, end
}

const fuseNode = 2

func serveFuse(dev int, size uint64, hanging *atomic.Int32) {
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
			hanging.Add(1)
		case 18, 25: // release, flush
			answer(0, nil)
		case 2, 36, 42: // forget, interrupt, forget many: no answer
		default:
			answer(unix.ENOSYS, nil)
		}
	}
}
