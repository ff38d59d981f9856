package client

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm/region"
)

// PutOptions are the choices of a put.
type PutOptions struct {
	Replace  bool                                // let an explicit tag move to other bytes
	Form     string                              // default form of the tags that it sets, see [Form]; empty: as they have it
	Progress func(stage string, done, total int) // called often, from several goroutines; stages "hash" and "send", in bytes
}

const manifestChunk = 256 << 10

// Put stores a draft under a reference: a bare name makes the next version and moves "latest", NAME:TAG that tag. It hashes
// the tensors that may be stored already, or be equal to another one of the draft, sends what no stored version has, and
// returns once the version is published. Tensors that are sections of regular files ([io.SectionReader] on an [os.File] that
// was opened for reading) are read by the daemon itself, from descriptors that it is passed. Errors: Invalid, Conflict,
// NoSpace, Limit, Corrupt (the source changed meanwhile), Unavailable.
func (c *Client) Put(ctx context.Context, ref string, d *manifest.Draft, opt PutOptions) (*zcstorev1.PutDone, error) {
	if err := checkRef("put", ref); err != nil {
		return nil, err
	}
	p := &putting{c: c, ref: ref, d: d.ValueRows(), opt: opt}
	done, err := p.put(ctx)
	return done, c.fail("put", ref, err)
}

// PutStream is Put of a draft whose bytes come once: r gives those of the tensors that order lists, one after the other. The
// draft's Data is not used, and it may have no value of manifest.RowValueBytes and more. Where the stream repeats what is stored, the daemon shares it only after all has arrived, so it
// needs room for everything, and for a moment twice for what is new. Errors: as Put; Invalid when r has too few or too many bytes.
func (c *Client) PutStream(ctx context.Context, ref string, d *manifest.Draft, order []int, r io.Reader, opt PutOptions) (*zcstorev1.PutDone, error) {
	if err := checkRef("put", ref); err != nil {
		return nil, err
	}
	p := &putting{c: c, ref: ref, d: d, opt: opt, sums: make([]manifest.Digest, len(d.Tensors)), order: order, stream: r}
	done, err := p.putStream(ctx)
	return done, c.fail("put", ref, err)
}

// PutPlan is what a put would do now.
type PutPlan struct {
	Existed   bool   // the version is stored already
	SendBytes uint64 // of tensors that no version has
	Shared    uint64 // bytes of tensors that other versions have
	NeedBytes uint64 // of shared memory
	FreeBytes uint64 // that the daemon would allocate at most now
	FreeLimit string // what sets FreeBytes
}

// PlanPut tells what Put would do, and allocates nothing. It hashes what Put would hash.
func (c *Client) PlanPut(ctx context.Context, ref string, d *manifest.Draft, opt PutOptions) (*PutPlan, error) {
	if err := checkRef("put", ref); err != nil {
		return nil, err
	}
	p := &putting{c: c, ref: ref, d: d.ValueRows(), opt: opt}
	plan, err := p.plan(ctx)
	return plan, c.fail("put", ref, err)
}

// putting is one put of a client.
type putting struct {
	c    *Client
	ref  string
	d    *manifest.Draft
	opt  PutOptions
	sums []manifest.Digest // of the draft's tensors; zero: not known, the daemon tells it

	order  []int     // of a stream
	stream io.Reader // nil: the draft has the bytes
}

func (p *putting) put(ctx context.Context) (*zcstorev1.PutDone, error) {
	if err := p.hashSome(ctx); err != nil {
		return nil, err
	}
	s, err := p.seal()
	if err != nil {
		return nil, err
	}
	done, again, err := p.send(ctx, s)
	if err != nil || done != nil {
		return done, err
	}
	// A row that was not hashed is stored after all: now every digest is known.
	if s, err = p.sealAgain(s, again); err != nil {
		return nil, err
	}
	done, _, err = p.send(ctx, s)
	if err == nil && done == nil {
		err = zcerr.New(zcerr.Other, "the daemon wants a put with all its digests again")
	}
	return done, err
}

func (p *putting) seal() (*manifest.Sealed, error) {
	s, err := p.d.SealWith(p.sums)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	return s, nil
}

// sealAgain seals with the digests that the daemon told of s's pending rows.
func (p *putting) sealAgain(s *manifest.Sealed, again []manifest.Digest) (*manifest.Sealed, error) {
	if len(again) != len(s.Pending) {
		return nil, zcerr.New(zcerr.Other, "the daemon told %d digests, %d were open", len(again), len(s.Pending))
	}
	for k, row := range s.Pending {
		p.sums[s.From[row]] = again[k]
	}
	return p.seal()
}

func (p *putting) plan(ctx context.Context) (*PutPlan, error) {
	if err := p.hashSome(ctx); err != nil {
		return nil, err
	}
	s, err := p.seal()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.c.api.Put(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := p.begin(stream, s, func(b *zcstorev1.PutBegin) { b.DryRun = true })
	if err != nil {
		return nil, err
	}
	return &PutPlan{
		Existed: plan.Existed, SendBytes: plan.WantedBytes, Shared: plan.SharedBytes,
		NeedBytes: plan.NeedBytes, FreeBytes: plan.FreeBytes, FreeLimit: plan.FreeLimit,
	}, nil
}

// send makes one put of what is sealed. The result is done, or again with the digests of the pending rows.
func (p *putting) send(ctx context.Context, s *manifest.Sealed) (done *zcstorev1.PutDone, again []manifest.Digest, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil) // the stream is the put: whatever is not committed goes
	defer func() { err = refusedFor(ctx, err) }()
	stream, err := p.c.api.Put(ctx)
	if err != nil {
		return nil, nil, err
	}
	plan, err := p.begin(stream, s, nil)
	if err != nil {
		return nil, nil, err
	}
	if plan.Ticket != "" {
		if err := p.sendBytes(ctx, cancel, stream, s, plan); err != nil {
			return nil, nil, err
		}
	}
	return p.commit(stream, plan)
}

// refusedFor is err, or what ended a put on the raw channel.
func refusedFor(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.As(cause, new(*zcerr.Error)) {
		return cause
	}
	return err
}

// sendBytes sends what is wanted on the raw channel. When the daemon stopped taking bytes, the error is its own word on why.
func (p *putting) sendBytes(ctx context.Context, refuse context.CancelCauseFunc, stream zcstorev1.Store_PutClient, s *manifest.Sealed, plan *zcstorev1.PutPlan) error {
	err := region.Guard(func() error { return p.rawBytes(ctx, refuse, s, plan) }) // a tensor may be a mapped one, put again
	if err == nil || !isBroken(err) {
		return err // of the source, or of the caller
	}
	for {
		reply, serr := stream.Recv()
		if serr != nil && zcerr.KindOf(zcerr.FromStatus(serr)) != zcerr.Canceled {
			return serr
		}
		if serr != nil || reply.GetProgress() == nil {
			return err
		}
	}
}

// commit says that all bytes were sent, and waits for what comes of it.
func (p *putting) commit(stream zcstorev1.Store_PutClient, plan *zcstorev1.PutPlan) (*zcstorev1.PutDone, []manifest.Digest, error) {
	err := stream.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Commit{Commit: &zcstorev1.PutCommit{}}})
	if err != nil && !errors.Is(err, io.EOF) { // after an EOF, Recv has the reason
		return nil, nil, err
	}
	var again []manifest.Digest
	for {
		reply, err := stream.Recv()
		if err != nil {
			return nil, nil, err
		}
		switch {
		case reply.GetDone() != nil:
			if p.opt.Progress != nil && plan.WantedBytes > 0 {
				p.opt.Progress("send", int(plan.WantedBytes), int(plan.WantedBytes))
			}
			return reply.GetDone(), nil, nil
		case reply.GetProgress() != nil:
			if p.opt.Progress != nil {
				p.opt.Progress("send", int(reply.GetProgress().DoneBytes), int(plan.WantedBytes))
			}
		case reply.GetAgain() != nil:
			b := reply.GetAgain().Digests
			for ; len(b) >= len(manifest.Digest{}); b = b[len(manifest.Digest{}):] {
				again = append(again, manifest.Digest(b[:len(manifest.Digest{})]))
			}
			if !reply.GetAgain().More {
				return nil, again, nil
			}
		default:
			return nil, nil, zcerr.New(zcerr.Other, "the daemon answered something else than done")
		}
	}
}

// begin sends the reference and the manifest, and gets the plan.
func (p *putting) begin(stream zcstorev1.Store_PutClient, s *manifest.Sealed, with func(*zcstorev1.PutBegin)) (*zcstorev1.PutPlan, error) {
	b := &zcstorev1.PutBegin{Protocol: Protocol, Ref: p.ref, Replace: p.opt.Replace, Form: p.opt.Form, ManifestBytes: uint64(len(s.Encoded))}
	if len(s.Pending) > 0 {
		b.Pending = make([]byte, (len(s.Data)+7)/8)
		for _, row := range s.Pending {
			b.Pending[row/8] |= 1 << (row % 8)
		}
	}
	if with != nil {
		with(b)
	}
	err := stream.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: b}})
	for at := 0; err == nil && at < len(s.Encoded); at += manifestChunk {
		chunk := s.Encoded[at:min(len(s.Encoded), at+manifestChunk)]
		err = stream.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Manifest{Manifest: chunk}})
	}
	if err != nil && !errors.Is(err, io.EOF) { // after an EOF, Recv has the reason
		return nil, err
	}
	reply, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	plan := reply.GetPlan()
	if plan == nil || len(plan.Wanted) != (len(s.Data)+7)/8 {
		return nil, zcerr.New(zcerr.Other, "the daemon answered something else than a plan")
	}
	return plan, nil
}

// putStream sends everything as it comes. When some of it turns out to be stored, the daemon takes the rest from what it has.
func (p *putting) putStream(ctx context.Context) (done *zcstorev1.PutDone, err error) {
	s, err := p.seal()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer func() { err = refusedFor(ctx, err) }()
	stream, err := p.c.api.Put(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := p.begin(stream, s, func(b *zcstorev1.PutBegin) { b.Keep = true })
	if err != nil {
		return nil, err
	}
	if !plan.Sources {
		return nil, zcerr.New(zcerr.Unsupported, "this daemon takes no streams").WithHint("use a client and a daemon of the same release")
	}
	sent := make(chan error, 1)
	go func() { // a read of the caller's stream may hang, and nothing but the caller can end it
		var err error
		if plan.Ticket != "" {
			err = p.sendBytes(ctx, cancel, stream, s, plan)
		}
		if err == nil {
			err = atEnd(p.stream)
		}
		sent <- err
	}()
	select {
	case err = <-sent:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	done, again, err := p.commit(stream, plan)
	if err != nil || done != nil {
		return done, err
	}
	if s, err = p.sealAgain(s, again); err != nil {
		return nil, err
	}
	if plan, err = p.begin(stream, s, func(b *zcstorev1.PutBegin) { b.Keep = true }); err != nil {
		return nil, err
	}
	if done, _, err = p.commit(stream, plan); err == nil && done == nil {
		err = zcerr.New(zcerr.Other, "the daemon wants a put with all its digests again")
	}
	return done, err
}

// atEnd holds a stream to its end.
func atEnd(r io.Reader) error {
	n, err := io.ReadFull(r, make([]byte, 1))
	if n > 0 {
		return zcerr.New(zcerr.Invalid, "bytes follow after the last tensor").WithHint("the stream must be one safetensors file and nothing else")
	}
	if !errors.Is(err, io.EOF) {
		return zcerr.New(zcerr.Invalid, "read the stream: %w", err)
	}
	return nil
}

// isUnimplemented reports that the daemon is of a release that does not know a call.
func isUnimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }
