package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// upload is a put that waits for its bytes on the raw channel.
type upload struct {
	put  *store.Put
	ctx  context.Context // of the Put stream: when it ends, so does the upload
	peer peercred.Cred
	done chan error // gets one value, when the bytes are in
	late *time.Timer
}

// Put implements the service. The stream is the put: whenever it returns, nothing of an uncommitted one is left.
func (s *Server) Put(stream zcstorev1.Store_PutServer) error {
	s.puts.Add(1)
	defer s.puts.Done()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	start := time.Now()
	begin, encoded, err := recvManifest(stream)
	if err != nil {
		return err
	}
	p, err := s.st.BeginPut(begin.Ref, begin.Replace, encoded)
	if err != nil {
		return err
	}
	defer p.Abort()
	_, cred, _ := fdpass.FromContext(ctx)
	up := &upload{put: p, ctx: ctx, peer: cred, done: make(chan error, 1)}
	plan := &zcstorev1.PutPlan{Wanted: bitmap(p.Rows(), p.Wanted()), WantedBytes: p.WantedBytes(), SharedBytes: p.SharedBytes()}
	if len(p.Wanted()) > 0 {
		plan.Ticket = s.issue(up)
		defer s.redeem(plan.Ticket)
	} else {
		up.done <- nil
	}
	if err := stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Plan{Plan: plan}}); err != nil {
		return err
	}
	if err := waitForCommit(ctx, stream, up); err != nil {
		return err
	}
	res, err := p.Commit()
	if err != nil {
		return err
	}
	s.log.Info("put", zap.String("model", begin.Ref), zap.Stringer("digest", p.Digest()), zap.Uint64("bytes", p.WantedBytes()),
		zap.Uint64("shared_bytes", res.Shared), zap.Bool("existed", res.Existed), zap.Int32("pid", cred.PID), zap.Uint32("uid", cred.UID), zap.Duration("dur", time.Since(start)))
	return stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Done{Done: &zcstorev1.PutDone{
		Version: versionInfo(res.Version), Existed: res.Existed, WrittenBytes: res.Written, SharedBytes: res.Shared,
	}}})
}

func recvManifest(stream zcstorev1.Store_PutServer) (*zcstorev1.PutBegin, []byte, error) {
	req, err := stream.Recv()
	if err != nil {
		return nil, nil, ended(err)
	}
	begin := req.GetBegin()
	if begin == nil {
		return nil, nil, zcerr.New(zcerr.Invalid, "a put begins with begin")
	}
	if err := checkProtocol(begin.Protocol); err != nil {
		return nil, nil, err
	}
	if begin.ManifestBytes > manifest.MaxBytes {
		return nil, nil, zcerr.New(zcerr.Limit, "a manifest of %d bytes is over the limit of %d", begin.ManifestBytes, manifest.MaxBytes)
	}
	var encoded []byte // grows with what arrives, not with what was announced
	for uint64(len(encoded)) < begin.ManifestBytes {
		req, err := stream.Recv()
		if err != nil {
			return nil, nil, ended(err)
		}
		chunk := req.GetManifest()
		if len(chunk) == 0 || uint64(len(encoded)+len(chunk)) > begin.ManifestBytes {
			return nil, nil, zcerr.New(zcerr.Invalid, "the manifest's chunks do not add up to the %d bytes announced", begin.ManifestBytes)
		}
		encoded = append(encoded, chunk...)
	}
	return begin, encoded, nil
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return zcerr.New(zcerr.Invalid, "the put ended before its commit")
	}
	return err
}

// waitForCommit waits for the client's commit and for the bytes, in whichever order they come. A failed upload ends the put
// at once.
func waitForCommit(ctx context.Context, stream zcstorev1.Store_PutServer, up *upload) error {
	commit := make(chan error, 1)
	go func() {
		req, err := stream.Recv()
		switch {
		case err != nil:
			err = ended(err)
		case req.GetCommit() == nil:
			err = zcerr.New(zcerr.Invalid, "after the plan comes commit")
		}
		commit <- err
	}()
	for range 2 {
		select {
		case err := <-commit:
			if err != nil {
				return err
			}
		case err := <-up.done:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func bitmap(n int, set []int) []byte {
	b := make([]byte, (n+7)/8)
	for _, i := range set {
		b[i/8] |= 1 << (i % 8)
	}
	return b
}

func (s *Server) issue(up *upload) string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	ticket := hex.EncodeToString(b[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets[ticket] = up
	// A client that never comes with its ticket must not keep the put open.
	up.late = time.AfterFunc(idleUpload, func() {
		if s.redeem(ticket) != nil {
			up.done <- zcerr.New(zcerr.Timeout, "no bytes came within %v", idleUpload)
		}
	})
	return ticket
}

// redeem gives the upload of a ticket, once.
func (s *Server) redeem(ticket string) *upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	up := s.tickets[ticket]
	if up != nil {
		up.late.Stop()
		delete(s.tickets, ticket)
	}
	return up
}

// receive takes the bytes of a put from a raw connection.
func (s *Server) receive(conn *net.UnixConn, cred peercred.Cred, ticket string) error {
	up := s.redeem(ticket)
	if up == nil {
		return zcerr.New(zcerr.Denied, "no put waits for this ticket: it was used, or its time is over")
	}
	if up.peer.UID != cred.UID || up.peer.PID != cred.PID {
		up.done <- zcerr.New(zcerr.Denied, "the ticket was used by another process")
		return zcerr.New(zcerr.Denied, "the ticket belongs to another process")
	}
	stop := context.AfterFunc(up.ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := up.put.Fill(up.ctx, &idleReader{conn: conn, ctx: up.ctx})
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		err = zcerr.New(zcerr.Timeout, "no bytes came for %v", idleUpload)
	}
	up.done <- err
	return nil
}

// idleReader gives each read its own deadline, and none any more once ctx has ended.
type idleReader struct {
	conn *net.UnixConn
	ctx  context.Context
}

func (r *idleReader) Read(p []byte) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(idleUpload)); err != nil {
		return 0, err
	}
	if err := r.ctx.Err(); err != nil { // after SetReadDeadline: the other order could undo the cut
		return 0, err
	}
	return r.conn.Read(p)
}
