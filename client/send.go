package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// rawBytes sends the wanted rows over the raw channel: descriptors of files for those that lie in one, bytes for the others. All
// that the daemon says there is why it refuses them, which may be after they were sent: refuse ends the put with that.
func (p *putting) rawBytes(ctx context.Context, refuse context.CancelCauseFunc, s *manifest.Sealed, plan *zcstorev1.PutPlan) error {
	var d net.Dialer
	dialed, err := d.DialContext(ctx, "unix", p.c.socket)
	if err != nil {
		return err
	}
	conn := dialed.(*net.UnixConn)
	context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	told := make(chan struct{})
	go func() { // until the daemon has all, or the put is over
		defer close(told)
		defer conn.Close()
		text, _ := bufio.NewReader(io.LimitReader(conn, maxRefusal)).ReadBytes('\n')
		if err, ok := fdpass.ParseRefusal(text); ok {
			refuse(err)
		}
	}()
	out := &rawSender{p: p, s: s, conn: conn, total: int(plan.WantedBytes)}
	var wanted []int
	for row := range s.Data {
		if plan.Wanted[row/8]&(1<<(row%8)) != 0 {
			wanted = append(wanted, row)
		}
	}
	switch {
	case p.stream != nil:
		err = out.streamed(plan.Ticket)
	case !plan.Sources:
		err = out.plain(plan.Ticket, wanted)
	default:
		err = out.sources(plan.Ticket, wanted)
	}
	if isBroken(err) {
		<-told // the daemon has closed it, so this does not wait
	} else if err != nil {
		conn.Close()
	}
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// maxRefusal is more than a refusal has.
const maxRefusal = 64 << 10

// isBroken tells an error of the connection from one of the source.
func isBroken(err error) bool {
	var broken net.Error
	return errors.As(err, &broken) || errors.Is(err, syscall.EPIPE)
}

// rawSender writes the bytes of a put to the raw channel. proto/README.md has the frames.
type rawSender struct {
	p     *putting
	s     *manifest.Sealed
	conn  *net.UnixConn
	buf   []byte
	sent  int
	total int
}

// plain sends rows in the manifest's order, to a daemon that knows nothing else.
func (o *rawSender) plain(ticket string, rows []int) error {
	if _, err := o.conn.Write([]byte("ZCR1 put " + ticket + "\n")); err != nil {
		return err
	}
	return o.rows(rows)
}

// source is a file that rows lie in.
type source struct {
	file *os.File
	rows []rowAt
}

type rowAt struct {
	row    int
	offset int64
}

// sources passes the files that rows lie in, and sends the others as bytes.
func (o *rawSender) sources(ticket string, rows []int) error {
	var files []*source
	byFile := map[*os.File]*source{}
	var others []int
	for _, row := range rows {
		f, offset, ok := section(o.s.Data[row])
		if !ok {
			others = append(others, row)
			continue
		}
		src := byFile[f]
		if src == nil {
			src = &source{file: f}
			byFile[f] = src
			files = append(files, src)
		}
		src.rows = append(src.rows, rowAt{row, offset})
	}
	if _, err := o.conn.Write([]byte("ZCR1 sources " + ticket + "\n")); err != nil {
		return err
	}
	for _, src := range files {
		if err := o.frame('F', src.file, src.rows); err != nil {
			return err
		}
	}
	if len(others) > 0 {
		list := make([]rowAt, len(others))
		for i, row := range others {
			list[i].row = row
		}
		if err := o.frame('B', nil, list); err != nil {
			return err
		}
		if err := o.rows(others); err != nil {
			return err
		}
	}
	return o.frame('E', nil, nil)
}

// section tells that a tensor is a part of a file that the daemon would take: a regular one, opened for reading only.
func section(data io.ReaderAt) (f *os.File, offset int64, ok bool) {
	sr, ok := data.(*io.SectionReader)
	if !ok {
		return nil, 0, false
	}
	outer, offset, _ := sr.Outer()
	if f, ok = outer.(*os.File); !ok {
		return nil, 0, false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, 0, false
	}
	ok = false
	err = raw.Control(func(fd uintptr) {
		var st unix.Stat_t
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		ok = err == nil && flags&(unix.O_ACCMODE|unix.O_PATH) == unix.O_RDONLY &&
			unix.Fstat(int(fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
	})
	return f, offset, ok && err == nil
}

// frame sends a frame of the sources channel, with the file's descriptor on its first byte.
func (o *rawSender) frame(kind byte, file *os.File, rows []rowAt) error {
	b := make([]byte, 8+12*len(rows))
	b[0] = kind
	binary.BigEndian.PutUint32(b[4:], uint32(len(rows)))
	for i, r := range rows {
		at := b[8+12*i:]
		binary.BigEndian.PutUint32(at, uint32(r.row))
		binary.BigEndian.PutUint64(at[4:], uint64(r.offset))
	}
	if file == nil {
		_, err := o.conn.Write(b)
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = fdpass.SendFDs(o.conn, b, int(fd)) }); err != nil {
		return err
	}
	return serr
}

// rows sends the bytes of rows.
func (o *rawSender) rows(rows []int) error {
	for _, row := range rows {
		t := &o.s.Manifest.Tensors[row]
		if err := o.copy(io.NewSectionReader(o.s.Data[row], 0, int64(t.Bytes())), t); err != nil {
			return err
		}
	}
	return nil
}

// streamed sends everything of a stream, in its order.
func (o *rawSender) streamed(ticket string) error {
	rowOf := make([]int, len(o.p.d.Tensors))
	for row, from := range o.s.From {
		rowOf[from] = row
	}
	list := make([]rowAt, len(o.p.order))
	for k, from := range o.p.order {
		list[k].row = rowOf[from]
	}
	if _, err := o.conn.Write([]byte("ZCR1 sources " + ticket + "\n")); err != nil {
		return err
	}
	if err := o.frame('B', nil, list); err != nil {
		return err
	}
	in := bufio.NewReaderSize(o.p.stream, 64<<10)
	for _, r := range list {
		if err := o.copy(in, &o.s.Manifest.Tensors[r.row]); err != nil {
			return err
		}
	}
	o.p.stream = in // with what it has read ahead
	return o.frame('E', nil, nil)
}

// copy sends the bytes of one tensor from r.
func (o *rawSender) copy(r io.Reader, t *manifest.Tensor) error {
	if o.buf == nil {
		o.buf = make([]byte, 1<<20)
	}
	for left := t.Bytes(); left > 0; {
		b := o.buf[:min(len(o.buf), left)]
		if _, err := io.ReadFull(r, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return zcerr.New(zcerr.Invalid, "read tensor %q: %w", t.Names[0], err)
		}
		if _, err := o.conn.Write(b); err != nil {
			return err
		}
		left -= len(b)
		o.sent += len(b)
		if o.p.opt.Progress != nil {
			o.p.opt.Progress("send", o.sent, o.total)
		}
	}
	return nil
}
