package client

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// PutOptions are the choices of a put.
type PutOptions struct {
	Replace  bool                                // let an explicit tag move to other bytes
	Progress func(stage string, done, total int) // called often, from several goroutines; stages "hash" and "send", in bytes
}

const manifestChunk = 256 << 10

// Put stores a draft under a reference: a bare name makes the next version and moves "latest", NAME:TAG that tag. It hashes
// every tensor, sends those that no stored version has, and returns once the version is published. The draft is used up.
// Errors: Invalid, Conflict, NoSpace, Limit, Corrupt (the source changed meanwhile), Unavailable.
func (c *Client) Put(ctx context.Context, ref string, d *manifest.Draft, opt PutOptions) (*zcstorev1.PutDone, error) {
	if err := checkRef("put", ref); err != nil {
		return nil, err
	}
	var hashed func(int)
	if opt.Progress != nil {
		total := 0
		for i := range d.Tensors {
			total += (&manifest.Tensor{DType: d.Tensors[i].DType, Shape: d.Tensors[i].Shape}).Bytes()
		}
		hashed = func(n int) { opt.Progress("hash", n, total) }
	}
	s, err := d.Seal(ctx, hashed)
	if err != nil {
		if zcerr.KindOf(err) == zcerr.Other {
			err = zcerr.New(zcerr.Invalid, "%w", err)
		}
		return nil, zcerr.Wrap("put", ref, err)
	}
	done, err := c.putSealed(ctx, ref, s, opt)
	return done, c.fail("put", ref, err)
}

func (c *Client) putSealed(ctx context.Context, ref string, s *manifest.Sealed, opt PutOptions) (*zcstorev1.PutDone, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the stream is the put: whatever is not committed goes
	stream, err := c.api.Put(ctx)
	if err != nil {
		return nil, err
	}
	plan, err := begin(stream, ref, s, opt.Replace)
	if err != nil {
		return nil, err
	}
	if plan.WantedBytes > 0 || plan.Ticket != "" {
		if err := c.send(ctx, s, plan, opt.Progress); err != nil {
			var broken net.Error
			if !errors.As(err, &broken) && !errors.Is(err, syscall.EPIPE) {
				return nil, err // of the source, or of the caller
			}
			// The daemon's own word on why it stopped taking bytes is better than "broken pipe".
			if _, serr := stream.Recv(); serr != nil && zcerr.KindOf(zcerr.FromStatus(serr)) != zcerr.Canceled {
				return nil, serr
			}
			return nil, err
		}
	}
	if err := stream.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Commit{Commit: &zcstorev1.PutCommit{}}}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	reply, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if reply.GetDone() == nil {
		return nil, zcerr.New(zcerr.Other, "the daemon answered something else than done")
	}
	return reply.GetDone(), nil
}

// begin sends the reference and the manifest, and gets the plan.
func begin(stream zcstorev1.Store_PutClient, ref string, s *manifest.Sealed, replace bool) (*zcstorev1.PutPlan, error) {
	err := stream.Send(&zcstorev1.PutRequest{Step: &zcstorev1.PutRequest_Begin{Begin: &zcstorev1.PutBegin{
		Protocol: Protocol, Ref: ref, Replace: replace, ManifestBytes: uint64(len(s.Encoded)),
	}}})
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

// send streams the wanted tensors over the raw channel, in order.
func (c *Client) send(ctx context.Context, s *manifest.Sealed, plan *zcstorev1.PutPlan, progress func(string, int, int)) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write([]byte("ZCR1 put " + plan.Ticket + "\n")); err != nil {
		return err
	}
	sent := 0
	buf := make([]byte, 1<<20)
	for i, src := range s.Data {
		if plan.Wanted[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		size := s.Manifest.Tensors[i].Bytes()
		for at := 0; at < size; {
			n := min(len(buf), size-at)
			if _, err := io.ReadFull(io.NewSectionReader(src, int64(at), int64(n)), buf[:n]); err != nil {
				return zcerr.New(zcerr.Invalid, "read tensor %q again: %w", s.Manifest.Tensors[i].Names[0], err)
			}
			if _, err := conn.Write(buf[:n]); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return err
			}
			at += n
			sent += n
			if progress != nil {
				progress("send", sent, int(plan.WantedBytes))
			}
		}
	}
	return nil
}
