package client

import (
	"context"
	"sync"

	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Model is one version in hand: a lease, and its segments mapped read-only. It is safe for concurrent use, Close included.
type Model struct {
	c      *Client
	ref    string
	digest manifest.Digest
	table  *table.Table
	maps   []*shm.Mapping // all of them: the table's, its segments', and those of forms
	segs   []*shm.Mapping // of the table's segments
	form   derive.Form    // of the weights
	forms  []derivedForm
	gate   *region.Gate // whoever reads them is inside
	faults prefaults
	once   sync.Once
	err    error

	// Of whoever has the turn of c.leases.
	lease uint64 // 0: none any more
	gen   int    // stream that the lease is on
}

func newModel(c *Client, ref string) *Model { return &Model{c: c, ref: ref, gate: region.NewGate()} }

// Ref is the reference as the daemon resolved it: name:tag.
func (m *Model) Ref() string { return m.ref }

// Digest is the version.
func (m *Model) Digest() manifest.Digest { return m.digest }

// Table is the version's tree and tensor rows, in shared memory. It lives until Close; reading it is safe inside [Model.Read].
func (m *Model) Table() *table.Table { return m.table }

// Read calls f while the model cannot be closed, and gives a read of a segment that was cut meanwhile as an error of kind
// Fault. It is for programs that read tensors themselves; models that compute on a gpu.Stream have both without it. What f
// starts in other goroutines is not covered. Errors: Canceled when the model is closed, Fault, and f's own.
func (m *Model) Read(f func() error) (err error) {
	if err := m.gate.Enter(); err != nil {
		return zcerr.Wrap("read", m.ref, err)
	}
	defer m.gate.Leave()
	defer func() {
		if faulted(err) {
			err = zcerr.Wrap("read", m.ref, err)
		}
	}()
	defer region.Caught(region.On(), &err)
	return f()
}

func faulted(err error) bool {
	_, ok := err.(*region.Fault)
	return ok
}

// Tensor is a view on tensor row: read-only shared pages, valid until Close. After Close a read faults; a write always does.
// Errors: NotFound (no such row), Corrupt, Canceled when the model is closed, Fault.
func (m *Model) Tensor(row int) (v tensor.View, r table.Tensor, err error) {
	err = m.Read(func() (err error) {
		v, r, err = m.tensor(row)
		return err
	})
	return v, r, err
}

func (m *Model) tensor(row int) (tensor.View, table.Tensor, error) {
	r, err := m.table.Tensor(row)
	if err != nil {
		return tensor.View{}, r, zcerr.New(zcerr.Corrupt, "%w", err)
	}
	v := tensor.View{DType: r.DType, Shape: r.Shape}
	if r.Bytes > 0 { // Tensor has checked that the segment exists and holds the range
		v.Data = bytesOf(m.segs, r)
	}
	if v.Packed, err = m.packed(row, r); err != nil {
		return tensor.View{}, r, err
	}
	return v, r, nil
}

// Value is the bytes of a value of the version's tree: shared pages, valid until Close, to be copied by whoever keeps them.
// Errors: as for Tensor.
func (m *Model) Value(n table.Node) (b []byte, err error) {
	row, inRow := n.ValueRow()
	if !inRow {
		return n.Value(), nil
	}
	v, _, err := m.Tensor(row)
	return v.Data, err
}

// bytesOf is where a row lies, which its table has checked to be inside.
func bytesOf(segs []*shm.Mapping, r table.Tensor) []byte {
	b := segs[r.Segment].Bytes()
	return b[r.Offset : r.Offset+uint64(r.Bytes) : r.Offset+uint64(r.Bytes)]
}

// Views are all tensors, by row, in their plain form, in one go and with two allocations.
func (m *Model) Views() (all []tensor.View, err error) {
	err = m.Read(func() error {
		all = make([]tensor.View, m.table.Tensors())
		return m.table.Each(func(i int, r table.Tensor) {
			v := &all[i]
			v.DType, v.Shape = r.DType, r.Shape
			if r.Bytes > 0 {
				v.Data = bytesOf(m.segs, r)
			}
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Lookup is the tensor of that name. Errors: NotFound, Corrupt.
func (m *Model) Lookup(name string) (v tensor.View, r table.Tensor, err error) {
	err = m.Read(func() (err error) {
		row, ok := m.table.Lookup(name)
		if !ok {
			return zcerr.New(zcerr.NotFound, "%s has no tensor %q", m.ref, name).WithHint("zcctl show %s", m.ref)
		}
		v, r, err = m.tensor(row)
		return err
	})
	return v, r, err
}

// Segment is a mapped segment, for reports.
type Segment struct {
	Inode uint64
	Bytes []byte // the whole file: a valid safetensors file
}

// Segments lists the mapped segments of the version itself.
func (m *Model) Segments() []Segment {
	var out []Segment
	for _, mp := range m.segs {
		out = append(out, Segment{Inode: mp.Inode(), Bytes: mp.Bytes()})
	}
	return out
}

// Close unmaps the model and releases its lease. It waits for what is computing on the weights: for every stream that has used
// one since its last Sync, for calls of Read, and for a part of a prefault in the background. Whoever comes later gets an error
// of kind Canceled. Views that were handed out must not be read any more, unless inside Read. A second Close does nothing.
// Do not call it from inside Read or between an op and its Sync: it would wait for itself.
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
	m.gate.Close()
	m.faults.wait()
	for _, mp := range m.maps {
		_ = mp.Close()
	}
}
