package store

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// VersionInfo is a version as `zcctl ls` and `zcctl show` have it.
type VersionInfo struct {
	Name        string
	Tags        []string
	Digest      manifest.Digest
	Kind        string // what the root of the tree is
	Tensors     int
	TensorBytes uint64
	TableBytes  uint64
	Segments    []SegmentInfo
	Holders     int
	Created     time.Time
	Deleted     bool
	Resident    bool                   // in memory now
	OnDisk      bool                   // in the data directory
	Pinned      bool                   // kept in memory
	Damaged     string                 // why it is not served; empty otherwise
	Forms       []FormInfo             // made of it and in memory, by name
	TagForms    map[string]derive.Form // default form of its tags, where that is not plain
}

// FormInfo is a form of a version in memory.
type FormInfo struct {
	Form       derive.Form
	Bytes      uint64 // of what was made, as the version uses it
	TableBytes uint64
	Segments   []SegmentInfo
	Holders    int
}

// SegmentInfo is one file of a version.
type SegmentInfo struct {
	ID        string
	SizeBytes uint64
	UsedBytes uint64 // of these, by this version
	Inode     uint64
	Versions  int // tagged versions that use it
	Guards    shm.Guarantee
	HugeBytes uint64 // of its memory in pages of 2 MiB, as measured
	Guarantee string // Guards in words
}

// infoLocked is what there is to say of a version in memory, under the names that m gives it.
func (s *Store) infoLocked(m *model, v *version) VersionInfo {
	info := VersionInfo{
		Name: m.name, Tags: m.tagsOf(v.digest), Digest: v.digest, Kind: v.kind, Tensors: v.tensors, TensorBytes: v.bytes,
		TableBytes: v.tableUse.Size, Holders: s.holdersLocked(v), Deleted: s.goneLocked(v), Created: v.created,
		Resident: true, OnDisk: s.disk[v.digest] != nil && s.disk[v.digest].v != nil, Pinned: s.pinnedLocked(v.digest),
	}
	if c, ok := m.created[v.digest]; ok {
		info.Created = c
	}
	info.Segments = s.segmentInfos(v)
	for _, f := range s.formsOfLocked(v.digest) {
		info.Forms = append(info.Forms, FormInfo{Form: f.key.form, Bytes: f.bytes, TableBytes: f.tableUse.Size, Segments: s.segmentInfos(f.version), Holders: f.leases})
	}
	info.TagForms = m.tagForms(info.Tags)
	return info
}

func (s *Store) segmentInfos(v *version) (out []SegmentInfo) {
	guards := s.dir.Guarantee()
	for i, sg := range v.segs {
		out = append(out, SegmentInfo{
			ID: sg.id[:12], SizeBytes: sg.use.Size, UsedBytes: v.used[i], Inode: sg.use.Inode, Versions: sg.refs,
			Guards: guards, HugeBytes: sg.huge, Guarantee: guardWords(guards, os.Geteuid()),
		})
	}
	return out
}

func (m *model) tagForms(tags []string) map[string]derive.Form {
	out := map[string]derive.Form{}
	for _, tag := range tags {
		if f, ok := m.forms[tag]; ok {
			out[tag] = f
		}
	}
	return out
}

// goneLocked tells that no tag names a version any more. One that was compacted is deleted only where it was.
func (s *Store) goneLocked(v *version) bool { return v.deleted && s.versions[v.digest] == nil }

// holdersLocked counts the leases on a version, wherever the holders have it mapped.
func (s *Store) holdersLocked(v *version) int {
	n := v.leases
	for old := range s.held {
		if old != v && old.digest == v.digest {
			n += old.leases
		}
	}
	return n
}

// anyInfoLocked is what there is to say of a version under a name, in memory or not.
func (s *Store) anyInfoLocked(name string, d manifest.Digest) VersionInfo {
	m := s.modelLocked(name)
	if v := s.versions[d]; v != nil {
		return s.infoLocked(m, v)
	}
	return s.coldInfoLocked(m, d, s.disk[d])
}

// modelLocked is the model of a name, an empty one where there is none.
func (s *Store) modelLocked(name string) *model {
	if m := s.models[name]; m != nil {
		return m
	}
	return newModel(name)
}

// coldInfoLocked is what there is to say of a version that is only on disk, or nowhere.
func (s *Store) coldInfoLocked(m *model, d manifest.Digest, e *onDisk) VersionInfo {
	info := VersionInfo{Name: m.name, Tags: m.tagsOf(d), Digest: d, Created: m.created[d], OnDisk: e != nil, Pinned: s.pinnedLocked(d)}
	if e != nil && e.v != nil {
		info.Kind, info.Tensors, info.TensorBytes = e.v.Kind, e.v.Tensors, e.v.Bytes
	}
	info.TagForms = m.tagForms(info.Tags)
	return info
}

// Show gives one version.
func (s *Store) Show(target string) (VersionInfo, error) {
	r, err := ref.Parse(target)
	if err != nil {
		return VersionInfo{}, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _, err = s.resolveLocked(r)
	if err != nil && !errors.As(err, new(*coldError)) {
		return VersionInfo{}, err
	}
	d, _, err := s.findLocked(r)
	if err != nil {
		return VersionInfo{}, err
	}
	return s.anyInfoLocked(r.Name, d), nil
}

// Tag is TagAs that leaves the tag's default form as it is.
func (s *Store) Tag(source, target string, replace bool) (digest, previous manifest.Digest, err error) {
	return s.TagAs(source, target, replace, "")
}

// TagAs points a tag at a stored version, of the same model or another: a name is only a name. previous is what it pointed at,
// zero when it is new. form becomes the default of who attaches by the tag; empty leaves that as it is, plain for a new tag.
// Errors: Invalid, NotFound, Conflict without replace.
func (s *Store) TagAs(source, target string, replace bool, form derive.Form) (digest, previous manifest.Digest, err error) {
	defer explainInto(&err)
	if form != "" {
		if _, err := derive.Parse(string(form)); err != nil {
			return digest, previous, err
		}
	}
	src, err := ref.Parse(source)
	if err != nil {
		return digest, previous, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	dst, err := ref.Parse(target)
	if err != nil {
		return digest, previous, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	if dst.Tag == "" || dst.Digest != nil {
		return digest, previous, zcerr.New(zcerr.Invalid, "%s is no tag", target).WithHint("write NAME:TAG, as in zcctl tag %s %s:prod", source, dst.Name)
	}
	s.lockNames()
	defer s.unlockNames()
	if _, _, err := s.resolveLocked(src); err != nil && !errors.As(err, new(*coldError)) {
		return digest, previous, err
	}
	if digest, _, err = s.findLocked(src); err != nil {
		return digest, previous, err
	}
	if m := s.models[dst.Name]; m != nil {
		previous = m.tags[dst.Tag]
	}
	return digest, previous, s.nameLocked(dst, digest, replace, form)
}

// Removed is what Remove did.
type Removed struct {
	Untagged []string          // name:tag
	Versions []manifest.Digest // that no tag names any more
	Freed    uint64            // bytes given back to the kernel at once
	Held     uint64            // freed when the last lease goes
	Pinned   uint64            // of segments that another version still uses
}

// Remove takes tags away: name:tag that tag, name@digest every tag of that version, a bare name all of the model, which must
// then have one version unless all. Errors: Invalid, NotFound, Conflict.
func (s *Store) Remove(target string, all bool) (_ Removed, err error) {
	defer explainInto(&err)
	r, err := ref.Parse(target)
	if err != nil {
		return Removed{}, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	s.lockNames()
	defer s.unlockNames()
	m := s.models[r.Name]
	if m == nil {
		return Removed{}, s.noModelLocked(r.Name)
	}
	var tags []string
	switch {
	case r.Bare():
		if len(m.created) > 1 && !all {
			return Removed{}, zcerr.New(zcerr.Invalid, "%s has %d versions", r.Name, len(m.created)).
				WithHint("name one (zcctl rm %s:TAG), or remove them all: zcctl rm --all %s", r.Name, r.Name)
		}
		for tag := range m.tags {
			tags = append(tags, tag)
		}
	case r.Tag != "":
		d, ok := m.tags[r.Tag]
		if !ok {
			_, _, err := s.resolveLocked(r)
			return Removed{}, err
		}
		if r.Digest != nil && *r.Digest != d {
			return Removed{}, zcerr.New(zcerr.Conflict, "%s:%s is %s, not %s", r.Name, r.Tag, d, r.Digest).WithHint("the tag has moved; nothing was removed")
		}
		tags = []string{r.Tag}
	default:
		if tags = m.tagsOf(*r.Digest); len(tags) == 0 {
			return Removed{}, zcerr.New(zcerr.NotFound, "%s has no version %s", r.Name, r.Digest.Short()).WithHint("zcctl ls %s", r.Name)
		}
	}
	return s.untagLocked(m, tags)
}

func (s *Store) untagLocked(m *model, tags []string) (Removed, error) {
	defer s.tidyLocked()
	m = m.clone()
	var out Removed
	slices.SortFunc(tags, compareTags)
	for _, tag := range tags {
		delete(m.tags, tag)
		out.Untagged = append(out.Untagged, m.name+":"+tag)
	}
	gone := m.pruneCreated()
	if err := s.replaceModelLocked(m); err != nil {
		return Removed{}, err
	}
	failpoint.Reached("remove.unnamed")
	for _, d := range gone {
		if s.versions[d] == nil && !s.namedLocked(d) { // it was damaged, or only on disk: there is nothing to count
			out.Versions = append(out.Versions, d)
		}
	}
	counted := map[*segment]bool{}
	for _, v := range s.releaseUnnamedLocked(gone) {
		out.Versions = append(out.Versions, v.digest)
		for _, v := range append(v.dropped, v) {
			s.accountLocked(v, counted, &out)
		}
	}
	return out, nil
}

// accountLocked says what became of the bytes of a dropped version, each segment once.
func (s *Store) accountLocked(v *version, counted map[*segment]bool, out *Removed) {
	add := func(use shm.Usage) {
		if v.leases > 0 {
			out.Held += use.Blocks
		} else {
			out.Freed += use.Blocks
		}
	}
	add(v.tableUse)
	for _, sg := range v.segs {
		if counted[sg] {
			continue
		}
		counted[sg] = true
		switch {
		case sg.refs > 0 || sg.pins > 0:
			out.Pinned += sg.use.Blocks
		case s.heldByOthersLocked(sg, v):
			out.Held += sg.use.Blocks
		default:
			add(sg.use)
		}
	}
}

func (s *Store) heldByOthersLocked(sg *segment, but *version) bool {
	for v := range s.held {
		if v != but && slices.Contains(v.segs, sg) {
			return true
		}
	}
	return false
}

// Status is what the store is and holds.
type Status struct {
	Instance  string
	Directory string
	Started   time.Time
	Adopted   int
	Capacity  uint64 // bytes of the file system
	Free      uint64
	Totals
	Models      int
	Versions    int
	Damaged     int
	Segments    int
	Leases      int
	OpenPuts    int
	Backing     string // shm.KindShm or shm.KindMemfd
	Guards      shm.Guarantee
	HugeBytes   uint64 // of all stored segments in pages of 2 MiB
	Guarantee   string // Guards in words
	Durability  string
	BudgetBytes uint64
	Data        DataStatus
	Cold        int          // versions that are only on disk
	Unwritten   int          // versions that are in memory only, although there is a data directory
	Forms       []FormStatus // what was made of versions and is in memory, by name
}

// FormStatus is all that is in memory of one form.
type FormStatus struct {
	Form     derive.Form
	Versions int    // that have it
	Bytes    uint64 // blocks of its segments and tables, each once
}

// formStatusLocked counts each segment once, whichever versions use it.
func (s *Store) formStatusLocked() (out []FormStatus) {
	by := map[derive.Form]*FormStatus{}
	seen := map[*segment]bool{}
	for k, f := range s.forms {
		st := by[k.form]
		if st == nil {
			st = &FormStatus{Form: k.form}
			by[k.form] = st
		}
		st.Versions++
		st.Bytes += f.tableUse.Blocks
		for _, sg := range f.segs {
			if !seen[sg] {
				seen[sg] = true
				st.Bytes += sg.use.Blocks
			}
		}
	}
	for _, st := range by {
		out = append(out, *st)
	}
	slices.SortFunc(out, func(a, b FormStatus) int { return strings.Compare(string(a.Form), string(b.Form)) })
	return out
}

// Status reads the totals.
func (s *Store) Status() (_ Status, err error) {
	defer explainInto(&err)
	data, err := s.dataStatus() // before the lock: it asks the disk
	if err != nil {
		return Status{}, err
	}
	durability := s.Durability()
	s.mu.Lock()
	defer s.mu.Unlock()
	space, err := s.dir.Space() // under the lock, so that the kernel's numbers and ours are of one moment
	if err != nil {
		return Status{}, err
	}
	guards := s.dir.Guarantee()
	return Status{
		Instance: s.instance, Directory: s.dir.Path(), Started: s.started, Adopted: s.adopted,
		Capacity: space.Size, Free: space.Free, Totals: s.totalsLocked(space),
		Models: len(s.models), Versions: len(s.versions) + s.countColdLocked(), Damaged: len(s.lost), Segments: len(s.segments),
		Leases: len(s.leases), OpenPuts: s.openPuts, Durability: durability, Data: data, Cold: s.countColdLocked(), Unwritten: s.countUnwrittenLocked(),
		Backing: s.dir.Kind(), Guards: guards, HugeBytes: s.hugeBytesLocked(), Guarantee: guardWords(guards, os.Geteuid()), BudgetBytes: s.opt.MaxBytes,
		Forms: s.formStatusLocked(),
	}, nil
}

func (s *Store) usedBytesLocked() uint64 {
	n := uint64(0)
	for _, sg := range s.segments {
		n += sg.use.Blocks
	}
	for _, v := range s.versions {
		n += v.tableUse.Blocks
	}
	for _, f := range s.forms {
		n += f.tableUse.Blocks
	}
	return n
}

// heldBytesLocked is what deleted versions keep from the kernel: each segment once, and none that a stored version uses.
func (s *Store) heldBytesLocked() uint64 {
	n := uint64(0)
	seen := map[*segment]bool{}
	for v := range s.held {
		n += v.tableUse.Blocks
		for _, sg := range v.segs {
			if !seen[sg] && s.segments[sg.id] != sg {
				seen[sg] = true
				n += sg.use.Blocks
			}
		}
	}
	return n
}
