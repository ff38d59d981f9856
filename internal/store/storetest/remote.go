package storetest

import (
	"context"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// Remote is a daemon's store, through the SDK.
type Remote struct{ C *client.Client }

// callTimeout bounds every call: a test that waits longer has found a hang.
const callTimeout = 60 * time.Second

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), callTimeout)
}

// Put is a whole put.
func (r Remote) Put(ref string, replace bool, d *manifest.Draft) (*store.PutResult, error) {
	ctx, cancel := timeout()
	defer cancel()
	done, err := r.C.Put(ctx, ref, d, client.PutOptions{Replace: replace})
	if err != nil {
		return nil, err
	}
	return &store.PutResult{Version: version(done.Version), Existed: done.Existed, Written: done.WrittenBytes, Shared: done.SharedBytes}, nil
}

// Attach takes a lease and maps what it gives.
func (r Remote) Attach(ref string) (*Held, error) {
	return r.AttachAs(ref, store.Ask{Form: derive.Plain})
}

// AttachAs takes a lease on more than the version itself.
func (r Remote) AttachAs(ref string, ask store.Ask) (*Held, error) {
	ctx, cancel := timeout()
	defer cancel()
	opts := []client.AttachOption{client.Form(string(ask.Form))}
	if ask.Tokenizers {
		opts = append(opts, client.Tokenizers())
	}
	m, err := r.C.Attach(ctx, ref, opts...)
	if err != nil {
		return nil, err
	}
	h := &Held{Ref: m.Ref(), Digest: m.Digest(), Tensors: map[string][]byte{}, Sums: map[string]manifest.Digest{}, Release: func() { _ = m.Close() },
		Form: derive.Form(m.Form()), Derived: map[string][]byte{}}
	if _, _, _, err := m.Table().Manifest(); err != nil { // also checks the digest
		h.Release()
		return nil, err
	}
	for i := range m.Table().Tensors() {
		v, row, err := m.Tensor(i)
		if err == nil {
			var names []string
			if names, err = m.Table().TensorNames(i); err == nil {
				h.Tensors[names[0]], h.Sums[names[0]] = v.Data, row.SHA256
				if v.Packed != nil {
					h.Derived[names[0]] = v.Packed.Data
				}
			}
		}
		if err != nil {
			h.Release()
			return nil, err
		}
	}
	for _, n := range m.Table().Root().Children() {
		b, err := m.TokenizerTables(n)
		if err != nil {
			h.Release()
			return nil, err
		}
		if b != nil {
			h.Derived[n.Key()] = b
		}
	}
	for _, sg := range m.FormSegments() {
		h.Inodes = append(h.Inodes, sg.Inode)
	}
	return h, nil
}

// List gives versions.
func (r Remote) List(name string, all bool) ([]store.VersionInfo, error) {
	ctx, cancel := timeout()
	defer cancel()
	l, err := r.C.List(ctx, name, all)
	var out []store.VersionInfo
	for _, v := range l {
		out = append(out, version(v))
	}
	return out, err
}

// Show gives one version.
func (r Remote) Show(ref string) (store.VersionInfo, error) {
	ctx, cancel := timeout()
	defer cancel()
	v, err := r.C.Show(ctx, ref)
	if err != nil {
		return store.VersionInfo{}, err
	}
	return version(v), nil
}

// Tag points a tag.
func (r Remote) Tag(source, target string, replace bool) (digest, previous manifest.Digest, err error) {
	return r.TagAs(source, target, replace, "")
}

// TagAs points a tag and sets its form.
func (r Remote) TagAs(source, target string, replace bool, form derive.Form) (digest, previous manifest.Digest, err error) {
	ctx, cancel := timeout()
	defer cancel()
	rep, err := r.C.TagAs(ctx, source, target, replace, string(form))
	if err != nil {
		return digest, previous, err
	}
	return client.Digest(rep.Digest), client.Digest(rep.Previous), nil
}

// Remove takes tags away.
func (r Remote) Remove(ref string, all bool) (store.Removed, error) {
	ctx, cancel := timeout()
	defer cancel()
	rep, err := r.C.Remove(ctx, ref, all)
	if err != nil {
		return store.Removed{}, err
	}
	out := store.Removed{Untagged: rep.Untagged, Freed: rep.FreedBytes, Held: rep.HeldBytes, Pinned: rep.PinnedBytes}
	for _, d := range rep.Removed {
		out.Versions = append(out.Versions, client.Digest(d))
	}
	return out, nil
}

// Holders gives the leases.
func (r Remote) Holders(name string) ([]store.LeaseInfo, error) {
	ctx, cancel := timeout()
	defer cancel()
	hs, err := r.C.Holders(ctx, name)
	var out []store.LeaseInfo
	for _, h := range hs {
		out = append(out, store.LeaseInfo{Deleted: h.Deleted, Lease: store.Lease{
			Form: derive.Form(h.Form), ID: h.Lease, Ref: h.Ref, Digest: client.Digest(h.Digest), Since: time.UnixMilli(h.SinceUnixMs),
			Holder: store.Holder{PID: h.Pid, UID: h.Uid, Command: h.Command},
		}})
	}
	return out, err
}

// Verify reads and compares.
func (r Remote) Verify(ref string) (*store.Verified, error) {
	ctx, cancel := timeout()
	defer cancel()
	v, err := r.C.Verify(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &store.Verified{Ref: v.Ref, Digest: client.Digest(v.Digest), Tensors: int(v.Tensors), Bytes: v.Bytes, Damaged: v.Damaged, Forms: v.DamagedForms}, nil
}

// Status reads the totals.
func (r Remote) Status() (store.Status, error) {
	ctx, cancel := timeout()
	defer cancel()
	s, err := r.C.Status(ctx)
	if err != nil {
		return store.Status{}, err
	}
	var forms []store.FormStatus
	for _, f := range s.Forms {
		forms = append(forms, store.FormStatus{Form: derive.Form(f.Form), Versions: int(f.Versions), Bytes: f.Bytes})
	}
	return store.Status{
		Forms:    forms,
		Instance: s.Instance, Backing: s.Backing, Directory: s.Directory, Adopted: int(s.AdoptedVersions), Capacity: s.CapacityBytes, Free: s.FreeBytes,
		Totals: store.Totals{
			Used: s.UsedBytes, Overhead: s.OverheadBytes, Held: s.HeldAfterDeleteBytes, Reserved: s.ReservedBytes,
			Orphaned: s.OrphanedBytes, OwnMount: s.OwnMount,
		},
		Models: int(s.Models), Versions: int(s.Versions), Damaged: int(s.DamagedVersions), Cold: int(s.ColdVersions),
		Segments: int(s.Segments), Leases: int(s.Leases), OpenPuts: int(s.OpenPuts), BudgetBytes: s.BudgetBytes,
	}, nil
}

func version(v *zcstorev1.VersionInfo) store.VersionInfo {
	out := store.VersionInfo{
		Name: v.Name, Tags: v.Tags, Digest: client.Digest(v.Digest), Kind: v.Kind, Tensors: int(v.Tensors), TensorBytes: v.TensorBytes,
		TableBytes: v.TableBytes, Holders: int(v.Holders), Created: time.UnixMilli(v.CreatedUnixMs), Deleted: v.Deleted, Damaged: v.Damaged,
	}
	for _, s := range v.Segments {
		out.Segments = append(out.Segments, store.SegmentInfo{ID: s.Id, SizeBytes: s.SizeBytes, UsedBytes: s.UsedBytes, Inode: s.Inode, Versions: int(s.Versions)})
	}
	for _, f := range v.Forms {
		info := store.FormInfo{Form: derive.Form(f.Form), Bytes: f.Bytes, TableBytes: f.TableBytes, Holders: int(f.Holders)}
		for _, s := range f.Segments {
			info.Segments = append(info.Segments, store.SegmentInfo{ID: s.Id, SizeBytes: s.SizeBytes, UsedBytes: s.UsedBytes, Inode: s.Inode, Versions: int(s.Versions)})
		}
		out.Forms = append(out.Forms, info)
	}
	for tag, f := range v.TagForms {
		if out.TagForms == nil {
			out.TagForms = map[string]derive.Form{}
		}
		out.TagForms[tag] = derive.Form(f)
	}
	return out
}
