package storetest

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
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
	return l.AttachAs(ref, store.Ask{Form: derive.Plain})
}

// AttachAs takes a lease on more than the version itself.
func (l Local) AttachAs(ref string, ask store.Ask) (*Held, error) {
	lease, files, err := l.Store.AttachAs(ref, store.Holder{PID: int32(os.Getpid()), UID: uint32(os.Getuid()), Command: os.Args[0]}, ask)
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
	h, err := mapFiles(files, lease.Derived, &maps)
	if err != nil {
		release()
		return nil, err
	}
	h.Ref, h.Release, h.Form = lease.Ref, release, lease.Form
	if h.Digest != lease.Digest {
		release()
		return nil, fmt.Errorf("the table is of %v, the lease of %v", h.Digest, lease.Digest)
	}
	return h, nil
}

func mapFiles(files []*os.File, derived []store.DerivedForm, maps *[]*shm.Mapping) (*Held, error) {
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	own := len(files)
	for _, d := range derived {
		own -= d.Files
	}
	h, tab, err := mapVersion(files[:own], maps)
	if err != nil {
		return nil, err
	}
	for _, d := range derived {
		var segs []*shm.Mapping
		made, formTab, err := mapVersion(files[own:own+d.Files], &segs)
		*maps = append(*maps, segs...)
		if err != nil {
			return nil, err
		}
		own += d.Files
		for _, m := range segs[1:] {
			h.Inodes = append(h.Inodes, m.Inode())
		}
		if bad := made.Broken(); bad != "" {
			return nil, fmt.Errorf("%s of the form %s is not what was made", bad, d.Form)
		}
		for index, name := range indices(tab, d.Form) {
			if row, ok := formTab.Lookup(derive.Name(index)); ok {
				names, err := formTab.TensorNames(row)
				if err != nil {
					return nil, err
				}
				h.Derived[name] = made.Tensors[names[0]]
			}
		}
	}
	return h, nil
}

// indices are the rows of a version by their first name, or, for tokenizers, the nodes of its values by their key.
func indices(t *table.Table, form derive.Form) map[int]string {
	out := map[int]string{}
	if form == derive.Tables {
		for _, n := range t.Root().Children() {
			out[n.Index()] = n.Key()
		}
		return out
	}
	for i := range t.Tensors() {
		if names, err := t.TensorNames(i); err == nil {
			out[i] = names[0]
		}
	}
	return out
}

// mapVersion maps a table and its segments.
func mapVersion(files []*os.File, maps *[]*shm.Mapping) (*Held, *table.Table, error) {
	refuse := func(err error) (*Held, *table.Table, error) { return nil, nil, err }
	for _, f := range files {
		u, err := shm.UsageOf(f)
		if err != nil {
			return refuse(err)
		}
		m, err := shm.Map(f, int(u.Size))
		if err != nil {
			return refuse(err)
		}
		*maps = append(*maps, m)
	}
	tab, err := table.Open((*maps)[0].Bytes())
	if err != nil {
		return refuse(err)
	}
	if _, _, _, err := tab.Manifest(); err != nil { // also checks the digest
		return refuse(err)
	}
	if tab.Segments() != len(files)-1 {
		return refuse(fmt.Errorf("%d segments, %d files", tab.Segments(), len(files)-1))
	}
	h := &Held{Digest: tab.Digest(), Tensors: map[string][]byte{}, Sums: map[string]manifest.Digest{}, Derived: map[string][]byte{}}
	for i := range tab.Tensors() {
		r, err := tab.Tensor(i)
		if err != nil {
			return refuse(err)
		}
		names, err := tab.TensorNames(i)
		if err != nil {
			return refuse(err)
		}
		var b []byte
		if r.Bytes > 0 {
			b = (*maps)[1+r.Segment].Bytes()[r.Offset : r.Offset+uint64(r.Bytes)]
		}
		h.Tensors[names[0]], h.Sums[names[0]] = b, r.SHA256
	}
	return h, tab, nil
}

// Holders gives the leases.
func (l Local) Holders(name string) ([]store.LeaseInfo, error) { return l.Store.Holders(name), nil }

// Verify reads and compares.
func (l Local) Verify(ref string) (*store.Verified, error) {
	return l.Store.Verify(context.Background(), ref)
}
