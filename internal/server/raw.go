package server

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// The raw channel: the same socket, for whatever is no gRPC. A connection begins with "ZCR1 " and one line:
//
//	ZCR1 put TICKET\n      the bytes of a put follow; the answer comes on the Put stream
//	ZCR1 sources TICKET\n  the same in frames: files, whose descriptors ride along, and bytes of rows in any order
//	ZCR1 attach REF\n      the answer is one line of JSON, with the descriptors beside its first byte; the connection
//	                       is the lease
const maxRawLine = 1 << 10

// replyTime is how long an answer on the raw channel may take to go: it always fits the socket.
const replyTime = 10 * time.Second

// rawAttached is the answer to attach.
type rawAttached struct {
	Ref        string    `json:"ref"`
	Digest     string    `json:"digest"`
	TableBytes uint64    `json:"table_bytes"`
	Segments   int       `json:"segments"` // descriptors after the first, which is the table; each is a safetensors file
	Error      *rawError `json:"error,omitempty"`
}

type rawError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (s *Server) serveRaw(ctx context.Context, ln *fdpass.Listener, wg *sync.WaitGroup) {
	for {
		conn, err := ln.Next()
		if err != nil {
			return // closed
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer conn.Close()
			if err := s.raw(ctx, conn.UnixConn, conn.Denied); err != nil {
				s.log.Info("refused", zap.String("method", "raw"), zap.Stringer("kind", zcerr.KindOf(err)), zap.Error(err))
			}
		}()
	}
}

func (s *Server) raw(ctx context.Context, conn *net.UnixConn, denied error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = zcerr.New(zcerr.Other, "panic: %v", p)
		}
	}()
	cred, err := peercred.Identify(conn)
	if err != nil {
		return err
	}
	line, err := s.readLine(ctx, conn)
	if err != nil {
		return refuse(conn, err)
	}
	if denied != nil {
		return refuse(conn, denied)
	}
	verb, arg, _ := strings.Cut(strings.TrimPrefix(line, fdpass.MagicRaw+" "), " ")
	switch verb {
	case "put":
		err = s.receive(conn, cred, arg)
	case "sources":
		err = s.receiveSources(conn, cred, arg)
	case "attach":
		err = s.attachRaw(ctx, conn, cred, arg)
	default:
		err = zcerr.New(zcerr.Invalid, "the raw channel knows put, sources and attach").WithHint("begin with one line, as in: ZCR1 attach NAME")
	}
	return refuse(conn, err)
}

// refuse tells the client why, when there is something to tell: an error of the connection itself is nothing it could read.
func refuse(conn *net.UnixConn, err error) error {
	if err == nil || !errors.As(err, new(*zcerr.Error)) {
		return err
	}
	return errors.Join(err, reply(conn, rawAttached{Error: rawErrorOf(err)}))
}

// readLine reads up to a newline and not a byte further: what follows belongs to the put.
func (s *Server) readLine(ctx context.Context, conn *net.UnixConn) (string, error) {
	if err := conn.SetReadDeadline(time.Now().Add(s.ledger.Limits().Handshake)); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // nothing has begun yet
	defer stop()
	var line []byte
	var b [1]byte
	for len(line) < maxRawLine {
		n, _, err := fdpass.RecvFDs(conn, b[:], 0) // descriptors do not belong here: closed, and the end
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", fmt.Errorf("read the first line: %w", err)
		}
		if b[0] == '\n' {
			return string(line), conn.SetReadDeadline(time.Time{})
		}
		line = append(line, b[0])
	}
	return "", zcerr.New(zcerr.Invalid, "the first line has over %d bytes", maxRawLine).WithHint("begin with one line, as in: ZCR1 attach NAME")
}

func (s *Server) attachRaw(ctx context.Context, conn *net.UnixConn, cred peercred.Cred, target string) error {
	back, err := s.ledger.Lease(cred.UID)
	if err != nil {
		return err
	}
	defer back()
	l, files, err := s.st.Attach(target, store.Holder{PID: cred.PID, UID: cred.UID, Command: commandOf(cred.PID)})
	if err != nil {
		return err
	}
	defer s.st.Release(l.ID)
	answer, err := json.Marshal(rawAttached{Ref: l.Ref, Digest: "sha256:" + hex.EncodeToString(l.Digest[:]), TableBytes: l.TableBytes, Segments: len(files) - 1})
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	if err == nil {
		err = fdpass.SendFDs(conn, append(answer, '\n'), fds...)
	}
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, _ = io.Copy(io.Discard, conn) // until the client goes
	return nil
}

func rawErrorOf(err error) *rawError {
	return &rawError{Kind: zcerr.KindOf(err).String(), Message: err.Error(), Hint: zcerr.HintOf(err)}
}

func reply(conn *net.UnixConn, a rawAttached) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := conn.SetWriteDeadline(time.Now().Add(replyTime)); err != nil {
		return err
	}
	_, err = conn.Write(append(b, '\n'))
	return err
}
