package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/peercred"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// upload is a put that waits for its bytes on the raw channel.
type upload struct {
	put  *store.Put
	ctx  context.Context // of the Put stream: when it ends, so does the upload
	peer peercred.Cred
	done chan error    // gets one value, when the bytes are in
	read atomic.Uint64 // bytes that the daemon read from files it was passed
	late *time.Timer
}

// Put implements the service. The stream is the put: whenever it returns, nothing of an uncommitted one is left.
func (s *Server) Put(stream zcstorev1.Store_PutServer) error {
	s.puts.begin()
	defer s.puts.end()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	start := time.Now()
	_, cred, _ := fdpass.FromContext(ctx)
	back, err := s.ledger.Put(cred.UID) // first: the manifest takes memory too
	if err != nil {
		return err
	}
	defer back()
	begin, spec, err := recvManifest(stream)
	if err != nil {
		return err
	}
	spec.Owner = cred.UID
	if begin.DryRun {
		return s.dryRun(stream, spec)
	}
	p, err := s.st.Begin(spec)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := s.takeBytes(ctx, stream, p, cred); err != nil {
		return err
	}
	sent := p.WantedBytes()
	again, err := p.Settle()
	if err != nil {
		return err
	}
	if again != nil {
		if err := sendAgain(stream, again); err != nil || !begin.Keep {
			return err
		}
		if p, err = s.putKept(ctx, stream, p); err != nil {
			return err
		}
		defer p.Abort()
	}
	res, err := p.Commit()
	if err != nil {
		return err
	}
	s.log.Info("put", zap.String("model", begin.Ref), zap.Stringer("digest", p.Digest()), zap.Uint64("bytes", sent),
		zap.Uint64("shared_bytes", res.Shared), zap.Bool("existed", res.Existed), zap.Int32("pid", cred.PID), zap.Uint32("uid", cred.UID), zap.Duration("dur", time.Since(start)))
	return stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Done{Done: &zcstorev1.PutDone{
		Version: versionInfo(res.Version), Existed: res.Existed, WrittenBytes: res.Written, SharedBytes: res.Shared,
	}}})
}

// takeBytes sends the plan and waits for the bytes and the commit.
func (s *Server) takeBytes(ctx context.Context, stream zcstorev1.Store_PutServer, p *store.Put, cred peercred.Cred) error {
	up := &upload{put: p, ctx: ctx, peer: cred, done: make(chan error, 1)}
	plan := planOf(p)
	if len(p.Wanted()) > 0 {
		plan.Ticket = s.issue(up)
		defer s.redeem(plan.Ticket)
	} else {
		up.done <- nil
	}
	if err := stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Plan{Plan: plan}}); err != nil {
		return err
	}
	return waitForCommit(ctx, stream, up)
}

// putKept goes on after again: the complete manifest comes on the same stream, and the bytes are those that came before.
func (s *Server) putKept(ctx context.Context, stream zcstorev1.Store_PutServer, kept *store.Put) (*store.Put, error) {
	_, spec, err := recvManifest(stream)
	if err != nil {
		return nil, err
	}
	spec.Kept, spec.Owner = kept, kept.Owner()
	p, err := s.st.Begin(spec)
	if err != nil {
		return nil, err
	}
	if err = p.FillKept(ctx, kept); err == nil {
		kept.Abort() // gives its memory back
		err = stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Plan{Plan: planOf(p)}})
	}
	if err == nil {
		up := &upload{put: p, done: make(chan error, 1)}
		up.done <- nil
		err = waitForCommit(ctx, stream, up)
	}
	if err != nil {
		p.Abort()
		return nil, err
	}
	return p, nil
}

func planOf(p *store.Put) *zcstorev1.PutPlan {
	return &zcstorev1.PutPlan{
		Wanted: bitmap(p.Rows(), p.Wanted()), WantedBytes: p.WantedBytes(), SharedBytes: p.SharedBytes(), NeedBytes: p.Need(), Sources: true,
	}
}

// dryRun answers with a plan, and allocates nothing.
func (s *Server) dryRun(stream zcstorev1.Store_PutServer, spec store.PutSpec) error {
	p, err := s.st.Plan(spec)
	if err != nil {
		return err
	}
	defer p.Abort()
	room, err := s.st.Room()
	if err != nil {
		return err
	}
	plan := planOf(p)
	plan.FreeBytes, plan.FreeLimit, plan.Existed = room.Free, room.What, p.Existed()
	return stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Plan{Plan: plan}})
}

// againDigests is how many digests go into one message.
const againDigests = 32 << 10

func sendAgain(stream zcstorev1.Store_PutServer, digests []manifest.Digest) error {
	for chunk := range slices.Chunk(digests, againDigests) {
		again := &zcstorev1.PutAgain{}
		for _, d := range chunk {
			again.Digests = append(again.Digests, d[:]...)
		}
		digests = digests[len(chunk):]
		again.More = len(digests) > 0
		if err := stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Again{Again: again}}); err != nil {
			return err
		}
	}
	return nil
}

// recvManifest receives the beginning of a put.
func recvManifest(stream zcstorev1.Store_PutServer) (*zcstorev1.PutBegin, store.PutSpec, error) {
	fail := func(err error) (*zcstorev1.PutBegin, store.PutSpec, error) { return nil, store.PutSpec{}, err }
	req, err := stream.Recv()
	if err != nil {
		return fail(ended(err))
	}
	begin := req.GetBegin()
	if begin == nil {
		return fail(zcerr.New(zcerr.Invalid, "a put begins with begin"))
	}
	if err := checkProtocol(begin.Protocol); err != nil {
		return fail(err)
	}
	if begin.ManifestBytes > manifest.MaxBytes {
		return fail(zcerr.New(zcerr.Limit, "a manifest of %d bytes is over the limit of %d", begin.ManifestBytes, manifest.MaxBytes))
	}
	var encoded []byte // grows with what arrives, not with what was announced
	for uint64(len(encoded)) < begin.ManifestBytes {
		req, err := stream.Recv()
		if err != nil {
			return fail(ended(err))
		}
		chunk := req.GetManifest()
		if len(chunk) == 0 || uint64(len(encoded)+len(chunk)) > begin.ManifestBytes {
			return fail(zcerr.New(zcerr.Invalid, "the manifest's chunks do not add up to the %d bytes announced", begin.ManifestBytes))
		}
		encoded = append(encoded, chunk...)
	}
	return begin, store.PutSpec{Ref: begin.Ref, Replace: begin.Replace, Manifest: encoded, Pending: bits(begin.Pending), Form: derive.Form(begin.Form)}, nil
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
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	told := uint64(0)
	for waiting := 2; waiting > 0; {
		select {
		case <-tick.C:
			if n := up.read.Load(); n > told {
				told = n
				if err := stream.Send(&zcstorev1.PutReply{Step: &zcstorev1.PutReply_Progress{Progress: &zcstorev1.PutProgress{DoneBytes: n}}}); err != nil {
					return err
				}
			}
		case err := <-commit:
			if err != nil {
				return err
			}
			waiting--
		case err := <-up.done:
			if err != nil {
				return err
			}
			waiting--
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

// bits lists the bits that are set.
func bits(b []byte) []int {
	var set []int
	for i, c := range b {
		for k := range 8 {
			if c&(1<<k) != 0 {
				set = append(set, 8*i+k)
			}
		}
	}
	return set
}

// progressEvery is how often a client is told how far the daemon is with files that it reads itself.
const progressEvery = 100 * time.Millisecond

func (s *Server) issue(up *upload) string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	ticket := hex.EncodeToString(b[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets[ticket] = up
	// A client that never comes with its ticket must not keep the put open.
	up.late = time.AfterFunc(s.ledger.Limits().Idle, func() {
		if s.redeem(ticket) != nil {
			up.done <- zcerr.New(zcerr.Timeout, "no bytes came within %v", s.ledger.Limits().Idle)
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
