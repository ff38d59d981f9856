package store

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/models/derive"
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
	Form       derive.Form   // of the weights
	Derived    []DerivedForm // handed out behind the version's own files, in this order

	v     *version
	forms []*formed
}

// DerivedForm is a form that a lease holds: a table of TableBytes and its segments, Files in all.
type DerivedForm struct {
	Form       derive.Form
	Files      int
	TableBytes uint64
}

// Ask is what an attach wants beside the version.
type Ask struct {
	Form       derive.Form // of the weights; empty: the tag's default, else plain
	Tokenizers bool        // the tables of the version's tokenizers, if it has any
}

// LeaseInfo is a lease as `zcctl ps` shows it.
type LeaseInfo struct {
	Lease
	Deleted bool // no tag names the version any more
}

// Attach is AttachAs of the plain form, whatever the tag's default.
func (s *Store) Attach(target string, h Holder) (*Lease, []*os.File, error) {
	return s.AttachAs(target, h, Ask{Form: derive.Plain})
}

// AttachAs takes a lease on a version and opens its files: the table first, then the segments in the table's order, then those of
// each form that is asked for in the same way, each O_RDONLY with its own file description. A version that is only on disk is
// loaded first, and a form that is not in memory is made. The caller owns the files. Errors: Invalid, NotFound, Corrupt;
// Unsupported for a form that cannot be made; NoSpace when a version of the disk or a form does not fit into memory.
func (s *Store) AttachAs(target string, h Holder, ask Ask) (l *Lease, files []*os.File, err error) {
	defer explainInto(&err)
	r, err := ref.Parse(target)
	if err != nil {
		return nil, nil, zcerr.New(zcerr.Invalid, "%w", err).WithHint(ref.Hint)
	}
	if ask.Form != "" {
		if _, err := derive.Parse(string(ask.Form)); err != nil {
			return nil, nil, err
		}
	}
	l, files, err = s.attachResident(r, h, ask)
	for try := 0; try < maxTries; try++ { // files that go away while we look make more than one
		var cold *coldError
		var raw *rawError
		switch {
		case errors.As(err, &cold):
			defer s.want(cold.digest)()
			err = s.loadVersion(cold.digest)
		case errors.As(err, &raw):
			defer s.want(raw.source)()
			defer s.askFor(raw.formKey)()
			err = s.makeForm(raw.formKey)
		default:
			return l, files, err
		}
		if err != nil {
			return nil, nil, err
		}
		l, files, err = s.attachResident(r, h, ask)
	}
	if errors.As(err, new(*rawError)) {
		err = zcerr.New(zcerr.NoSpace, "%w", err).WithHint("try again; 'zcctl status' says what memory is used for")
	}
	return l, files, err
}

// maxTries is how often an attach loads or makes what it finds missing: a version, two forms of it, and what went meanwhile.
const maxTries = 6

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

// attachResident is AttachAs for a version in memory. Errors: *coldError when it is only on disk,
// *rawError when a form must be made first.
func (s *Store) attachResident(r ref.Ref, h Holder, ask Ask) (*Lease, []*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, tag, err := s.resolveLocked(r)
	if err != nil {
		return nil, nil, err
	}
	if ask.Form == "" {
		ask.Form = s.models[r.Name].formOf(r)
	}
	forms, err := s.formsLocked(v, ask.Form, ask.Tokenizers)
	if err != nil {
		return nil, nil, err
	}
	files, err := s.openVersionLocked(v)
	for _, f := range forms {
		if err != nil {
			break
		}
		var more []*os.File
		if more, err = s.openFormLocked(f); err != nil {
			closeAll(files)
		}
		files = append(files, more...)
	}
	if err != nil {
		return nil, nil, err
	}
	s.touchLocked(v.digest)
	s.nextID++
	l := &Lease{ID: s.nextID, Ref: r.Name + ":" + tag, Digest: v.digest, Holder: h, Since: time.Now(), TableBytes: v.tableUse.Size, Form: ask.Form, v: v, forms: forms}
	s.leases[l.ID] = l
	v.leases++
	for _, f := range forms {
		f.leases++
		s.touchFormLocked(f)
		l.Derived = append(l.Derived, DerivedForm{f.key.form, 1 + len(f.segs), f.tableUse.Size})
	}
	return l, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// openVersionLocked opens a version's files. A version whose files are gone is taken out of memory.
func (s *Store) openVersionLocked(v *version) ([]*os.File, error) {
	files, gone, err := s.openFilesLocked(v)
	if !errors.Is(err, os.ErrNotExist) {
		return files, err
	}
	s.dropGoneLocked(v, gone)
	if s.coldLocked(v.digest) != nil {
		return nil, &coldError{v.digest}
	}
	return nil, zcerr.New(zcerr.Corrupt, "a file of %s was removed behind the daemon's back", v.digest.Short()).
		WithHint("put the model again; keep other programs out of the segment directory (RemoveIPC=no)")
}

// openFormLocked opens a form's files. One whose files are gone is made again.
func (s *Store) openFormLocked(f *formed) ([]*os.File, error) {
	files, gone, err := s.openFilesLocked(f.version)
	if !errors.Is(err, os.ErrNotExist) {
		return files, err
	}
	for _, other := range s.forms {
		if other == f || gone != nil && slices.Contains(other.segs, gone) {
			s.log.Error("files of a form are gone", zap.Stringer("digest", other.key.source), zap.String("form", string(other.key.form)))
			s.dropFormLocked(other)
		}
	}
	return nil, &rawError{f.key}
}

// openFilesLocked opens a table and the segments behind it. gone is the segment that is not there any more; nil: the table.
func (s *Store) openFilesLocked(v *version) (files []*os.File, gone *segment, err error) {
	f, err := s.dir.Open(v.file)
	if err != nil {
		return nil, nil, err
	}
	files = append(files, f)
	for _, sg := range v.segs {
		if f, err = s.dir.Open(sg.file()); err != nil {
			closeAll(files)
			return nil, sg, err
		}
		files = append(files, f)
	}
	return files, nil, nil
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
	s.letGoLocked(l.v)
	for _, f := range l.forms {
		s.letGoLocked(f.version)
	}
}

func (s *Store) letGoLocked(v *version) {
	if v.leases--; v.deleted && v.leases == 0 {
		delete(s.held, v)
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
	for _, f := range s.formsOfLocked(v.digest) {
		s.dropFormLocked(f)
		v.dropped = append(v.dropped, f.version)
	}
	s.removeLocked(v.file)
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
