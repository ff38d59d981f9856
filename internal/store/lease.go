package store

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Holder is who has a lease.
type Holder struct {
	PID     int32
	UID     uint32
	Command string
}

// Lease is one client's hold on one version. It lasts until Release, whatever happens to tags meanwhile.
type Lease struct {
	ID         uint64
	Ref        string // name:tag, as resolved
	Digest     manifest.Digest
	Holder     Holder
	Since      time.Time
	TableBytes uint64

	v *version
}

// LeaseInfo is a lease as `zcctl ps` shows it.
type LeaseInfo struct {
	Lease
	Deleted bool // no tag names the version any more
}

// Attach takes a lease on a version and opens its files: the table first, then the segments in the table's order, each
// O_RDONLY with its own file description. A version that is only on disk is loaded first. The caller owns the files. Errors:
// Invalid, NotFound, Corrupt; NoSpace when a version of the disk does not fit into memory.
func (s *Store) Attach(target string, h Holder) (l *Lease, files []*os.File, err error) {
	defer explainInto(&err)
	r, err := ref.Parse(target)
	if err != nil {
		return nil, nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	l, files, err = s.attachResident(r, h)
	var cold *coldError
	for try := 0; errors.As(err, &cold) && try < 3; try++ { // files that go away while we look make more than one
		done := s.want(cold.digest)
		if err = s.loadVersion(cold.digest); err == nil {
			l, files, err = s.attachResident(r, h)
		}
		done()
	}
	return l, files, err
}

// want keeps a version that is on its way from disk from being evicted before it is attached.
func (s *Store) want(d manifest.Digest) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted[d]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unwantLocked(d)
	}
}

func (s *Store) unwantLocked(d manifest.Digest) {
	if s.wanted[d]--; s.wanted[d] == 0 {
		delete(s.wanted, d)
	}
}

// attachResident is Attach for a version in memory. Errors: *coldError when it is only on disk.
func (s *Store) attachResident(r ref.Ref, h Holder) (*Lease, []*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, tag, err := s.resolveLocked(r)
	if err != nil {
		return nil, nil, err
	}
	files, err := s.openFilesLocked(v)
	if err != nil {
		return nil, nil, err
	}
	s.touchLocked(v.digest)
	s.nextID++
	l := &Lease{ID: s.nextID, Ref: r.Name + ":" + tag, Digest: v.digest, Holder: h, Since: time.Now(), TableBytes: v.tableUse.Size, v: v}
	s.leases[l.ID] = l
	v.leases++
	return l, files, nil
}

func (s *Store) openFilesLocked(v *version) ([]*os.File, error) {
	names := []string{tableFile(v.digest)}
	for _, sg := range v.segs {
		names = append(names, sg.file())
	}
	var files []*os.File
	for i, n := range names {
		f, err := s.dir.Open(n)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			if errors.Is(err, os.ErrNotExist) {
				var gone *segment
				if i > 0 {
					gone = v.segs[i-1]
				}
				s.dropGoneLocked(v, gone)
				if s.coldLocked(v.digest) != nil {
					return nil, &coldError{v.digest}
				}
				return nil, zcerr.New(zcerr.Corrupt, "a file of %s was removed behind the daemon's back", v.digest.Short()).
					WithHint("put the model again; keep other programs out of the segment directory (RemoveIPC=no)")
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Release ends a lease, and frees the version when it was deleted and this was its last. Releasing twice does nothing.
func (s *Store) Release(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.leases[id]
	if l == nil {
		return
	}
	delete(s.leases, id)
	l.v.leases--
	if l.v.deleted && l.v.leases == 0 {
		delete(s.held, l.v)
	}
}

// resolveLocked finds the version a reference names, and the tag that it was found by. Errors: *coldError when the version is
// only on disk.
func (s *Store) resolveLocked(r ref.Ref) (*version, string, error) {
	d, tag, err := s.findLocked(r)
	if err != nil {
		return nil, "", err
	}
	if v := s.versions[d]; v != nil {
		return v, tag, nil
	}
	if s.coldLocked(d) != nil {
		return nil, "", &coldError{d}
	}
	e := zcerr.New(zcerr.Corrupt, "%s:%s is damaged and is not served: %w", r.Name, tag, s.lost[d])
	return nil, "", e.WithHint("put the model again, or remove it: zcctl rm %s:%s", r.Name, tag)
}

// findLocked finds the digest a reference names, and the tag that it was found by.
func (s *Store) findLocked(r ref.Ref) (manifest.Digest, string, error) {
	var none manifest.Digest
	m := s.models[r.Name]
	if m == nil {
		return none, "", s.noModelLocked(r.Name)
	}
	tag := r.Tag
	if tag == "" && r.Digest != nil {
		tags := m.tagsOf(*r.Digest)
		if len(tags) == 0 {
			return none, "", zcerr.New(zcerr.NotFound, "%s has no version %s", r.Name, r.Digest.Short()).WithHint("zcctl ls %s", r.Name)
		}
		tag = tags[0]
	}
	if tag == "" {
		tag = ref.Latest
	}
	d, ok := m.tags[tag]
	if !ok {
		var tags []string
		for t := range m.tags {
			tags = append(tags, t)
		}
		slices.SortFunc(tags, compareTags)
		return none, "", zcerr.New(zcerr.NotFound, "%s has no tag %s (it has %s)", r.Name, tag, strings.Join(tags, ", ")).WithHint("zcctl ls %s", r.Name)
	}
	if r.Digest != nil && *r.Digest != d {
		return none, "", zcerr.New(zcerr.Conflict, "%s:%s is %s, not %s", r.Name, tag, d, r.Digest).WithHint("the tag has moved; leave the tag or the digest away")
	}
	return d, tag, nil
}

// noModelLocked says that a name is not stored, and which stored names are near it.
func (s *Store) noModelLocked(name string) error {
	type near struct {
		name string
		dist int
	}
	var close []near
	for n := range s.models {
		if d := distance(name, n); d <= max(2, len(name)/3) || strings.Contains(n, name) {
			close = append(close, near{n, d})
		}
	}
	slices.SortFunc(close, func(a, b near) int { return cmp.Or(cmp.Compare(a.dist, b.dist), strings.Compare(a.name, b.name)) })
	e := zcerr.New(zcerr.NotFound, "no model %s is stored", name)
	if len(close) == 0 {
		return e.WithHint("store it with 'zcctl put %s DIR'; 'zcctl ls' lists what there is", name)
	}
	var names []string
	for _, c := range close[:min(3, len(close))] {
		names = append(names, c.name)
	}
	return e.WithHint("did you mean %s? Otherwise store it: zcctl put %s DIR", strings.Join(names, " or "), name)
}

// distance is the edit distance of two names.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diag+cost)
		}
	}
	return row[len(b)]
}

// releaseUnnamedLocked drops the versions of digests that no tag of any model names.
func (s *Store) releaseUnnamedLocked(digests []manifest.Digest) (dropped []*version) {
	for _, d := range digests {
		if s.namedLocked(d) {
			continue
		}
		if s.lost[d] != nil {
			delete(s.lost, d)
			s.removeLocked(tableFile(d))
		}
		delete(s.disk, d)
		if v := s.versions[d]; v != nil {
			s.forgetVersionLocked(v)
			dropped = append(dropped, v)
		}
	}
	if len(dropped) > 0 {
		s.wakeCompactor()
	}
	return dropped
}

// dropGoneLocked takes versions out of memory whose files are not there any more: v, and every other that uses the segment.
func (s *Store) dropGoneLocked(v *version, gone *segment) {
	why := errors.New("a file of it was removed behind the daemon's back")
	for _, other := range s.versions {
		if other == v || (gone != nil && slices.Contains(other.segs, gone)) {
			s.log.Error("files of a version are gone", zap.Stringer("digest", other.digest))
			s.takeOutLocked(other, why)
		}
	}
}

// takeOutLocked takes a damaged version out of memory. Where the disk has it, the next attach loads it again; otherwise its
// tags stay and say why it is not served.
func (s *Store) takeOutLocked(v *version, why error) {
	s.forgetVersionLocked(v)
	if e := s.disk[v.digest]; e == nil || e.v == nil {
		s.lost[v.digest] = why
	}
}

func (s *Store) namedLocked(d manifest.Digest) bool {
	for _, m := range s.models {
		if _, ok := m.created[d]; ok {
			return true
		}
	}
	return false
}

// forgetVersionLocked takes a version out of the store and unlinks its files. Leases keep what they have mapped: the kernel
// frees those pages when the last mapping goes.
func (s *Store) forgetVersionLocked(v *version) {
	s.removeLocked(tableFile(v.digest))
	s.dropLocked(v)
}

// dropLocked is forgetVersionLocked for a version whose table is gone already, or another's now.
func (s *Store) dropLocked(v *version) {
	if s.versions[v.digest] == v {
		delete(s.versions, v.digest)
	}
	v.deleted = true
	if v.leases > 0 {
		s.held[v] = struct{}{}
	}
	for _, r := range v.rows {
		if s.content[r.sum] == r.place {
			delete(s.content, r.sum)
		}
	}
	for _, sg := range v.segs {
		sg.refs--
	}
	for _, sg := range v.segs {
		s.unlinkIfUnusedLocked(sg)
	}
	// What the version shared with others is to be found through them from now on.
	for _, other := range s.versions {
		for _, r := range other.rows {
			if _, ok := s.content[r.sum]; !ok {
				s.content[r.sum] = r.place
			}
		}
	}
}

func (s *Store) unlinkIfUnusedLocked(sg *segment) {
	if sg.refs > 0 || sg.pins > 0 {
		return
	}
	delete(s.segments, sg.id)
	s.removeLocked(sg.file())
}
