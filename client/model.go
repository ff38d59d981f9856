package client

import (
	"context"
	"sync"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Model is one version in hand: a lease, and its segments mapped read-only. Safe for concurrent use until Close.
type Model struct {
	c      *Client
	ref    string
	digest manifest.Digest
	table  *table.Table
	maps   []*shm.Mapping // the table's, then the segments'
	once   sync.Once
	err    error

	// Of whoever has the turn of c.leases.
	lease uint64 // 0: none any more
	gen   int    // stream that the lease is on
}

// Ref is the reference as the daemon resolved it: name:tag.
func (m *Model) Ref() string { return m.ref }

// Digest is the version.
func (m *Model) Digest() manifest.Digest { return m.digest }

// Table is the version's tree and tensor rows, in shared memory. It lives until Close.
func (m *Model) Table() *table.Table { return m.table }

// Tensor is a view on tensor row: read-only shared pages, valid until Close. After Close a read faults; a write always does.
func (m *Model) Tensor(row int) (tensor.View, table.Tensor, error) {
	r, err := m.table.Tensor(row)
	if err != nil {
		return tensor.View{}, r, zcerr.New(zcerr.Corrupt, "%w", err)
	}
	v := tensor.View{DType: r.DType, Shape: r.Shape}
	if r.Bytes > 0 { // Tensor has checked that the segment exists and holds the range
		b := m.maps[1+r.Segment].Bytes()
		v.Data = b[r.Offset : r.Offset+uint64(r.Bytes) : r.Offset+uint64(r.Bytes)]
	}
	return v, r, nil
}

// Lookup is the tensor of that name. Errors: NotFound, Corrupt.
func (m *Model) Lookup(name string) (tensor.View, table.Tensor, error) {
	row, ok := m.table.Lookup(name)
	if !ok {
		return tensor.View{}, table.Tensor{}, zcerr.New(zcerr.NotFound, "%s has no tensor %q", m.ref, name).WithHint("zcctl show %s", m.ref)
	}
	return m.Tensor(row)
}

// Segment is a mapped segment, for reports.
type Segment struct {
	Inode uint64
	Bytes []byte // the whole file: a valid safetensors file
}

// Segments lists the mapped segments.
func (m *Model) Segments() []Segment {
	var out []Segment
	for _, mp := range m.maps[1:] {
		out = append(out, Segment{Inode: mp.Inode(), Bytes: mp.Bytes()})
	}
	return out
}

// Populate maps every page of the weights now, so that the first forward pass does not fault.
func (m *Model) Populate() error {
	for _, mp := range m.maps[1:] {
		if err := mp.Populate(); err != nil {
			return zcerr.Wrap("populate", m.ref, err)
		}
	}
	return nil
}

// Close unmaps the model and releases its lease. Its tensors must not be used any more. A second Close does nothing.
func (m *Model) Close() error {
	m.once.Do(func() {
		m.unmap()
		ctx, cancel := context.WithTimeout(context.Background(), attachTimeout)
		defer cancel()
		m.c.mu.Lock()
		closed := m.c.closed
		delete(m.c.models, m)
		m.c.mu.Unlock()
		if closed {
			return // the lease went with the client
		}
		err := m.c.leases.exchange(ctx, m.release, func(*zcstorev1.AttachReply, *fdpass.Conn) error { return nil }, func() {})
		if zcerr.KindOf(zcerr.FromStatus(err)) != zcerr.Unavailable { // no daemon, no lease
			m.err = m.c.fail("release", m.ref, err)
		}
	})
	return m.err
}

// release is the request that gives the lease back; nil when it went with its stream.
func (m *Model) release() *zcstorev1.AttachRequest {
	if m.lease == 0 || m.gen != m.c.leases.gen {
		return nil
	}
	return &zcstorev1.AttachRequest{Step: &zcstorev1.AttachRequest_Release{Release: m.lease}}
}

func (m *Model) unmap() {
	for _, mp := range m.maps {
		_ = mp.Close()
	}
}
