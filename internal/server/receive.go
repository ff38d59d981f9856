package server

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// receive takes the bytes of a put from a raw connection: the wanted rows in order, without framing.
func (s *Server) receive(conn *net.UnixConn, cred peercred.Cred, ticket string) error {
	return s.withTicket(conn, cred, ticket, func(up *upload) error {
		if err := up.put.Fill(up.ctx, &idleReader{conn: conn, ctx: up.ctx, idle: s.ledger.Limits().Idle}); err != nil {
			return err
		}
		if more, err := pendingBytes(conn); err != nil || more {
			return errors.Join(err, zcerr.New(zcerr.Invalid, "more bytes came than the %d that were asked for", up.put.WantedBytes()).WithHint("send the wanted rows in order and nothing else"))
		}
		return nil
	})
}

// pendingBytes reports that bytes wait to be read. It does not wait for some.
func pendingBytes(conn *net.UnixConn) (bool, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var n int
	if err := raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, _ = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	}); err != nil {
		return false, err
	}
	return n > 0, nil
}

// receiveSources takes the bytes of a put in frames: files, whose rows the daemon reads itself, and bytes of rows in any order.
func (s *Server) receiveSources(conn *net.UnixConn, cred peercred.Cred, ticket string) error {
	return s.withTicket(conn, cred, ticket, func(up *upload) error {
		in := &idleReader{conn: conn, ctx: up.ctx, idle: s.ledger.Limits().Idle}
		for {
			f, file, err := readFrame(in, up.put.Rows())
			if err != nil {
				return err
			}
			switch f.kind {
			case frameEnd:
				return nil
			case frameBytes:
				err = up.put.FillRows(up.ctx, f.rowNumbers(), in)
			case frameFile:
				err = s.importFile(up, file, f.rows)
			}
			if err != nil {
				return err
			}
		}
	})
}

// withTicket runs take for the upload that waits for the ticket, and tells the upload how it ended.
func (s *Server) withTicket(conn *net.UnixConn, cred peercred.Cred, ticket string, take func(*upload) error) error {
	up := s.redeem(ticket)
	if up == nil {
		return zcerr.New(zcerr.Denied, "no put waits for this ticket: it was used, or its time is over").WithHint("use the ticket of the plan at once, and once")
	}
	if up.peer != cred {
		up.done <- zcerr.New(zcerr.Denied, "the ticket was used by another process")
		return zcerr.New(zcerr.Denied, "the ticket belongs to another process").WithHint("send the bytes from the process that began the put")
	}
	stop := context.AfterFunc(up.ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := take(up)
	var ne net.Error
	switch {
	case errors.As(err, new(*zcerr.Error)):
	case errors.As(err, &ne) && ne.Timeout():
		err = zcerr.New(zcerr.Timeout, "no bytes came for %v", s.ledger.Limits().Idle)
	case errors.Is(err, fdpass.ErrUnexpected):
		err = zcerr.New(zcerr.Invalid, "%w", err)
	case errors.Is(err, fdpass.ErrTruncated):
		err = zcerr.New(zcerr.Limit, "the daemon is at its limit of open files").WithHint("start it with a higher limit: ulimit -n, or LimitNOFILE in its unit")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = zcerr.New(zcerr.Invalid, "the connection ended before all bytes were sent: %w", err)
	}
	up.done <- err
	return nil
}

// A frame of the sources channel, big-endian:
//
//	0   1   kind: 'F' a file, whose descriptor rides on this byte; 'B' bytes; 'E' the end
//	1   3   zero
//	4   4   n: rows that follow
//	8  12n  a row each: its number (4), where its bytes begin in the file (8; zero in 'B')
//
// After a 'B' frame come the bytes of its rows, in its order.
const (
	frameFile  = 'F'
	frameBytes = 'B'
	frameEnd   = 'E'
	frameHead  = 8
	frameRow   = 12
)

type frame struct {
	kind byte
	rows []store.RowAt
}

func (f *frame) rowNumbers() []int {
	rows := make([]int, len(f.rows))
	for i, r := range f.rows {
		rows[i] = r.Row
	}
	return rows
}

// readFrame reads a frame and the descriptor that rides on it, which the caller owns; maxRows is how many rows there are.
func readFrame(in *idleReader, maxRows int) (_ frame, file *os.File, err error) {
	defer func() {
		if err != nil && file != nil {
			file.Close()
			file = nil
		}
	}()
	var head [frameHead]byte
	n, file, err := in.readFile(head[:])
	if err == nil {
		_, err = io.ReadFull(in, head[n:])
	}
	if err != nil {
		return frame{}, file, err
	}
	f, rows := frame{kind: head[0]}, binary.BigEndian.Uint32(head[4:])
	switch {
	case f.kind != frameFile && f.kind != frameBytes && f.kind != frameEnd, head[1]|head[2]|head[3] != 0, f.kind == frameEnd && rows > 0:
		return f, file, zcerr.New(zcerr.Invalid, "%q is no frame", head)
	case (file != nil) != (f.kind == frameFile):
		return f, file, zcerr.New(zcerr.Invalid, "a descriptor belongs to a frame of a file, and to no other")
	case uint64(rows) > uint64(maxRows):
		return f, file, zcerr.New(zcerr.Invalid, "a frame of %d rows, the version has %d", rows, maxRows)
	}
	list := make([]byte, frameRow*int(rows))
	if _, err := io.ReadFull(in, list); err != nil {
		return f, file, err
	}
	f.rows = make([]store.RowAt, rows)
	for i := range f.rows {
		b := list[frameRow*i:]
		f.rows[i] = store.RowAt{Row: int(binary.BigEndian.Uint32(b)), Offset: binary.BigEndian.Uint64(b[4:])}
	}
	return f, file, nil
}

// importFile has the store read rows from a file that the client passed. It takes ownership of file.
func (s *Server) importFile(up *upload, file *os.File, rows []store.RowAt) error {
	size, err := checkSource(file)
	if err != nil {
		file.Close()
		return err
	}
	release, err := s.imports.take(up.ctx, up.peer.UID)
	if err != nil {
		file.Close()
		return err
	}
	ended := func() { file.Close(); release() }
	return up.put.Import(up.ctx, file, size, rows, s.ledger.Limits().Idle, ended, func(n int) { up.read.Add(uint64(n)) })
}

// idleReader gives each read its own deadline, and none any more once ctx has ended. Descriptors that come where none belong are
// closed, and an error.
type idleReader struct {
	conn *net.UnixConn
	ctx  context.Context
	idle time.Duration
}

func (r *idleReader) Read(p []byte) (int, error) {
	n, _, err := r.read(p, 0)
	return n, err
}

// readFile reads once, with at most one descriptor, which the caller owns.
func (r *idleReader) readFile(p []byte) (int, *os.File, error) {
	n, files, err := r.read(p, 1)
	if len(files) == 0 {
		return n, nil, err
	}
	return n, files[0], err
}

func (r *idleReader) read(p []byte, max int) (int, []*os.File, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(r.idle)); err != nil {
		return 0, nil, err
	}
	if err := r.ctx.Err(); err != nil { // after SetReadDeadline: the other order could undo the cut
		return 0, nil, err
	}
	return fdpass.RecvFDs(r.conn, p, max)
}
