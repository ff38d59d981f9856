package storetest

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/shm"
)

// Local is a store of this process.
type Local struct{ *store.Store }

// Put is a whole put.
func (l Local) Put(ref string, replace bool, d *manifest.Draft) (*store.PutResult, error) {
	v, err := d.Seal(context.Background(), nil)
	if err != nil {
		return nil, err
	}
	p, err := l.BeginPut(ref, replace, v.Encoded)
	if err != nil {
		return nil, err
	}
	defer p.Abort()
	var parts []io.Reader
	for _, row := range p.Wanted() {
		parts = append(parts, io.NewSectionReader(v.Data[row], 0, int64(v.Manifest.Tensors[row].Bytes())))
	}
	if err := p.Fill(context.Background(), io.MultiReader(parts...)); err != nil {
		return nil, err
	}
	return p.Commit()
}

// Attach takes a lease and maps what it gives.
func (l Local) Attach(ref string) (*Held, error) {
	lease, files, err := l.Store.Attach(ref, store.Holder{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), Command: os.Args[0]})
	if err != nil {
		return nil, err
	}
	var maps []*shm.Mapping
	release := func() {
		for _, m := range maps {
			_ = m.Close()
		}
		l.Store.Release(lease.ID)
	}
	h, err := mapFiles(files, &maps)
	if err != nil {
		release()
		return nil, err
	}
	h.Ref, h.Release = lease.Ref, release
	if h.Digest != lease.Digest {
		release()
		return nil, fmt.Errorf("the table is of %v, the lease of %v", h.Digest, lease.Digest)
	}
	return h, nil
}

func mapFiles(files []*os.File, maps *[]*shm.Mapping) (*Held, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, f := range files {
		u, err := shm.UsageOf(f)
		if err != nil {
			return nil, err
		}
		m, err := shm.Map(f, int(u.Size))
		if err != nil {
			return nil, err
		}
		*maps = append(*maps, m)
	}
	tab, err := table.Open((*maps)[0].Bytes())
	if err != nil {
		return nil, err
	}
	if _, _, _, err := tab.Manifest(); err != nil { // also checks the digest
		return nil, err
	}
	if tab.Segments() != len(files)-1 {
		return nil, fmt.Errorf("%d segments, %d files", tab.Segments(), len(files)-1)
	}
	h := &Held{Digest: tab.Digest(), Tensors: map[string][]byte{}, Sums: map[string]manifest.Digest{}}
	for i := range tab.Tensors() {
		r, err := tab.Tensor(i)
		if err != nil {
			return nil, err
		}
		names, err := tab.TensorNames(i)
		if err != nil {
			return nil, err
		}
		var b []byte
		if r.Bytes > 0 {
			b = (*maps)[1+r.Segment].Bytes()[r.Offset : r.Offset+uint64(r.Bytes)]
		}
		h.Tensors[names[0]], h.Sums[names[0]] = b, r.SHA256
	}
	return h, nil
}

// Holders gives the leases.
func (l Local) Holders(name string) ([]store.LeaseInfo, error) { return l.Store.Holders(name), nil }

// Verify reads and compares.
func (l Local) Verify(ref string) (*store.Verified, error) {
	return l.Store.Verify(context.Background(), ref)
}
