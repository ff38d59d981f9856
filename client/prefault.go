package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// PrefaultPolicy says when the pages of the weights are mapped in. A page that is not costs a page fault at its first use.
type PrefaultPolicy uint8

// The policies.
const (
	PrefaultDefault    PrefaultPolicy = iota // $ZCSTORE_PREFAULT, else none
	PrefaultNone                             // by the first forward pass, page by page
	PrefaultBackground                       // by a goroutine that Attach leaves behind; Model.Prefaulted waits for it
	PrefaultWait                             // before Attach returns
)

// EnvPrefault is the policy of programs that name none: none, background or wait.
const EnvPrefault = "ZCSTORE_PREFAULT"

var policyNames = [...]string{PrefaultDefault: "default", PrefaultNone: "none", PrefaultBackground: "background", PrefaultWait: "wait"}

func (p PrefaultPolicy) String() string {
	if int(p) >= len(policyNames) {
		return fmt.Sprintf("policy(%d)", uint8(p))
	}
	return policyNames[p]
}

// AttachOption is a choice of an attach.
type AttachOption func(*attachChoices)

type attachChoices struct {
	prefault   PrefaultPolicy
	form       string
	tokenizers bool
}

// Prefault sets when the pages are mapped in.
func Prefault(p PrefaultPolicy) AttachOption { return func(o *attachChoices) { o.prefault = p } }

func attachOptions(opts []AttachOption) (attachChoices, error) {
	var o attachChoices
	for _, f := range opts {
		f(&o)
	}
	if o.form == "" {
		o.form = os.Getenv(EnvForm)
	}
	if o.form != "" {
		if _, err := derive.Parse(o.form); err != nil {
			return o, err
		}
	}
	if int(o.prefault) >= len(policyNames) {
		return o, zcerr.New(zcerr.Invalid, "there is no prefault %v", o.prefault).WithHint("use client.PrefaultNone, PrefaultBackground or PrefaultWait")
	}
	if o.prefault != PrefaultDefault {
		return o, nil
	}
	o.prefault = PrefaultNone
	name := os.Getenv(EnvPrefault)
	if name == "" {
		return o, nil
	}
	for p := PrefaultNone; int(p) < len(policyNames); p++ {
		if p.String() == name {
			o.prefault = p
			return o, nil
		}
	}
	return o, zcerr.New(zcerr.Invalid, "$%s is %q; known are none, background and wait", EnvPrefault, name).WithHint("unset %s", EnvPrefault)
}

// prefaults is the prefault in the background of a model: at most one.
type prefaults struct {
	running sync.WaitGroup
	done    chan struct{} // nil: none was asked for
	err     error         // after done is closed
}

func (p *prefaults) wait() { p.running.Wait() }

// prefaultStep is how much is mapped in at once, and so how long Close waits for it: about 2 ms with 4 KiB pages.
const prefaultStep = 64 << 20

func (m *Model) prefault(ctx context.Context, p PrefaultPolicy) error {
	switch p {
	case PrefaultWait:
		return m.populate(ctx)
	case PrefaultBackground:
		if err := m.gate.Enter(); err != nil { // the client was closed meanwhile
			return err
		}
		defer m.gate.Leave()
		m.faults.done = make(chan struct{})
		m.faults.running.Go(func() {
			defer close(m.faults.done)
			m.faults.err = m.populate(context.Background())
		})
	}
	return nil
}

// Prefaulted waits for the prefault in the background, if the model was attached with one, and gives its error: Fault when a
// segment was cut, NoSpace when there is no memory for page tables, Canceled when the model was closed before it was done.
func (m *Model) Prefaulted(ctx context.Context) error {
	if m.faults.done == nil {
		return nil
	}
	select {
	case <-m.faults.done:
		return m.faults.err
	case <-ctx.Done():
		return zcerr.Wrap("prefault", m.ref, ctx.Err())
	}
}

// Populate maps every page of the weights now, so that the first forward pass does not fault. Errors as for Prefaulted.
func (m *Model) Populate() error { return m.populate(context.Background()) }

// populate goes step by step, so that neither Close nor ctx waits for more than one.
func (m *Model) populate(ctx context.Context) error {
	var all []run
	if err := m.Read(func() (err error) { all, err = m.runs(); return err }); err != nil {
		return zcerr.Wrap("prefault", m.ref, err)
	}
	for i, r := range all {
		for at := r.from; at < r.to; at += prefaultStep {
			if err := ctx.Err(); err != nil {
				return zcerr.Wrap("prefault", m.ref, err)
			}
			if err := m.gate.Enter(); err != nil {
				return zcerr.Wrap("prefault", m.ref, err)
			}
			err := r.PopulateRange(at, min(prefaultStep, r.to-at))
			m.gate.Leave()
			if err != nil {
				return zcerr.Wrap("prefault", m.ref, prefaultError(i, at, len(r.Bytes()), err))
			}
		}
	}
	return nil
}

// run is a part of a mapping.
type run struct {
	*shm.Mapping
	from, to int
}

// runs are what the weights of the model's form lie in. Plain bytes that have another form are left out: nobody computes on
// them.
func (m *Model) runs() ([]run, error) {
	unused := make([][]run, len(m.segs))
	if m.form.Derived() {
		err := m.table.Each(func(_ int, r table.Tensor) {
			if m.form.OfTensor(r.Role, r.Shape) && r.Role != tensor.LookupLinear {
				unused[r.Segment] = append(unused[r.Segment], run{nil, int(r.Offset), int(r.Offset) + r.Bytes})
			}
		})
		if err != nil {
			return nil, zcerr.New(zcerr.Corrupt, "%w", err)
		}
	}
	var all []run
	for i, mp := range m.segs {
		slices.SortFunc(unused[i], func(a, b run) int { return a.from - b.from })
		at := 0
		for _, u := range append(unused[i], run{nil, len(mp.Bytes()), 0}) {
			// A page that is used in part is used.
			if to := (u.from + shm.PageSize - 1) &^ (shm.PageSize - 1); at < u.from {
				all = append(all, run{mp, at, min(to, len(mp.Bytes()))})
			}
			at = max(at, u.to&^(shm.PageSize-1))
		}
	}
	for _, f := range m.forms {
		for _, mp := range f.segs {
			all = append(all, run{mp, 0, len(mp.Bytes())})
		}
	}
	return all, nil
}

func prefaultError(segment, at, size int, err error) error {
	switch {
	case errors.Is(err, unix.EFAULT), errors.Is(err, unix.EHWPOISON):
		return &region.Fault{Offset: uint64(at), Size: uint64(size)}
	case errors.Is(err, unix.ENOMEM):
		return zcerr.New(zcerr.NoSpace, "no memory to map %d bytes of segment %d in: %w", size, segment, err).WithHint("attach with client.PrefaultNone, or raise the memory limit of this process")
	case errors.Is(err, unix.EINVAL):
		return zcerr.New(zcerr.Unsupported, "this kernel cannot map pages in ahead (MADV_POPULATE_READ, Linux 5.14): %w", err).WithHint("unset %s", EnvPrefault)
	}
	return err
}
