package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// Verified is what Verify found.
type Verified struct {
	Ref     string
	Digest  manifest.Digest
	Tensors int
	Bytes   uint64   // that were read and hashed
	Damaged []string // names of tensors whose bytes are not those of their digest
}

// Verify reads every tensor of a version, in shared memory or where it is only on disk there, and compares its SHA-256. A version with a damaged tensor is not
// served any more, nor is any other that uses the same bytes; workers that have them mapped are not touched. Errors: Invalid,
// NotFound, Corrupt when the version's own files cannot be read.
func (s *Store) Verify(ctx context.Context, target string) (_ *Verified, err error) {
	defer explainInto(&err)
	r, err := ref.Parse(target)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	s.mu.Lock()
	v, tag, err := s.resolveLocked(r)
	var cold *coldError
	if errors.As(err, &cold) {
		_, tag, err = s.findLocked(r)
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if cold != nil {
		out := &Verified{Ref: r.Name + ":" + tag}
		return out, s.verifyCold(ctx, cold.digest, out)
	}
	out := &Verified{Ref: r.Name + ":" + tag, Digest: v.digest}
	bad, err := s.scrub(ctx, v, out)
	switch {
	case zcerr.KindOf(err) == zcerr.Corrupt:
		s.quarantine(v, nil, err)
		return nil, err
	case err != nil:
		return nil, err
	case len(bad) > 0:
		s.quarantine(v, bad, fmt.Errorf("the bytes of tensor %q are not those that were put", out.Damaged[0]))
	}
	return out, nil
}

// scrub hashes the tensors of a version, on all cores, and gives the places of those that are damaged.
func (s *Store) scrub(ctx context.Context, v *version, out *Verified) ([]place, error) {
	tab, err := s.mapFile(tableFile(v.digest), v.tableUse.Size)
	if err != nil {
		return nil, err
	}
	defer tab.Close()
	t, err := table.Open(tab.Bytes())
	if err == nil {
		err = t.Verify()
	}
	if err != nil {
		return nil, zcerr.New(zcerr.Corrupt, "table of %s: %w", out.Ref, err).WithHint("put the model again")
	}
	segs := make([]*shm.Mapping, len(v.segs))
	for i, sg := range v.segs {
		if segs[i], err = s.mapFile(sg.file(), sg.use.Size); err != nil {
			return nil, err
		}
		defer segs[i].Close()
	}
	var (
		mu   sync.Mutex
		bad  []place
		wg   sync.WaitGroup
		next = make(chan int)
	)
	check := func(i int) (err error) {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true)) // a file that is cut while it is read
		defer func() {
			if p := recover(); p != nil {
				err = zcerr.New(zcerr.Corrupt, "read tensor %d: %v", i, p).WithHint("put the model again")
			}
		}()
		row, err := t.Tensor(i)
		if err != nil {
			return err
		}
		var data []byte
		if row.Bytes > 0 {
			data = segs[row.Segment].Bytes()[row.Offset : row.Offset+uint64(row.Bytes)]
		}
		same := manifest.Digest(sha256.Sum256(data)) == row.SHA256
		mu.Lock()
		defer mu.Unlock()
		out.Tensors++
		out.Bytes += uint64(row.Bytes)
		if !same {
			names, err := t.TensorNames(i)
			if err != nil {
				return err
			}
			out.Damaged = append(out.Damaged, names[0])
			bad = append(bad, place{v.segs[row.Segment], row.Offset})
		}
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				if err := check(i); err != nil {
					cancel(err)
				}
			}
		}()
	}
feed:
	for i := range t.Tensors() {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	slices.Sort(out.Damaged)
	return bad, context.Cause(ctx)
}

// mapFile maps a file that must have the size it was published with.
func (s *Store) mapFile(name string, size uint64) (*shm.Mapping, error) {
	f, err := s.dir.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, zcerr.New(zcerr.Corrupt, "%w", err).WithHint("put the model again")
	}
	if err != nil { // says nothing about the bytes
		return nil, err
	}
	defer f.Close()
	use, err := shm.UsageOf(f)
	if err != nil {
		return nil, err
	}
	if use.Size != size {
		return nil, zcerr.New(zcerr.Corrupt, "a file of %d bytes has %d: it was cut or written behind the daemon's back", size, use.Size).WithHint("put the model again")
	}
	return shm.Map(f, int(size))
}

// quarantine takes a damaged version, and every other that uses one of the bad places, out of service. Their tags stay and say
// why; a put of the same digest repairs one.
func (s *Store) quarantine(v *version, bad []place, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, other := range s.versions {
		if other != v && !slices.ContainsFunc(other.rows, func(r rowPlace) bool { return slices.Contains(bad, r.place) }) {
			continue
		}
		s.log.Error("quarantined", zap.Stringer("digest", other.digest), zap.Error(why))
		s.takeOutLocked(other, why)
	}
}
