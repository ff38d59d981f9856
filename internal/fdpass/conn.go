package fdpass

import (
	"encoding/binary"
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

const headerBytes = 8

// Conn is one end of a gRPC connection that carries files. It is a type of its own and neither is nor embeds a
// *net.UnixConn, because grpc-go reads from one of those past its Read method, and files would be lost.
// All methods are safe for concurrent use. Locks: rmu or wmu, then mu.
type Conn struct {
	// Immutable after the handshake.
	u       *net.UnixConn
	shut    func() error // closes u and gives its place back
	denied  error
	peer    peercred.Cred
	server  bool
	framed  bool // the client takes files
	so      ServerOptions
	co      ClientOptions
	sendmsg func(b, oob []byte) (int, error) // replaced by tests
	done    chan struct{}                    // closed by Close

	wmu    sync.Mutex // one Write at a time
	record []byte     // guarded by wmu: the record being sent

	rmu sync.Mutex // one Read at a time
	oob []byte     // guarded by rmu: room for control messages

	mu      sync.Mutex
	closed  bool        // guarded by mu
	unread  *time.Timer // guarded by mu; server: looks whether the client reads; nil when all replies were read
	notes   int         // guarded by mu; server: writes of nothing but control frames since the last reply
	queued  []int       // guarded by mu; server: owned, not yet sent
	last    uint64      // guarded by mu; the ordinal last queued, or last announced by a header
	claimed uint64      // guarded by mu; server: settled by the client's word

	hdr     [headerBytes]byte // guarded by mu; client: the header being read
	nhdr    int               // guarded by mu; client: bytes of hdr that are here
	heard   bool              // guarded by mu; client: Answer was called
	refusal []byte            // guarded by mu; client: not nil from the header of a refusal on: its text so far
	left    uint32            // guarded by mu; client: gRPC bytes left in the record
	batches [][]int           // guarded by mu; client: arrived, their headers not yet read
	held    map[uint64]entry  // guarded by mu; client: by ordinal, to be taken.
	floor   uint64            // guarded by mu; client: what Discard gave up, also what is still to come
}

type entry struct {
	fd    int
	err   error // instead of fd
	since time.Time
}

// Peer is who was at the other end when the connection was made.
func (c *Conn) Peer() peercred.Cred { return c.peer }

// Denied is what the listener's Admission says of whoever is there: what each of its calls is to be answered with, or nil.
func (c *Conn) Denied() error { return c.denied }

// PeerPIDFD is peercred.PIDFD of the connection: the caller owns it, and -1 without an error means an older kernel.
func (c *Conn) PeerPIDFD() (int, error) { return peercred.PIDFD(c.u) }

// Queue duplicates files and hands the duplicates over with the next bytes of this connection. It borrows files: they
// may be closed once it returns. The first has ordinal first, the others follow without a gap. Queue before the reply
// is returned to gRPC. On error nothing was queued; ErrTooManyInFlight and ErrUnaware are the client's doing.
func (c *Conn) Queue(files ...*os.File) (first uint64, err error) {
	if !c.framed {
		return 0, ErrUnaware
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	if open := c.last - c.claimed; open+uint64(len(files)) > uint64(c.so.MaxInFlight) {
		return 0, fmt.Errorf("%w: %d open, %d asked for, limit %d", ErrTooManyInFlight, open, len(files), c.so.MaxInFlight)
	}
	var dups []int
	for _, f := range files {
		fd, err := dup(f)
		if err != nil {
			closeAll(dups)
			return 0, fmt.Errorf("duplicate a descriptor for the client: %w", err)
		}
		dups = append(dups, fd)
	}
	first = c.last + 1
	c.last += uint64(len(dups))
	c.queued = append(c.queued, dups...)
	return first, nil
}

// Claimed says that the client settled n files of this connection so far: took them, or will never take them. The
// number is the client's (Settled); it only counts upwards and never past what was queued.
func (c *Conn) Claimed(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claimed = max(c.claimed, min(n, c.last))
}

// Take returns the file of that ordinal; the caller owns it. The ordinal must come from a reply on this connection.
// Errors: ErrTruncated and ErrNotSent (the file was lost, and asking again makes sense), ErrNoFile, net.ErrClosed.
func (c *Conn) Take(ordinal uint64) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.held[ordinal]
	switch {
	case c.closed:
		return nil, net.ErrClosed
	case !ok:
		return nil, fmt.Errorf("ordinal %d: %w", ordinal, ErrNoFile)
	}
	delete(c.held, ordinal)
	if e.err != nil {
		return nil, fmt.Errorf("ordinal %d: %w", ordinal, e.err)
	}
	return os.NewFile(uintptr(e.fd), "received descriptor"), nil // of the daemon, whom this client trusts
}

// Discard closes every file up to and including that ordinal which was not taken, those still to arrive too. On a
// connection whose replies are read by several goroutines it would take files from under them: leave those to
// Detached and Settled.
func (c *Conn) Discard(upTo uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.floor = max(c.floor, upTo)
	c.drop(func(o uint64, _ entry) bool { return o <= upTo })
}

// Settled is how many files came and are no longer waiting to be taken; the next request tells the server. It closes
// those that waited for longer than OrphanTTL.
func (c *Conn) Settled() uint64 {
	old := time.Now().Add(-c.co.OrphanTTL)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(func(_ uint64, e entry) bool { return e.since.Before(old) })
	return c.last - uint64(len(c.held))
}

func (c *Conn) drop(which func(uint64, entry) bool) {
	for o, e := range c.held {
		if which(o, e) {
			if e.err == nil {
				unix.Close(e.fd)
			}
			delete(c.held, o)
		}
	}
}

// Write implements net.Conn. At the server it sends what is queued with the first bytes, and ends the connection of a
// peer that does not read for WriteTimeout.
func (c *Conn) Write(b []byte) (int, error) {
	if !c.server {
		return c.u.Write(b)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	err := c.u.SetWriteDeadline(time.Now().Add(c.so.WriteTimeout))
	if err == nil && !c.framed {
		_, err = c.u.Write(b)
	} else if err == nil {
		err = c.writeRecords(b)
	}
	c.watch(onlyControl(b))
	if err != nil {
		c.Close() // gRPC leaves it to its reader to notice, which sees nothing when only writing fails
		return 0, err
	}
	return len(b), nil
}

func (c *Conn) writeRecords(b []byte) error {
	for {
		c.mu.Lock()
		n := min(len(c.queued), maxRights)
		fds := c.queued[:n:n]
		c.queued = c.queued[n:]
		rest := len(c.queued) > 0
		c.mu.Unlock()
		data := b
		if rest {
			data = nil // the files of one reply must not come after it: send them on records without bytes
		}
		err := c.writeRecord(data, fds)
		closeAll(fds)
		if err != nil || !rest {
			return err
		}
	}
}

func (c *Conn) writeRecord(b []byte, fds []int) error {
	c.record = binary.BigEndian.AppendUint32(c.record[:0], uint32(len(b)))
	c.record = binary.BigEndian.AppendUint16(c.record, uint16(len(fds)))
	c.record = append(append(c.record, 0, 0), b...)
	n := 0
	if len(fds) > 0 {
		var err error
		if n, err = c.sendRights(c.record, unix.UnixRights(fds...)); errors.Is(err, unix.ETOOMANYREFS) {
			n = 0 // nothing went out: say that the files will not come
			copy(c.record[4:], []byte{0, 0, c.record[4], c.record[5]})
		} else if err != nil {
			return err
		}
	}
	_, err := c.u.Write(c.record[n:]) // all of it, or what a short sendmsg left; the files are never sent again
	if cap(c.record) > 4<<10 {        // ten thousand idle connections would keep what they once needed
		c.record = nil
	}
	return err
}

// sendRights is one sendmsg, tried again while the user has too many files in flight, for SendWait in all.
func (c *Conn) sendRights(b, oob []byte) (n int, err error) {
	end := time.Now().Add(c.so.SendWait)
	for wait := time.Millisecond; ; wait *= 2 {
		n, err = c.sendmsg(b, oob)
		if left := time.Until(end); !errors.Is(err, unix.ETOOMANYREFS) || left <= 0 {
			return max(n, 0), err
		} else {
			wait = min(wait, left)
		}
		select {
		case <-time.After(wait):
		case <-c.done:
			return 0, net.ErrClosed
		}
	}
}

// Read implements net.Conn. At the client it takes in the files that come with the bytes; the server reads plainly.
func (c *Conn) Read(p []byte) (int, error) {
	if c.server || len(p) == 0 {
		return c.u.Read(p)
	}
	c.rmu.Lock()
	defer c.rmu.Unlock()
	for {
		n, fds, cut, err := recv(c.u, p, c.oob)
		out, perr := c.arrive(p[:n], fds, cut)
		if perr != nil {
			c.Close()
			return 0, perr
		}
		if out > 0 || err != nil {
			return out, err
		}
	}
}

// arrive takes ownership of fds, which came with the bytes p, and moves the gRPC bytes of p to its front. The kernel
// delivers at most one batch a read, perhaps behind bytes of earlier records, and the header of its record begins in
// that read: so batches meet their headers in order.
func (c *Conn) arrive(p []byte, fds []int, cut bool) (out int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		closeAll(fds)
		return 0, net.ErrClosed
	}
	if cut || len(fds) > 0 {
		c.batches = append(c.batches, fds)
	}
	for in := 0; in < len(p) && err == nil; {
		if c.left > 0 {
			part := p[in:min(len(p), in+int(c.left))]
			c.left -= uint32(len(part))
			in += len(part)
			if c.refusal != nil {
				if c.refusal = append(c.refusal, part...); c.left == 0 {
					err = c.refused()
				}
				continue
			}
			out += copy(p[out:], part)
			continue
		}
		n := copy(c.hdr[c.nhdr:], p[in:])
		in, c.nhdr = in+n, c.nhdr+n
		if c.nhdr == headerBytes {
			c.nhdr = 0
			err = c.header()
		}
	}
	if err == nil && len(c.batches) > 0 && c.nhdr == 0 {
		err = fmt.Errorf("%w: no record announced them", ErrUnexpected)
	}
	return out, err
}

// header acts on the complete header c.hdr. Called with mu held.
func (c *Conn) header() error {
	c.left = binary.BigEndian.Uint32(c.hdr[:])
	n, lost := int(binary.BigEndian.Uint16(c.hdr[4:])), int(binary.BigEndian.Uint16(c.hdr[6:]))
	if n == refusalMark && lost == refusalMark {
		if c.heard || c.left == 0 || c.left > maxRefusal {
			return errors.New("the server's refusal makes no sense")
		}
		c.refusal = make([]byte, 0, c.left)
		return nil
	}
	c.answer(nil)
	var fds []int
	var failed error
	if n > 0 && len(c.batches) > 0 {
		fds, c.batches = c.batches[0], c.batches[1:]
	}
	switch {
	case len(fds) > n || n > maxRights:
		closeAll(fds)
		return fmt.Errorf("%w: %d came, %d were announced", ErrUnexpected, len(fds), n)
	case lost > maxRights: // a record never has more
		closeAll(fds)
		return fmt.Errorf("%w: %d were not sent, a record has at most %d", ErrUnexpected, lost, maxRights)
	case len(fds) < n: // cut: what came of it is of no use, and the process may be short of descriptors
		closeAll(fds)
		failed = ErrTruncated
	case lost > 0: // all of the record's are entries with the error: what came beside them would be nobody's
		closeAll(fds)
		n, failed = n+lost, ErrNotSent
	}
	for i := range n {
		e := entry{fd: -1, err: failed, since: time.Now()}
		if failed == nil {
			e.fd = fds[i]
		}
		c.last++
		c.held[c.last] = e
	}
	c.drop(func(o uint64, _ entry) bool { return o <= c.floor })
	return nil
}

// Close ends the connection and closes every file on it that was not sent or not taken.
func (c *Conn) Close() error {
	err := c.shut()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return err
	}
	c.closed = true
	if c.unread != nil {
		c.unread.Stop()
	}
	close(c.done)
	closeAll(c.queued)
	for _, b := range c.batches {
		closeAll(b)
	}
	c.queued, c.batches = nil, nil
	c.drop(func(uint64, entry) bool { return true })
	return err
}

// The rest of net.Conn. gRPC sets its handshake deadline on the socket itself.

func (c *Conn) LocalAddr() net.Addr                { return c.u.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr               { return c.u.RemoteAddr() }
func (c *Conn) SetDeadline(t time.Time) error      { return c.u.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.u.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.u.SetWriteDeadline(t) }

// recv is one recvmsg. The caller owns fds, also beside an error. cut means that more were sent than are here.
func recv(u *net.UnixConn, p, oob []byte) (n int, fds []int, cut bool, err error) {
	n, oobn, flags, _, err := u.ReadMsgUnix(p, oob) // sets MSG_CMSG_CLOEXEC
	n, oobn = max(n, 0), max(oobn, 0)               // -1 on error
	if errors.Is(err, io.EOF) || err == nil && n == 0 && len(p) > 0 {
		err = io.EOF // bare, as readers compare it
	}
	if oobn > 0 {
		msgs, perr := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range msgs {
			if rights, rerr := unix.ParseUnixRights(&msgs[i]); rerr == nil {
				fds = append(fds, rights...)
			}
		}
		if err == nil && perr != nil {
			err = perr
		}
	}
	return n, fds, flags&unix.MSG_CTRUNC != 0, err
}

func dup(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var derr error
	err = raw.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, derr)
}
