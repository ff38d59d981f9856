package fdpass

import (
	"time"

	"golang.org/x/sys/unix"
)

// A client that reads nothing costs what its socket holds: bytes of the daemon's memory, and descriptors that count against
// the daemon's user. When there is more to send, WriteTimeout ends it. When there is not, nothing ever would: so while
// something is unread the connection is looked at a few times in Unread, and ended when nothing was read in all of it.
// A stopped client that owes no reading is left alone, and an idle connection has no timer. Control frames are nothing that a
// client owes: gRPC answers a client's ping just after a reply, when the client may have been stopped.
const looks = 8

// smallest is what the kernel counts for a message of a few bytes, at least.
const smallest = 768

// onlyControl tells whether a write is nothing but HTTP/2 frames that belong to no call: settings, ping, goaway, window update.
func onlyControl(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 9 {
			return false
		}
		size, kind := int(b[0])<<16|int(b[1])<<8|int(b[2]), b[3]
		if kind != 4 && kind != 6 && kind != 7 && kind != 8 || len(b) < 9+size {
			return false
		}
		b = b[9+size:]
	}
	return true
}

// watch begins to look, unless that is going on. Called after a write; control: of nothing but control frames.
func (c *Conn) watch(control bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if control {
		c.notes++
		return
	}
	c.notes = 0
	if c.closed || c.unread != nil {
		return
	}
	last, seen := unreadBytes(c), 0
	if last == 0 {
		return
	}
	every := c.so.Unread / looks
	c.unread = time.AfterFunc(every, func() {
		now := unreadBytes(c)
		c.mu.Lock()
		switch {
		case c.closed:
		case now <= c.notes*smallest: // all that is unread came after the last reply
			c.unread = nil
		case now < last || seen+1 < looks:
			if seen++; now < last { // it reads
				seen = 0
			}
			last = now
			c.unread.Reset(every)
		default:
			c.mu.Unlock()
			c.Close()
			return
		}
		c.mu.Unlock()
	})
}

// unreadBytes is what the kernel holds of the bytes sent and not yet read, with its own overhead; 0 also when it cannot say.
func unreadBytes(c *Conn) (n int) {
	raw, err := c.u.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	if err != nil {
		return 0
	}
	return n
}
