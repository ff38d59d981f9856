package fdpass

import (
	"time"

	"golang.org/x/sys/unix"
)

// A client that reads nothing costs what its socket holds: bytes of the daemon's memory, and descriptors that count against
// the daemon's user. When there is more to send, WriteTimeout ends it. When there is not, nothing ever would: so while
// something is unread the connection is looked at a few times in Unread, and ended when nothing was read in all of it.
// A stopped client that owes no reading is left alone, and an idle connection has no timer.
const looks = 8

// watch begins to look, unless that is going on. Called after a write.
func (c *Conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
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
		case now == 0:
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
