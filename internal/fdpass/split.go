package fdpass

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/peercred"
)

// SplitOptions: the zero value works.
type SplitOptions struct {
	PeekTimeout   time.Duration // 0: 10 s. For the first bytes to come, and again for an Accept to take the connection.
	MaxUnfinished int           // 0: 32. Connections of one uid that have not got so far; more are closed at once.
}

// Listener is one of the two that Split makes. Its connections are *net.UnixConn with nothing consumed.
type Listener struct {
	s  *splitter
	ch chan *net.UnixConn
}

type splitter struct {
	ln   *net.UnixListener
	o    SplitOptions
	grpc Listener
	raw  Listener
	done chan struct{}  // closed by close
	wg   sync.WaitGroup // accept loop and one sort per connection

	mu     sync.Mutex
	closed bool
	err    error                      // guarded by mu: why accepting ended
	open   map[*net.UnixConn]struct{} // guarded by mu: not yet handed to an Accept
	perUID map[uint32]int             // guarded by mu: how many of those a uid has
}

// Split serves gRPC and the raw channel on one socket: what begins like HTTP/2 or with MagicFramed comes out of grpc,
// what begins with MagicRaw comes out of raw, and anything else is closed. It takes ownership of ln. Closing either
// listener closes ln, both listeners and every connection that was not accepted from them, and returns when the
// goroutines have ended. At the limit of open files callers are refused by closing them, not left hanging.
func Split(ln *net.UnixListener, o SplitOptions) (grpc, raw *Listener) {
	if o.PeekTimeout <= 0 {
		o.PeekTimeout = 10 * time.Second
	}
	if o.MaxUnfinished <= 0 {
		o.MaxUnfinished = 32
	}
	s := &splitter{ln: ln, o: o, done: make(chan struct{}), open: map[*net.UnixConn]struct{}{}, perUID: map[uint32]int{}}
	s.grpc = Listener{s, make(chan *net.UnixConn)}
	s.raw = Listener{s, make(chan *net.UnixConn)}
	spare, _ := os.Open(os.DevNull)
	s.wg.Add(1)
	go s.accept(spare)
	return &s.grpc, &s.raw
}

// AcceptUnix waits for the next connection; the caller owns it. After Close the error is net.ErrClosed.
func (l *Listener) AcceptUnix() (*net.UnixConn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.s.done:
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		return nil, l.s.err
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err // not a nil *UnixConn in an interface
	}
	return c, nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.s.ln.Addr() }

// Close closes both listeners; see Split. It may be called again.
func (l *Listener) Close() error {
	err := l.s.close(net.ErrClosed)
	l.s.wg.Wait()
	return err
}

func (s *splitter) close(why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed, s.err = true, why
	close(s.done)
	for c := range s.open {
		c.Close()
	}
	return s.ln.Close()
}

// accept owns spare, which it gives up for a moment to accept and refuse at the limit of open files.
func (s *splitter) accept(spare *os.File) {
	defer s.wg.Done()
	defer func() { spare.Close() }()
	wait := time.Duration(0)
	for {
		c, err := s.ln.AcceptUnix()
		if err == nil {
			wait = 0
			s.admit(c)
			continue
		}
		full := errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
		if !full && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ECONNABORTED) {
			s.close(err)
			return
		}
		if full && spare != nil {
			spare.Close()
			s.ln.SetDeadline(time.Now().Add(time.Millisecond))
			if c, err := s.ln.AcceptUnix(); err == nil {
				c.Close()
			}
			s.ln.SetDeadline(time.Time{})
		}
		if full {
			spare, _ = os.Open(os.DevNull)
		}
		wait = min(max(2*wait, time.Millisecond), 50*time.Millisecond)
		select {
		case <-time.After(wait):
		case <-s.done:
			return
		}
	}
}

// admit counts c and starts to sort it, or closes it.
func (s *splitter) admit(c *net.UnixConn) {
	cred, err := peercred.Of(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || s.closed || s.perUID[cred.UID] >= s.o.MaxUnfinished {
		c.Close()
		return
	}
	s.open[c] = struct{}{}
	s.perUID[cred.UID]++
	s.wg.Add(1)
	go s.sort(c, cred.UID)
}

// sort takes ownership of c and hands it to the listener its first bytes ask for.
func (s *splitter) sort(c *net.UnixConn, uid uint32) {
	defer s.wg.Done()
	c.SetReadDeadline(time.Now().Add(s.o.PeekTimeout))
	first, err := peek(c)
	c.SetReadDeadline(time.Time{})
	var to chan *net.UnixConn
	if err == nil && first == MagicRaw {
		to = s.raw.ch
	} else if err == nil && (first == MagicFramed || first == preface) {
		to = s.grpc.ch
	}
	s.mu.Lock()
	delete(s.open, c) // from here on closed below
	s.mu.Unlock()
	if to != nil {
		select {
		case to <- c:
			c = nil
		case <-time.After(s.o.PeekTimeout):
		case <-s.done:
		}
	}
	if c != nil {
		c.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perUID[uid]--; s.perUID[uid] == 0 {
		delete(s.perUID, uid)
	}
}

// peek waits for the first four bytes and leaves them in the socket, within c's read deadline. Fewer bytes that cannot
// become four known ones are waited for as well: the deadline ends that.
func peek(c *net.UnixConn) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	var b [4]byte
	var n int
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, perr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			switch {
			case perr == unix.EINTR:
			case perr == unix.EAGAIN || perr == nil && n > 0 && n < len(b):
				return false // sleeps until more arrives: the poller is edge-triggered
			default:
				return true
			}
		}
	})
	if err == nil {
		err = perr
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return "", fmt.Errorf("wait for the first bytes: %w", err)
	}
	return string(b[:]), nil
}
