package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/oci"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// With a data directory every version is also on disk (internal/oci), the index there is the truth about names, and memory is
// a cache over it: a version is resident, or only on disk until somebody attaches.
//
// A change of names is made on the disk first, then here, then in the catalog. The order of a put is: segment in memory, blobs
// on disk, table in memory, index on disk, catalog, answer. Whatever the moment of a crash, the next start takes the names
// from the index: it has the version whole, or knows nothing of it.

// onDisk is what the disk has of a version. Fields are guarded by Store.mu.
type onDisk struct {
	v    *oci.Version
	used uint64 // when it was last put, loaded or attached; by Store.clock
}

// openData opens the data directory. It returns nil when the store is memory only.
func openData(opt Options) (*oci.Layout, error) {
	if opt.Data == "" {
		return nil, nil
	}
	data, err := oci.Open(opt.Data, oci.Options{Log: opt.Log})
	return data, dataInUse(err)
}

// dataInUse turns the layout's word for a directory that another process has into the store's.
func dataInUse(err error) error {
	var locked *oci.LockedError
	if errors.As(err, &locked) {
		return &LockedError{Dir: locked.Dir, Holder: locked.Holder, Data: true}
	}
	return err
}

// lockNames is for who changes names. mu may be let go and taken again while names is held.
func (s *Store) lockNames() {
	s.names.Lock()
	s.mu.Lock()
}

func (s *Store) unlockNames() {
	s.mu.Unlock()
	s.names.Unlock()
}

// replaceModelLocked makes next the state of its model: on disk first, then here and in the catalog. names must be held. mu is
// let go while the disk syncs, so that attaches go on; nobody sees the change before it is durable. On error nothing has changed.
func (s *Store) replaceModelLocked(next *model) error {
	if s.data != nil {
		entries := s.entriesLocked(next)
		s.mu.Unlock()
		err := s.data.Replace(entries)
		s.mu.Lock()
		if err != nil {
			return explainDisk(err)
		}
		failpoint.Reached("names.indexed")
	}
	old := s.models[next.name]
	s.models[next.name] = next
	if len(next.tags) == 0 {
		delete(s.models, next.name)
	}
	err := s.writeCatalogLocked()
	if err == nil {
		return nil
	}
	if s.data != nil { // the index has it, and the next start reads the index
		s.log.Warn("the catalog in memory is behind the index on disk", zap.Error(err))
		return nil
	}
	delete(s.models, next.name)
	if old != nil {
		s.models[next.name] = old
	}
	return err
}

// entriesLocked is what the index is to say, with next in place of its model. Versions that are in memory only, until they
// are written, are left out.
func (s *Store) entriesLocked(next *model) []oci.Entry {
	var out []oci.Entry
	add := func(m *model) {
		for tag, d := range m.tags {
			if s.disk[d] == nil {
				continue
			}
			e := oci.Entry{Name: m.name, Tag: tag, Version: d, Created: m.created[d], Next: m.next, Pinned: m.pinned[d], Form: string(m.forms[tag])}
			if o := s.ownerLocked(tableFile(d)); o.known {
				e.Owner = &o.uid
			}
			out = append(out, e)
		}
	}
	for name, m := range s.models {
		if next == nil || name != next.name {
			add(m)
		}
	}
	if next != nil {
		add(next)
	}
	return out
}

// stage writes a version to disk from its segments in memory, which the caller keeps there, and makes it durable. Nothing
// names it on disk yet.
func (s *Store) stage(ctx context.Context, m *manifest.Manifest, segs []*segment, locs []table.Location) (*oci.Staged, error) {
	encoded, _, err := m.Encode()
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, len(segs))
	defer func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}()
	for i, sg := range segs {
		if files[i], err = s.dir.Open(sg.file()); err != nil {
			return nil, err
		}
	}
	staged, err := s.data.Stage(ctx, m, encoded, func(row int) (io.Reader, error) {
		return io.NewSectionReader(files[locs[row].Segment], int64(locs[row].Offset), int64(m.Tensors[row].Bytes())), nil
	})
	return staged, explainDisk(err)
}

// explainDisk is explain for what the data directory's file system answered.
func explainDisk(err error) error {
	if err == nil || zcerr.KindOf(err) != zcerr.Other || zcerr.HintOf(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return err
	}
	return zcerr.New(zcerr.Other, "the data directory: %w", err).
		WithHint("nothing was changed; the daemon's log and the kernel's (dmesg) may say more; see to the disk")
}

// stageResident writes a version that is in memory to disk.
func (s *Store) stageResident(ctx context.Context, d manifest.Digest) (*oci.Staged, error) {
	for {
		staged, v, err := s.stageOnce(ctx, d)
		if err == nil || v == nil {
			return staged, err
		}
		s.mu.Lock()
		moved := s.versions[d] != v
		s.mu.Unlock()
		if !moved { // a compaction that was under way put its files in other places
			return nil, err
		}
	}
}

func (s *Store) stageOnce(ctx context.Context, d manifest.Digest) (*oci.Staged, *version, error) {
	v, release := s.pinVersion(d)
	if v == nil {
		return nil, nil, zcerr.New(zcerr.Conflict, "version %s was removed meanwhile", d.Short()).WithHint("put it again")
	}
	defer release()
	m, locs, err := s.readTable(v)
	if err != nil {
		return nil, v, err
	}
	staged, err := s.stage(ctx, m, v.segs, locs)
	return staged, v, err
}

// readTable reads back what a version is and where its tensors lie.
func (s *Store) readTable(v *version) (*manifest.Manifest, []table.Location, error) {
	tab, err := s.mapFile(v.file, v.tableUse.Size)
	if err != nil {
		return nil, nil, err
	}
	defer tab.Close()
	failpoint.Reached("table.mapped")
	m, _, locs, err := parseTable(tab.Bytes(), v.digest)
	if err != nil {
		return nil, nil, zcerr.New(zcerr.Corrupt, "table of %s: %w", v.digest.Short(), err)
	}
	return m, locs, nil
}

// admitDisk refuses a put that the disk has no room for, before its bytes are sent.
func (p *Put) admitDisk(encoded []byte) error {
	if p.s.data == nil || p.existed {
		return nil
	}
	if err := p.s.data.ReadOnly(); err != nil {
		return p.s.readOnly(err)
	}
	need := p.s.data.Missing(p.man, encoded)
	free, err := p.s.data.Free()
	if err != nil {
		return err
	}
	if need > free {
		return oci.NoSpace(p.s.data.Path(), need, free)
	}
	return nil
}

func (s *Store) readOnly(why error) error {
	return zcerr.New(zcerr.Other, "the data directory takes no changes until the daemon is restarted: %w", why).
		WithHint("what was acknowledged is safe and is still served; see to the disk under %s, then restart zcstored", s.data.Path())
}

// persist makes a put's version durable, before it gets a name. It gives nil when there is nothing to do.
func (p *Put) persist(fresh *segment) (*oci.Staged, error) {
	s := p.s
	if s.data == nil {
		return nil, nil
	}
	if p.existed {
		s.mu.Lock()
		durable := s.disk[p.digest] != nil
		s.mu.Unlock()
		if durable {
			return nil, nil
		}
		return s.stageResident(context.Background(), p.digest)
	}
	segs := append([]*segment(nil), p.segs...)
	if fresh != nil {
		segs = append(segs, fresh)
	}
	return s.stage(context.Background(), p.man, segs, p.locs)
}

// settleLocked notes that a staged version is on disk.
func (s *Store) settleLocked(staged *oci.Staged) {
	if staged != nil {
		s.disk[staged.Digest] = &onDisk{v: staged.Version}
		s.touchLocked(staged.Digest)
	}
}

// unsettleLocked takes that back for a version that got no name.
func (s *Store) unsettleLocked(d manifest.Digest) {
	if !s.namedLocked(d) {
		delete(s.disk, d)
	}
}

func (s *Store) touchLocked(d manifest.Digest) {
	if e := s.disk[d]; e != nil {
		s.clock++
		e.used = s.clock
	}
}

// coldLocked is what the disk has of a version that is not in memory and not known to be damaged.
func (s *Store) coldLocked(d manifest.Digest) *onDisk {
	if s.versions[d] != nil || s.lost[d] != nil {
		return nil
	}
	return s.disk[d]
}

// coldError says that a version is only on disk: who needs its bytes loads it.
type coldError struct{ digest manifest.Digest }

func (e *coldError) Error() string {
	return fmt.Sprintf("version %s is only on disk", e.digest.Short())
}

// DataStatus is what the durable tier is and holds. The zero value says that there is none.
type DataStatus struct {
	Directory string
	Bytes     uint64 // of all blobs
	Free      uint64 // that may still be written
	ReadOnly  string // why nothing is written any more; empty otherwise
}

func (s *Store) dataStatus() (st DataStatus, err error) {
	if s.data == nil {
		return st, nil
	}
	st.Directory, st.Bytes = s.data.Path(), s.data.Bytes()
	if why := s.data.ReadOnly(); why != nil {
		st.ReadOnly = why.Error()
	}
	st.Free, err = s.data.Free()
	return st, err
}

func (s *Store) countColdLocked() int {
	n := 0
	for d := range s.disk {
		if s.coldLocked(d) != nil {
			n++
		}
	}
	return n
}

func (s *Store) countUnwrittenLocked() int {
	if s.data == nil {
		return 0
	}
	n := 0
	for d := range s.versions {
		if e := s.disk[d]; e == nil || e.v == nil {
			n++
		}
	}
	return n
}

func (s *Store) diskDurability() string {
	if why := s.data.ReadOnly(); why != nil {
		return fmt.Sprintf("read-only: %s failed (%v); what was put before is on disk in %s, nothing new is taken until a restart", "a write to disk", why, s.data.Path())
	}
	if s.data.Volatile() {
		return fmt.Sprintf("every version is also in %s, which is a tmpfs itself: nothing survives a reboot", s.data.Path())
	}
	return fmt.Sprintf("every version is also on disk in %s: what was acknowledged survives a reboot", s.data.Path())
}
