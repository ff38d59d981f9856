package fdpass

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/peercred"
)

// SplitOptions: the zero value works. A connection is silent until its first four bytes are here.
type SplitOptions struct {
	PeekTimeout    time.Duration // 0: 10 s. A connection that is silent for longer is closed.
	Grace          time.Duration // 0: 100 ms. A connection may be silent for this long whatever the limits say.
	MaxSilent      int           // 0: 32. Silent connections of one uid; beyond it the oldest of them goes.
	MaxSilentTotal int           // 0: 512. Of all uids; beyond it the oldest of the uid with most goes, and callers wait.
	MaxWaiting     int           // 0: 128. Connections that wait for an Accept; from there on callers wait in the kernel, only silent ones join.

	// Admit is asked about each connection before anything is read from it. nil: all come in. It borrows the connection.
	Admit func(*net.UnixConn, peercred.Cred) Admission
	// AdmitRaw is asked once more about a connection that Admit refused and that turns out to be one of the raw channel. nil: no.
	AdmitRaw func(peercred.Cred) Admission
}

// Admission is what Admit decides.
type Admission struct {
	Refuse error  // not nil: the caller is told so in its own protocol, and the connection is closed
	Denied error  // for whoever serves it: what every request is to be answered with; nil for one who may
	Back   func() // called once, when the connection is closed; nil: nothing to do
}

// Accepted is a connection that came through a Listener, with nothing consumed.
type Accepted struct {
	*net.UnixConn
	Denied error // from Admission
	back   func()
	once   *sync.Once
}

// Close closes the connection and gives its place back.
func (a *Accepted) Close() error {
	err := a.UnixConn.Close()
	a.once.Do(a.back)
	return err
}

func accepted(c *net.UnixConn, a Admission) *Accepted {
	if a.Back == nil {
		a.Back = func() {}
	}
	return &Accepted{c, a.Denied, a.Back, new(sync.Once)}
}

// Listener is one of the two that Split makes. Its connections are *Accepted.
type Listener struct {
	s  *splitter
	ch chan *Accepted
}

type splitter struct {
	ln   *net.UnixListener
	o    SplitOptions
	grpc Listener
	raw  Listener
	done chan struct{}  // closed by close
	wg   sync.WaitGroup // accept loop and one sort per connection

	mu      sync.Mutex
	room    sync.Cond // on mu, for the accept loop: closed, total or waiting changed
	closed  bool
	err     error                // guarded by mu: why accepting ended
	silent  map[uint32][]*caller // guarded by mu: by uid, oldest first
	total   int                  // guarded by mu: in silent
	waiting int                  // guarded by mu: sorted, not yet accepted

	refusals refusals
}

// caller is a silent connection.
type caller struct {
	c      *Accepted
	uid    uint32
	since  time.Time
	doomed bool // guarded by mu: its deadline is the end of its grace
}

// Split serves gRPC and the raw channel on one socket: what begins like HTTP/2 or with MagicFramed comes out of grpc,
// what begins with MagicRaw comes out of raw, and anything else is closed. It takes ownership of ln. Closing either
// listener closes ln, both listeners and every connection that was not accepted from them, and returns when the
// goroutines have ended. Both must be accepted from: what waits at one holds up the other. At the limit of open files
// callers are refused by closing them, not left hanging.
func Split(ln *net.UnixListener, o SplitOptions) (grpc, raw *Listener) {
	if o.PeekTimeout <= 0 {
		o.PeekTimeout = 10 * time.Second
	}
	if o.Grace <= 0 {
		o.Grace = 100 * time.Millisecond
	}
	o.Grace = min(o.Grace, o.PeekTimeout)
	for v, std := range map[*int]int{&o.MaxSilent: 32, &o.MaxSilentTotal: 512, &o.MaxWaiting: 128} {
		if *v <= 0 {
			*v = std
		}
	}
	s := &splitter{ln: ln, o: o, done: make(chan struct{}), silent: map[uint32][]*caller{}}
	s.room.L = &s.mu
	s.grpc = Listener{s, make(chan *Accepted)}
	s.raw = Listener{s, make(chan *Accepted)}
	spare, _ := os.Open(os.DevNull)
	s.wg.Add(1)
	go s.accept(spare)
	return &s.grpc, &s.raw
}

// Next waits for the next connection; the caller owns it. After Close the error is net.ErrClosed.
func (l *Listener) Next() (*Accepted, error) {
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
	c, err := l.Next()
	if err != nil {
		return nil, err // not a nil *Accepted in an interface
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
	s.room.Broadcast()
	for _, list := range s.silent {
		for _, k := range list {
			k.c.Close()
		}
	}
	s.refusals.close()
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
			c, err := s.ln.AcceptUnix()
			s.ln.SetDeadline(time.Time{})
			spare, _ = os.Open(os.DevNull)
			if err == nil && spare != nil { // there is room again, perhaps since before this caller came
				wait = 0
				s.admit(c)
				continue
			}
			if err == nil {
				c.Close()
			}
		}
		if full && spare == nil {
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

// admit starts to sort c, and returns when there is room for another.
func (s *splitter) admit(u *net.UnixConn) {
	cred, err := peercred.Of(u)
	if err != nil {
		u.Close()
		return
	}
	var verdict Admission
	if s.o.Admit != nil {
		verdict = s.o.Admit(u, cred)
	}
	if verdict.Refuse != nil {
		s.refuse(u, cred, verdict.Refuse)
		return
	}
	c := accepted(u, verdict)
	k := &caller{c: c, uid: cred.UID, since: time.Now()}
	first, err := peekNow(u)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.Close()
		return
	}
	s.wg.Add(1)
	if errors.Is(err, unix.EAGAIN) {
		s.silent[k.uid] = append(s.silent[k.uid], k)
		s.total++
		c.SetReadDeadline(k.since.Add(s.o.PeekTimeout))
		s.press(k.uid)
		go s.sort(k)
	} else {
		s.waiting++
		go s.pass(c, first)
	}
	for !s.closed && (s.total > s.o.MaxSilentTotal || s.waiting >= s.o.MaxWaiting) {
		s.room.Wait()
	}
}

// press dooms what is over a limit: it goes at the end of its grace, if it is silent and over a limit then. Called with
// mu held.
func (s *splitter) press(uid uint32) {
	doom := func(list []*caller) {
		for _, k := range list {
			if !k.doomed {
				k.doomed = true
				k.c.SetReadDeadline(k.since.Add(s.o.Grace))
			}
		}
	}
	doom(s.over(uid))
	if s.total > s.o.MaxSilentTotal {
		doom(s.silent[s.heaviest()][:1])
	}
}

// over returns the oldest of uid's silent connections, as many as are over its limit. Called with mu held.
func (s *splitter) over(uid uint32) []*caller {
	list := s.silent[uid]
	return list[:max(0, len(list)-s.o.MaxSilent)]
}

// heaviest is the uid with most silent connections, so that a uid with few of them does not pay for another; of several
// the one with the oldest connection. Called with mu held.
func (s *splitter) heaviest() (uid uint32) {
	var most []*caller
	for u, list := range s.silent {
		if len(list) > len(most) || len(list) == len(most) && list[0].since.Before(most[0].since) {
			uid, most = u, list
		}
	}
	return uid
}

// sort waits until k is silent no more, or its time is up.
func (s *splitter) sort(k *caller) {
	for {
		first, err := peek(k.c.UnixConn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			first, err = peekNow(k.c.UnixConn) // what came in time counts, though this goroutine was late to see it
		}
		s.mu.Lock()
		if errors.Is(err, unix.EAGAIN) && s.pardon(k) {
			s.mu.Unlock()
			continue
		}
		list := s.silent[k.uid]
		i := slices.Index(list, k)
		if s.silent[k.uid] = slices.Delete(list, i, i+1); len(list) == 1 {
			delete(s.silent, k.uid)
		}
		s.total--
		s.waiting++ // until pass has looked at first
		s.mu.Unlock()
		s.room.Signal()
		k.c.SetReadDeadline(time.Time{})
		s.pass(k.c, first)
		return
	}
}

// pardon gives k the rest of its time if it is over no limit any more. Called with mu held.
func (s *splitter) pardon(k *caller) bool {
	end := k.since.Add(s.o.PeekTimeout)
	if s.closed || !time.Now().Before(end) || slices.Contains(s.over(k.uid), k) ||
		s.total > s.o.MaxSilentTotal && s.silent[s.heaviest()][0] == k {
		return false
	}
	k.doomed = false
	k.c.SetReadDeadline(end)
	s.press(k.uid) // if another is the heaviest by now
	return true
}

// pass takes ownership of c and hands it to the listener its first bytes ask for, however long that takes.
func (s *splitter) pass(c *Accepted, first string) {
	defer s.wg.Done()
	var to chan *Accepted // nil: closed below
	switch first {
	case MagicRaw:
		to = s.raw.ch
	case MagicFramed, preface:
		to = s.grpc.ch
	}
	if to == nil {
		c.Close()
	} else {
		select {
		case to <- c:
		case <-s.done:
			c.Close()
		}
	}
	s.mu.Lock()
	s.waiting--
	s.mu.Unlock()
	s.room.Signal()
}

// peekNow is peek without the wait: EAGAIN when it would have to.
func peekNow(c *net.UnixConn) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	var b [4]byte
	var n int
	var perr error
	if err := raw.Control(func(fd uintptr) { n, perr = peekFD(fd, b[:]) }); err != nil {
		return "", err
	}
	return peeked(b[:n], perr)
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
		n, perr = peekFD(fd, b[:])
		return perr != unix.EAGAIN // else sleeps until more arrives: the poller is edge-triggered
	})
	if err == nil {
		err = perr
	}
	return peeked(b[:n], err)
}

// peekFD never gives fewer bytes than b holds, but 0 at the end of the stream or with an error.
func peekFD(fd uintptr, b []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case n > 0 && n < len(b):
			return 0, unix.EAGAIN
		default:
			return n, nil
		}
	}
}

func peeked(b []byte, err error) (string, error) {
	if err == nil && len(b) == 0 {
		err = io.EOF
	}
	if err != nil {
		return "", fmt.Errorf("wait for the first bytes: %w", err)
	}
	return string(b), nil
}
