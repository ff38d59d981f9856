package fdpass

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whatever a server sends as records, with whatever descriptors: the client loses none of them, reads no more bytes than came,
// and keeps no entry for a descriptor that nobody can have sent.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03\x00\x01\x00\x00abc"), []byte{11, 1})
	f.Add([]byte("\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00x"), []byte{8, 2, 9, 0})
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\xff\xff"), []byte{8, 0})
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"), []byte{1, 0, 7, 1})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		if len(stream) > 4<<10 {
			return
		}
		before := openFDs(t)
		c := &Conn{held: map[uint64]entry{}, done: make(chan struct{})}
		in, out := 0, 0
		for ; len(cuts) >= 2 && in < len(stream); cuts = cuts[2:] {
			n := min(len(stream)-in, 1+int(cuts[0]))
			p := append([]byte(nil), stream[in:in+n]...)
			in += n
			got, err := c.arrive(p, someFDs(t, int(cuts[1]%4)), cuts[1]&0x80 != 0)
			if got > n {
				t.Fatalf("%d bytes of %d", got, n)
			}
			out += got
			if err != nil {
				break
			}
			if len(c.held) > maxRights*(1+in/headerBytes) {
				t.Fatalf("%d entries after %d bytes", len(c.held), in)
			}
			if f, err := c.Take(uint64(1 + cuts[1]%3)); err == nil {
				f.Close()
			}
			c.Discard(uint64(cuts[0] % 3))
			_ = c.Settled()
		}
		if out > in {
			t.Fatalf("%d bytes came out of %d", out, in)
		}
		closeWithout(c)
		for begin := time.Now(); openFDs(t) > before; time.Sleep(time.Millisecond) {
			if time.Since(begin) > 5*time.Second {
				t.Fatalf("%d descriptors, %d before", openFDs(t), before)
			}
		}
	})
}

// closeWithout is Close for a Conn that has no socket.
func closeWithout(c *Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.batches {
		closeAll(b)
	}
	c.drop(func(uint64, entry) bool { return true })
}

func someFDs(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	for range n {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
