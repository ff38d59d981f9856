package client

import (
	"context"
	"errors"
	"io"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm/tensor"
)

const (
	// hashBytes is the size from which a tensor may be left for the daemon to hash. Smaller ones cost nothing.
	hashBytes = 64 << 10
	// haveSizes is how many sizes the daemon is asked for in one call.
	haveSizes = 50_000
	// sampleBytes is how much of a tensor's begin, middle and end are compared to tell two apart.
	sampleBytes = 256
)

// hashSome hashes the tensors whose digests the daemon needs to know before their bytes come: those that may be stored
// already, because something of their size is, and those that may be equal to another one of the draft. The rest is hashed
// once, by the daemon, when it arrives.
func (p *putting) hashSome(ctx context.Context) error {
	p.sums = make([]manifest.Digest, len(p.d.Tensors))
	sizes := make([]uint64, len(p.d.Tensors))
	ask := map[uint64]bool{} // size -> something stored has it
	for i := range p.d.Tensors {
		t := &p.d.Tensors[i]
		n, err := tensor.SizeBytes(t.DType, t.Shape)
		if err != nil {
			return zcerr.New(zcerr.Invalid, "tensor %q: %w", first(t.Names), err)
		}
		if sizes[i] = uint64(n); n >= hashBytes {
			ask[uint64(n)] = true
		}
	}
	if err := p.askSizes(ctx, ask); err != nil {
		return err
	}
	var which []int
	total := 0
	var unknown []int
	for i, n := range sizes {
		if n >= hashBytes && !ask[n] {
			unknown = append(unknown, i)
			continue
		}
		which = append(which, i)
		total += int(n)
	}
	twins, err := p.mayBeTwins(unknown, sizes)
	if err != nil {
		return err
	}
	for _, i := range twins {
		which = append(which, i)
		total += int(sizes[i])
	}
	var progress func(int)
	if p.opt.Progress != nil && total > 0 {
		progress = func(n int) { p.opt.Progress("hash", n, total) }
	}
	err = p.d.Hash(ctx, which, p.sums, progress)
	if err != nil && zcerr.KindOf(err) == zcerr.Other {
		err = zcerr.New(zcerr.Invalid, "%w", err)
	}
	return err
}

// askSizes asks the daemon which sizes something stored has. One that does not know the question gets every digest.
func (p *putting) askSizes(ctx context.Context, ask map[uint64]bool) error {
	list := make([]uint64, 0, len(ask))
	for n := range ask {
		list = append(list, n)
	}
	for len(list) > 0 {
		part := list[:min(len(list), haveSizes)]
		list = list[len(part):]
		reply, err := p.c.api.Have(ctx, &zcstorev1.HaveRequest{Sizes: part})
		if isUnimplemented(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(reply.Sizes) != (len(part)+7)/8 {
			return zcerr.New(zcerr.Other, "the daemon answered something else than the sizes asked for")
		}
		for i, n := range part {
			ask[n] = reply.Sizes[i/8]&(1<<(i%8)) != 0
		}
	}
	return nil
}

// mayBeTwins lists the tensors that could be equal to another one of the list: same dtype, shape, and bytes at begin, middle
// and end. Most layers of a model have equal shapes, and no two are equal; this tells them apart without reading them.
func (p *putting) mayBeTwins(list []int, sizes []uint64) ([]int, error) {
	type look struct {
		dtype  tensor.DType
		shape  string
		sample [3 * sampleBytes]byte
	}
	firstOf := map[look]int{}
	var twins []int
	for _, i := range list {
		t := &p.d.Tensors[i]
		l := look{dtype: t.DType, shape: t.Shape.String()}
		for k, at := range []int64{0, int64(sizes[i] / 2), int64(sizes[i]) - sampleBytes} {
			b := l.sample[k*sampleBytes:][:sampleBytes]
			if n, err := t.Data.ReadAt(b, at); n < len(b) {
				if err == nil || errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return nil, zcerr.New(zcerr.Invalid, "read tensor %q: the source ends inside it: %w", first(t.Names), err)
			}
		}
		j, ok := firstOf[l]
		if !ok {
			firstOf[l] = i
			continue
		}
		if j >= 0 {
			twins = append(twins, j)
			firstOf[l] = -1
		}
		twins = append(twins, i)
	}
	return twins, nil
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}
