// Package fdpass carries open files over a Unix socket, beside gRPC or without it.
//
// # Hand out a file with a gRPC reply
//
// The daemon serves with [ServerCredentials], the client dials with [ClientCredentials]. A handler finds its connection
// with [FromContext], queues the file with [Conn.Queue] and puts the ordinal it got into the reply. The client finds
// the very connection that brought the reply ([PeerConn], or FromContext on a stream) and calls [Conn.Take] with the
// ordinal: a file may arrive before its reply and never after it, so Take does not wait.
//
// # How files stay with their replies
//
// An fd-aware client begins the connection with "ZCF1", and from then on what the server sends is cut into records:
//
//	4 bytes  length of the gRPC bytes that follow the header, big-endian
//	2 bytes  files that ride on this record: one sendmsg, at its first byte, 0 to 253
//	2 bytes  files that should have and could not be sent
//
// Each file on a connection has an ordinal: 1, 2, 3 in the order of Queue; 0 never is one. The receiver counts by the
// headers, not by what came: a batch that is cut on its way in (the receiver is at RLIMIT_NOFILE, or a security module
// objects) costs exactly the ordinals of that record. Those give [ErrTruncated], what did come of the batch is closed,
// and both the connection and the numbers after it stay good. Files that the sender could not send for
// its user has too many in flight (ETOOMANYREFS, waited out for a while) give [ErrNotSent] in the same way.
// The client's own bytes go plainly, the server reads them plainly, and the kernel drops files sent that way: nobody
// can stuff files into the daemon.
//
// A client that begins with the HTTP/2 preface gets plain gRPC. Every method works for it, but Queue gives
// [ErrUnaware]; tell it to use a ticket and the raw channel ([Split], [SendFDs], [RecvFDs]).
//
// # Files nobody takes
//
// A call that is cancelled leaves the file of its lost reply behind (an orphan). Three rules keep them few:
// make unary calls through [Detached], which cancellation does not reach; on a stream, take every reply's files in
// order, and after the last reply read [Conn.Discard] what lies before; report [Conn.Settled] with each request, so that
// [Conn.Claimed] at the server gives the places back and files older than OrphanTTL are closed. Closing the
// connection closes whatever was not taken.
//
// Trust: the client checks the uid of the server, since its files will be mapped; the server takes the client for
// hostile. A client that lies about what it settled holds at most what the socket buffer holds (some 280 files), and
// one that reads nothing is cut after WriteTimeout.
package fdpass

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The first bytes a connection may begin with; anything else is refused.
const (
	MagicFramed = "ZCF1" // gRPC from a client that takes files; the server's handshake consumes it
	MagicRaw    = "ZCR1" // the raw channel; left in the socket for its reader
	preface     = "PRI " // gRPC from any other client
)

const maxRights = 253 // SCM_MAX_FD of the kernel: one more is EINVAL

var (
	// ErrTruncated: the file was lost on arrival. Close files or raise the limit, then ask again.
	ErrTruncated = errors.New("the kernel cut off a descriptor on arrival: this process is at its limit of open files (RLIMIT_NOFILE), or a security module refused it")
	// ErrNotSent: the file was lost at the sender. Asking again later may work.
	ErrNotSent = errors.New("the server's user has too many descriptors in flight (ETOOMANYREFS): some client does not read its replies")
	// ErrNoFile: no file of this ordinal is waiting on this connection.
	ErrNoFile = errors.New("no such descriptor here: taken, discarded, expired, or of another connection")
	// ErrTooManyInFlight: Queue is over MaxInFlight. The client has to settle some first.
	ErrTooManyInFlight = errors.New("too many descriptors that the client has not settled")
	// ErrUnaware: the client cannot take files on this connection.
	ErrUnaware = errors.New("the client takes no descriptors on its gRPC connection: use a ticket")
	// ErrUnexpected: files came where none, or fewer, were announced. They are closed.
	ErrUnexpected = errors.New("unexpected descriptors")
)

// SendFDs sends msg with fds at its first byte, on a raw channel. It borrows fds: the kernel holds its own references
// by the time it returns. msg must not be empty and fds at most 253. An error may wrap ETOOMANYREFS, which passes by
// itself and means that nothing was sent; after any other error the channel is out of step and should be closed.
// For use by one goroutine at a time.
func SendFDs(c *net.UnixConn, msg []byte, fds ...int) error {
	if len(msg) == 0 || len(fds) > maxRights {
		return fmt.Errorf("send %d descriptors with %d bytes: need at least 1 byte and at most %d descriptors", len(fds), len(msg), maxRights)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(msg, oob, nil)
	if err == nil && n < len(msg) { // short: the files went with the first byte
		_, err = c.Write(msg[n:])
	}
	if err != nil {
		return fmt.Errorf("send %d descriptors: %w", len(fds), err)
	}
	return nil
}

// RecvFDs reads once from a raw channel: up to len(buf) bytes and the files that came with them, close-on-exec, which
// the caller owns. More files than max, or a batch cut by the kernel (ErrTruncated), is an error and all that came is closed; whether
// fewer are fine only the message can say, so compare. One read may hold bytes of messages before the one with files,
// and never files of two. io.EOF when the peer closed. For use by one goroutine at a time.
func RecvFDs(c *net.UnixConn, buf []byte, max int) (n int, files []*os.File, err error) {
	n, fds, cut, err := recv(c, buf, make([]byte, unix.CmsgSpace(4*maxRights)))
	switch {
	case err != nil:
	case cut:
		err = ErrTruncated
	case len(fds) > max:
		err = fmt.Errorf("%w: %d, at most %d belong here", ErrUnexpected, len(fds), max)
	}
	if err != nil {
		closeAll(fds)
		return n, nil, err
	}
	for i, fd := range fds {
		f, err := strangersFile(fd)
		if err != nil {
			closeAll(fds[i:])
			for _, f := range files {
				f.Close()
			}
			return n, nil, err
		}
		files = append(files, f)
	}
	return n, files, nil
}

// Detached runs call where the cancellation of ctx does not reach it, and for at most limit. When ctx ends first,
// Detached returns its error at once; drop then gets what call brings after all, to close the files in it. So a
// caller can give up and no reply is lost with its files. call must end when its own context does.
func Detached[T any](ctx context.Context, limit time.Duration, call func(context.Context) (T, error), drop func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		v, err := call(ctx)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				drop(r.v)
			}
		}()
		var zero T
		return zero, ctx.Err()
	}
}

// strangersFile takes ownership of a descriptor of a stranger. It never lets the runtime's poller have it: registering one asks
// its file system, which may be the stranger's too and never answer, and the runtime waits for that with a processor in hand.
// os.NewFile registers what is non-blocking just then, and the stranger can set that flag at any moment: so the file is made
// of a descriptor of our own, and the stranger's takes the place of that. On error fd is still the caller's.
func strangersFile(fd int) (*os.File, error) {
	own, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrTruncated, err)
	}
	f := os.NewFile(uintptr(own), "received descriptor")
	for err = unix.EINTR; err == unix.EINTR || err == unix.EBUSY; {
		err = unix.Dup3(fd, own, unix.O_CLOEXEC)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("take a descriptor: %w", err)
	}
	unix.Close(fd)
	return f, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
