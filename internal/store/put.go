package store

import (
	"slices"
	"sync"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// Put is one version on its way in. Begin plans it, Fill takes the bytes, Commit publishes; Abort at any point leaves
// nothing. It belongs to one goroutine, but for Abort.
type Put struct {
	s       *Store
	ref     ref.Ref
	replace bool
	tagForm derive.Form
	kept    *Put // see PutSpec
	owner   owner
	man     *manifest.Manifest
	digest  manifest.Digest

	existed bool  // nothing to send: the digest is stored
	pending []int // rows whose digest is not known before their bytes are here
	wanted  []int
	segs    []*segment       // reused ones; pinned until the end
	locs    []table.Location // segment index: into segs, or len(segs) for the new one
	lay     *layout          // nil when nothing is wanted
	w       *shm.Writer      // nil when nothing is wanted
	filled  []bool           // row -> its bytes are in the segment
	crc     []uint32         // row -> its CRC32C
	missing int              // wanted rows that are not filled
	settled bool
	inside  bool     // of the store itself: a compaction, which no client has open
	form    *formKey // what is made is this form; nil: a version

	wantedBytes, sharedBytes uint64
	reserved                 uint64 // of the budget, until the end
	filling                  uint64 // blocks of the new segment while it has no name
	end                      sync.Once
}

// PutResult is what a put did.
type PutResult struct {
	Version VersionInfo
	Existed bool   // the digest was stored already
	Written uint64 // bytes the kernel allocated for it
	Shared  uint64 // bytes of tensors that other versions had stored
}

// PutSpec is what a put begins with.
type PutSpec struct {
	Ref      string
	Replace  bool        // let an explicit tag move to other bytes
	Form     derive.Form // default of the tags that it sets; empty: as they have it
	Manifest []byte      // canonical
	Pending  []int       // rows that have zeros for a digest, ascending: theirs is the digest of what arrives
	Owner    uint32      // uid that the memory counts for
	Kept     *Put        // a put that Settle refused, whose bytes FillKept takes; it does not count against MaxPuts
}

// BeginPut is Begin with a complete manifest.
func (s *Store) BeginPut(target string, replace bool, encoded []byte) (*Put, error) {
	return s.Begin(PutSpec{Ref: target, Replace: replace, Manifest: encoded})
}

// Begin checks a reference and a manifest, and reserves the memory for what is missing. Errors: Invalid, Conflict (an
// explicit tag points at other bytes), NoSpace, Limit.
func (s *Store) Begin(spec PutSpec) (_ *Put, err error) {
	defer explainInto(&err)
	awake, err := s.wake(spec)
	if err != nil {
		return nil, err
	}
	defer awake()
	p, err := s.Plan(spec)
	if err != nil {
		return nil, err
	}
	if err := p.reserveOrEvict(); err != nil {
		p.Abort()
		return nil, err
	}
	return p, nil
}

// Plan is Begin without its last step: nothing is allocated, and the put can only be asked and aborted.
func (s *Store) Plan(spec PutSpec) (*Put, error) {
	p, err := s.newPut(spec)
	if err != nil {
		return nil, err
	}
	if err := p.plan(); err != nil {
		return nil, err
	}
	if err = p.admitDisk(spec.Manifest); err == nil {
		err = p.layOut()
	}
	if err != nil {
		p.Abort()
		return nil, err
	}
	return p, nil
}

func (s *Store) newPut(spec PutSpec) (*Put, error) {
	r, err := ref.Parse(spec.Ref)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	if r.Digest != nil {
		return nil, zcerr.New(zcerr.Invalid, "reference %s: a put cannot choose its digest", spec.Ref).WithHint("leave the @sha256:... away")
	}
	if spec.Form != "" {
		if _, err := derive.Parse(string(spec.Form)); err != nil {
			return nil, err
		}
	}
	man, digest, err := manifest.Decode(spec.Manifest)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	p := &Put{s: s, ref: r, replace: spec.Replace, tagForm: spec.Form, kept: spec.Kept, owner: owner{spec.Owner, true}, man: man, digest: digest, pending: spec.Pending}
	for k, row := range p.pending {
		if row < 0 || row >= len(man.Tensors) || (k > 0 && p.pending[k-1] >= row) || man.Tensors[row].SHA256 != (manifest.Digest{}) {
			return nil, zcerr.New(zcerr.Invalid, "pending row %d of %d is not there, not in order, or has a digest", row, len(man.Tensors))
		}
	}
	return p, nil
}

// layOut places the wanted rows in a new segment.
func (p *Put) layOut() error {
	if len(p.wanted) == 0 {
		return nil
	}
	lay, err := layOut(p.man, p.wanted, p.hint())
	if err != nil {
		return zcerr.New(zcerr.Invalid, "%w", err)
	}
	p.lay, p.missing = lay, len(p.wanted)
	p.filled, p.crc = make([]bool, len(p.man.Tensors)), make([]uint32, len(p.man.Tensors))
	for _, row := range p.wanted {
		p.locs[row] = table.Location{Segment: len(p.segs), Offset: uint64(lay.offset[row])}
	}
	return nil
}

// hint is what the version is to be called, should the catalog be lost.
func (p *Put) hint() string {
	if !p.inside {
		if p.ref.Tag == "" {
			return p.ref.Name
		}
		return p.ref.Name + ":" + p.ref.Tag
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	var names []string
	for _, m := range p.s.models {
		for _, tag := range m.tagsOf(p.digest) {
			names = append(names, m.name+":"+tag)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}

// reserve allocates every page of the new segment. Large ones take a while, so no lock is held.
func (p *Put) reserve() error {
	if p.lay == nil {
		return nil
	}
	allocated, err := p.admit(uint64(p.lay.size))
	if err != nil {
		return err
	}
	defer allocated()
	if p.w, err = p.s.dir.Create(p.lay.size); err != nil {
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		return p.s.explainLocked(err)
	}
	return p.countFilling()
}

// Existed reports that the version is stored already, so that Commit only names it.
func (p *Put) Existed() bool { return p.existed }

// Owner is PutSpec.Owner.
func (p *Put) Owner() uint32 { return p.owner.uid }

// Digest is the version's digest; with pending rows, only after Settle.
func (p *Put) Digest() manifest.Digest { return p.digest }

// Wanted lists the rows whose bytes Fill expects, in order.
func (p *Put) Wanted() []int { return p.wanted }

// WantedBytes is how many bytes Fill reads; SharedBytes is what other versions have.
func (p *Put) WantedBytes() uint64 { return p.wantedBytes }

// SharedBytes is the size of the tensors that are taken from other versions.
func (p *Put) SharedBytes() uint64 { return p.sharedBytes }

// Need is what the new segment takes, in bytes.
func (p *Put) Need() uint64 {
	if p.lay == nil {
		return 0
	}
	return uint64(p.lay.size)
}

// Rows is the number of tensor rows.
func (p *Put) Rows() int { return len(p.man.Tensors) }

// Commit publishes the version and names it. Afterwards it is there whole, whatever happens to the daemon.
// Errors: as Begin; Invalid when bytes are missing; Conflict when Settle wants the put again.
func (p *Put) Commit() (_ *PutResult, err error) {
	defer explainInto(&err)
	defer p.Abort()
	again, err := p.Settle()
	if err != nil {
		return nil, err
	}
	if again != nil {
		return nil, zcerr.New(zcerr.Conflict, "a tensor that came without a digest is stored already").WithHint("put it again with the digests")
	}
	fresh, encoded, err := p.publishSegment()
	if err != nil {
		return nil, err
	}
	failpoint.Reached("put.segment-published")
	s := p.s
	staged, err := p.persist(fresh)
	if err != nil {
		p.dropFresh(fresh)
		return nil, err
	}
	if staged != nil {
		defer staged.Release()
		failpoint.Reached("put.staged")
	}
	s.lockNames()
	defer s.unlockNames()
	defer s.tidyLocked()
	v := s.versions[p.digest]
	res := &PutResult{Existed: v != nil, Shared: p.sharedBytes}
	switch {
	case v == nil && p.existed:
		return nil, zcerr.New(zcerr.Conflict, "the stored version was removed during the put").WithHint("put it again")
	case v == nil:
		if v, err = p.publishTableLocked(fresh, encoded); err != nil {
			break
		}
		res.Written = v.tableUse.Blocks
		if fresh != nil {
			res.Written += fresh.use.Blocks
		}
		failpoint.Reached("put.table-published")
		v.created = now()
		s.addVersionLocked(v)
		s.settleLocked(staged)
		if err = s.nameLocked(p.ref, p.digest, p.replace, p.tagForm); err != nil && !s.namedLocked(p.digest) {
			s.forgetVersionLocked(v)
		}
	default: // stored already, perhaps by a put that was faster
		s.settleLocked(staged)
		err = s.nameLocked(p.ref, p.digest, p.replace, p.tagForm)
	}
	s.unsettleLocked(p.digest)
	if fresh != nil {
		s.unlinkIfUnusedLocked(fresh)
	}
	if err != nil {
		return nil, err
	}
	res.Version = s.infoLocked(s.modelLocked(p.ref.Name), v)
	failpoint.Reached("put.committed")
	return res, nil
}

// publishSegment gives the new segment its name and encodes the version's table. The segment is nil when none was needed.
func (p *Put) publishSegment() (*segment, []byte, error) {
	if p.existed {
		return nil, nil, nil
	}
	var list []table.Segment
	for _, sg := range p.segs {
		list = append(list, table.Segment{ID: sg.id, Bytes: sg.use.Size})
	}
	var fresh *segment
	if p.lay != nil {
		id := randomID()
		if err := p.name(segmentPrefix + id); err != nil {
			return nil, nil, err
		}
		sg, err := p.s.openSegment(id)
		if err != nil {
			p.s.discard(segmentPrefix + id)
			return nil, nil, err
		}
		fresh = sg
		list = append(list, table.Segment{ID: sg.id, Bytes: sg.use.Size})
	}
	b, err := table.Encode(p.man, p.digest, list, p.locs)
	if err != nil && fresh != nil {
		p.s.discard(fresh.file())
	}
	return fresh, b, err
}

// dropFresh removes a segment that no version came to use.
func (p *Put) dropFresh(fresh *segment) {
	if fresh == nil {
		return
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.unlinkIfUnusedLocked(fresh)
}

// publishTableLocked makes the version's own file, in place of a damaged one if there is.
func (p *Put) publishTableLocked(fresh *segment, encoded []byte) (*version, error) {
	if err := p.quotaLocked(uint64(len(encoded))); err != nil {
		return nil, err
	}
	w, err := p.s.dir.Create(int64(len(encoded)))
	if err != nil {
		return nil, p.s.explainLocked(err)
	}
	defer w.Abort()
	name := p.file()
	if _, err := w.WriteAt(encoded, 0); err != nil {
		return nil, err
	}
	use, err := w.Usage() // before it has its name: nothing fails after that, for the table it replaces is gone
	if err != nil {
		return nil, err
	}
	if err := w.Replace(name); err != nil {
		return nil, err
	}
	segs := append([]*segment(nil), p.segs...)
	if fresh != nil {
		segs = append(segs, fresh)
	}
	v := newVersion(p.man, p.digest, name, use, segs, p.locs)
	p.ownLocked(fresh)
	return v, nil
}

// file is where the table of what is put goes.
func (p *Put) file() string {
	if p.form != nil {
		return formFile(p.digest)
	}
	return tableFile(p.digest)
}

// Abort gives everything back that the put reserved. After Commit it does nothing.
func (p *Put) Abort() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.abortLocked()
}

func (p *Put) abortLocked() {
	p.end.Do(func() {
		if !p.inside {
			p.s.openPuts--
		}
		if p.existed {
			p.s.unwantLocked(p.digest)
		}
		p.s.reserved -= p.reserved
		p.countLocked(-int64(p.reserved))
		p.s.filling -= p.filling
		p.s.unpinLocked(p.segs...)
		if p.w != nil {
			p.w.Abort()
		}
	})
}
