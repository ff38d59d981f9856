package server

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// Attach implements the service. The stream is the lease: its end releases everything opened on it.
func (s *Server) Attach(stream zcstorev1.Store_AttachServer) error {
	conn, cred, ok := fdpass.FromContext(stream.Context())
	if !ok {
		return unaware()
	}
	s.clients.Add(1)
	defer s.clients.Add(-1)
	mine := map[uint64]func(){} // lease -> releases it
	defer func() {
		for _, release := range mine {
			release()
		}
	}()
	holder := store.Holder{PID: cred.PID, UID: cred.UID, Command: commandOf(cred.PID)}
	for first := true; ; first = false {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first {
			if err := checkProtocol(req.Protocol); err != nil {
				return err
			}
		}
		conn.Claimed(req.Claimed)
		var reply *zcstorev1.AttachReply
		switch step := req.Step.(type) {
		case *zcstorev1.AttachRequest_Open:
			begin := time.Now()
			opened, release, err := s.handOut(conn, holder, step.Open, ask(req.Options))
			if err != nil {
				s.log.Info("refused", zap.String("method", "attach"), zap.String("model", step.Open), zap.Stringer("kind", zcerr.KindOf(err)), zap.Uint32("uid", cred.UID), zap.Int32("pid", cred.PID), zap.Error(err))
				reply = &zcstorev1.AttachReply{Step: &zcstorev1.AttachReply_Error{Error: wireError(zcerr.Wrap("attach", step.Open, err))}}
				break
			}
			mine[opened.Lease] = release
			// At debug: workers attach all the time, and 'zcctl ps' has who holds what.
			s.log.Debug("attach", zap.String("model", opened.Ref), zap.String("form", opened.Form), zap.Uint64("lease", opened.Lease), zap.Uint32("uid", cred.UID), zap.Int32("pid", cred.PID), zap.Duration("dur", time.Since(begin)))
			reply = &zcstorev1.AttachReply{Step: &zcstorev1.AttachReply_Opened{Opened: opened}}
		case *zcstorev1.AttachRequest_Release:
			if release := mine[step.Release]; release != nil {
				delete(mine, step.Release)
				release()
			}
			reply = &zcstorev1.AttachReply{Step: &zcstorev1.AttachReply_Released{Released: step.Release}}
		default:
			return zcerr.New(zcerr.Invalid, "an attach request opens or releases")
		}
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

// ask is what a client wants beside the version. One that says nothing is of an older release, and can use nothing else.
func ask(o *zcstorev1.AttachOptions) store.Ask {
	if o == nil {
		return store.Ask{Form: derive.Plain}
	}
	return store.Ask{Form: derive.Form(o.Form), Tokenizers: o.Tokenizers}
}

// handOut takes a lease and queues its files on the connection.
func (s *Server) handOut(conn *fdpass.Conn, h store.Holder, target string, ask store.Ask) (_ *zcstorev1.Attached, release func(), err error) {
	back, err := s.ledger.Lease(h.UID)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if release == nil { // an error, or a panic
			back()
		}
	}()
	l, files, err := s.st.AttachAs(target, h, ask)
	if err != nil {
		return nil, nil, err
	}
	first, err := conn.Queue(files...)
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		s.st.Release(l.ID)
		switch {
		case errors.Is(err, fdpass.ErrUnaware):
			return nil, nil, unaware()
		case errors.Is(err, fdpass.ErrTooManyInFlight):
			return nil, nil, zcerr.New(zcerr.Limit, "%w", err).WithHint("take the descriptors of earlier replies first")
		}
		return nil, nil, err
	}
	var derived []*zcstorev1.DerivedForm
	for _, f := range l.Derived {
		derived = append(derived, &zcstorev1.DerivedForm{Form: string(f.Form), Fds: uint32(f.Files), TableBytes: f.TableBytes})
	}
	return &zcstorev1.Attached{
		Form: string(l.Form), Derived: derived,
		Lease: l.ID, Digest: l.Digest[:], Ref: l.Ref, FirstFd: first, Fds: uint32(len(files)),
		TableBytes: l.TableBytes, TableVersion: table.Version, Instance: s.st.Instance(), Seals: s.st.Seals(),
	}, func() { s.st.Release(l.ID); back() }, nil
}

func unaware() error {
	return zcerr.New(zcerr.Conflict, "this client takes no descriptors on its gRPC connection").
		WithHint("attach on the raw channel of the same socket: proto/README.md")
}

func wireError(err error) *zcstorev1.Error {
	var e *zcerr.Error
	if !errors.As(err, &e) {
		e = &zcerr.Error{Kind: zcerr.KindOf(err), Err: err}
	}
	msg := e.Kind.String()
	if e.Err != nil {
		msg = e.Err.Error()
	}
	return &zcstorev1.Error{Code: uint32(e.Kind.Code()), Kind: e.Kind.String(), Message: msg, Op: e.Op, Model: e.Model, Hint: e.Hint}
}

// commandOf is the command line of a process, for people. Empty when it has gone or may not be seen.
func commandOf(pid int32) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/cmdline")
	if err != nil {
		return ""
	}
	b = bytes.TrimRight(b, "\x00")
	if len(b) > 256 {
		b = b[:256]
	}
	for i, c := range b {
		if c < 0x20 || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(bytes.ToValidUTF8(b, []byte("?")))
}
