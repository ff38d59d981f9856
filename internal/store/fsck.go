package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/oci"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
)

// FsckOptions say what Fsck looks at.
type FsckOptions struct {
	Dir     string // of segments
	Data    string // of the durable tier; empty: there is none
	AnyFS   bool   // as in Options
	BootID  string // as in Options
	Rebuild bool   // make a new catalog, and a new index, of what is whole
}

// Finding is one thing that Fsck found.
type Finding struct {
	Where   string // "memory" or "disk"
	What    string // "catalog", "index", "version", "segment", "blob"
	Name    string // name:tag where it has one, otherwise a digest or an id; may be empty
	Problem string
	Of      string // what is damaged, when several versions have it; empty: it is of this finding alone
	Note    bool   // no damage
}

// FsckVersion is a version that is whole in memory, on disk or in both.
type FsckVersion struct {
	Digest   manifest.Digest
	Names    []string // after a rebuild those of the new catalog
	InMemory bool
	OnDisk   bool
}

// FsckReport is what Fsck found.
type FsckReport struct {
	Findings []Finding
	Versions []FsckVersion
	Bytes    uint64   // that were read and hashed
	Rebuilt  bool     // a new catalog or index was written
	Kept     []string // the old ones, under their new names
}

// Damaged counts what is damaged, each thing once, however many versions have it.
func (r *FsckReport) Damaged() int {
	n := 0
	seen := map[string]bool{}
	for _, f := range r.Findings {
		of := f.Where + " " + f.Of
		if f.Note || f.Of != "" && seen[of] {
			continue
		}
		seen[of] = true
		n++
	}
	return n
}

func (r *FsckReport) damage(where, what, name, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Where: where, What: what, Name: name, Problem: fmt.Sprintf(format, args...)})
}

func (r *FsckReport) note(where, what, name, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{Where: where, What: what, Name: name, Problem: fmt.Sprintf(format, args...), Note: true})
}

// Fsck reads everything that is stored, with no daemon running: catalog, tables and segments in memory, index and blobs on
// disk; every tensor and blob is hashed. It deletes nothing. With Rebuild it writes a new catalog, and where the index cannot
// be read a new index, that name what is whole, and keeps the old ones beside them. Errors: *LockedError while a daemon
// serves; what keeps it from reading at all.
func Fsck(ctx context.Context, opt FsckOptions) (*FsckReport, error) {
	f := &fsck{opt: opt, r: &FsckReport{}, memory: map[manifest.Digest]*version{}, names: map[manifest.Digest][]string{}}
	defer f.close()
	if err := f.lock(); err != nil {
		return nil, err
	}
	if opt.Data != "" {
		if err := f.checkDisk(ctx); err != nil {
			return nil, err
		}
	}
	if f.s != nil {
		if err := f.checkMemory(ctx); err != nil {
			return nil, err
		}
	}
	if opt.Rebuild {
		if err := f.rebuild(ctx); err != nil {
			return nil, err
		}
	}
	f.sum()
	return f.r, nil
}

// fsck is one run.
type fsck struct {
	opt FsckOptions
	r   *FsckReport
	s   *Store // of the directory in memory, without what Open does; nil when there is no directory

	newer  bool        // the catalog was written by a newer release
	cat    *catalog    // nil when it cannot be read
	disk   *oci.Report // nil without a data directory
	memory map[manifest.Digest]*version
	names  map[manifest.Digest][]string // by the index and the catalog
}

func (f *fsck) close() {
	if f.s != nil {
		f.s.lock.Close()
		f.s.dir.Close()
	}
}

// lock takes the lock of the directory in memory, without making the directory. That of the disk is taken while it is read.
func (f *fsck) lock() error {
	if _, err := os.Lstat(f.opt.Dir); errors.Is(err, fs.ErrNotExist) {
		f.r.note("memory", "catalog", "", "there is no directory of segments: nothing is in memory, or it is in memfds (zcstored --backing memfd), which only the daemon can read: zcctl verify")
		return nil
	}
	dir, lock, err := openLocked(Options{Dir: f.opt.Dir, AnyFS: f.opt.AnyFS})
	if err != nil {
		return err
	}
	f.s = &Store{
		opt: Options{Dir: f.opt.Dir}, dir: dir, lock: lock, log: zap.NewNop(), models: map[string]*model{},
		versions: map[manifest.Digest]*version{}, lost: map[manifest.Digest]error{}, segments: map[string]*segment{}, content: map[manifest.Digest]place{},
	}
	return nil
}

func (f *fsck) checkDisk(ctx context.Context) error {
	rep, err := oci.Check(ctx, f.opt.Data, oci.Options{})
	if errors.Is(err, fs.ErrNotExist) {
		return zcerr.New(zcerr.NotFound, "there is no data directory %s", f.opt.Data).WithHint("name the one that zcstored was started with: zcctl fsck --data DIR")
	}
	if err != nil {
		return dataInUse(err)
	}
	f.disk = rep
	f.r.Bytes += rep.Bytes
	for _, d := range rep.Findings {
		f.r.Findings = append(f.r.Findings, Finding{Where: "disk", What: d.What, Name: d.Name, Problem: d.Problem, Of: d.Of, Note: d.Note})
	}
	for _, e := range rep.Entries {
		f.addName(e.Version, e.Ref())
	}
	return nil
}

func (f *fsck) addName(d manifest.Digest, name string) {
	if !slices.Contains(f.names[d], name) {
		f.names[d] = append(f.names[d], name)
	}
}

func (f *fsck) checkMemory(ctx context.Context) error {
	files, err := f.s.dir.Names()
	if err != nil {
		return err
	}
	slices.Sort(files)
	f.readCatalog(slices.Contains(files, catalogFile), len(files) > 1)
	for _, name := range files {
		hex, ok := strings.CutPrefix(name, tablePrefix)
		if !ok {
			continue
		}
		d, err := manifest.ParseDigest("sha256:" + hex)
		if err != nil {
			continue
		}
		if err := f.checkVersion(ctx, d); err != nil {
			return err
		}
	}
	f.checkNamed()
	used := map[string]bool{}
	for _, name := range files {
		if err := f.checkForm(ctx, name, used); err != nil {
			return err
		}
	}
	for _, v := range f.memory {
		for _, sg := range v.segs {
			used[sg.file()] = true
		}
	}
	for _, name := range files {
		if strings.HasPrefix(name, segmentPrefix) && !used[name] {
			f.r.note("memory", "segment", short(name), "no whole version uses it")
		}
	}
	return nil
}

// short is a file's id as far as people need it.
func short(file string) string { return file[:min(len(file), len(segmentPrefix)+12)] }

func (f *fsck) readCatalog(there, others bool) {
	var err error
	if there {
		var b []byte
		if b, err = f.readFile(catalogFile); err == nil {
			f.cat, err = parseCatalog(b)
		}
	} else if f.cat = (&catalog{}); others {
		f.cat, err = nil, errors.New("it is missing")
	}
	if err != nil {
		f.newer = errors.Is(err, errNewer)
		f.r.damage("memory", "catalog", "", "the catalog cannot be read: %v", err)
		return
	}
	for _, m := range f.cat.models {
		for tag, d := range m.tags {
			f.addName(d, m.name+":"+tag)
		}
	}
	if boot, err := bootID(Options{BootID: f.opt.BootID}); err == nil && f.cat.boot != "" && f.cat.boot != boot {
		f.r.note("memory", "catalog", "", "it was written before this machine was started: a daemon does not take what is in memory for its own")
	}
}

func (f *fsck) readFile(name string) ([]byte, error) {
	file, err := f.s.dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, 256<<20))
}

// checkVersion reads a version's table and every tensor of it.
func (f *fsck) checkVersion(ctx context.Context, d manifest.Digest) error {
	v, err := f.s.adoptVersion(d)
	if err != nil {
		f.r.damage("memory", "version", f.nameOf(d), "%v", plain(err))
		return nil
	}
	var out Verified
	bad, err := f.s.scrub(ctx, v, false, &out)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	f.r.Bytes += out.Bytes
	switch {
	case err != nil:
		f.r.damage("memory", "version", f.nameOf(d), "%v", plain(err))
	case len(bad) > 0:
		for i, name := range out.Damaged {
			f.r.Findings = append(f.r.Findings, Finding{
				Where: "memory", What: "version", Name: f.nameOf(d), Of: fmt.Sprintf("%s at %d", bad[i].seg.id, bad[i].offset),
				Problem: fmt.Sprintf("tensor %q: its bytes are not those of its digest", name),
			})
		}
	default:
		for _, sg := range v.segs {
			if _, err := f.metadata(sg); err != nil {
				f.r.damage("memory", "segment", short(sg.file()), "its header cannot be read, which %s does not need: %v", f.nameOf(d), err)
			}
		}
		f.memory[d] = v
		f.s.addVersionLocked(v)
		if len(f.names[d]) == 0 && f.cat != nil {
			f.r.note("memory", "version", d.String(), "it is whole and nothing names it: it goes at the next start")
		}
	}
	return nil
}

// checkForm reads a form of a version, if that is what the file is, and notes its segments.
func (f *fsck) checkForm(ctx context.Context, name string, used map[string]bool) error {
	hex, ok := strings.CutPrefix(name, formPrefix)
	d, err := manifest.ParseDigest("sha256:" + hex)
	if !ok || err != nil {
		return nil
	}
	v, _, _, err := f.s.openVersion(d, name)
	if err != nil {
		f.r.note("memory", "form", short(name), "%v: it goes at the next start", plain(err))
		return nil
	}
	for _, sg := range v.segs {
		used[sg.file()] = true
	}
	var out Verified
	bad, err := f.s.scrub(ctx, v, false, &out)
	f.r.Bytes += out.Bytes
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		f.r.damage("memory", "form", short(name), "%v", plain(err))
	case len(bad) > 0:
		f.r.damage("memory", "form", short(name), "what was made as %q of a version is damaged: with a daemon running, zcctl verify drops it", out.Damaged[0])
	}
	return nil
}

// plain says what is wrong with a version whose table is there.
func plain(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "a segment of it is missing"
	}
	return err.Error()
}

func (f *fsck) nameOf(d manifest.Digest) string {
	if n := f.names[d]; len(n) > 0 {
		return slices.Min(n)
	}
	return d.String()
}

// checkNamed finds what the catalog names and neither memory nor disk has.
func (f *fsck) checkNamed() {
	if f.cat == nil {
		return
	}
	for _, m := range f.cat.models {
		for d := range m.created {
			if f.memory[d] != nil || f.s.hasTable(d) { // whole, or reported already
				continue
			}
			switch {
			case f.indexed(d): // it was evicted: whether it is whole, the disk says
			case f.onDisk(d):
			case f.disk == nil && f.cat.data != "" && !f.cat.unwritten[d]:
				f.r.note("memory", "version", f.nameOf(d), "it is only on disk: zcctl fsck --data %s looks there", f.cat.data)
			default:
				f.r.damage("memory", "version", f.nameOf(d), "the catalog names it and its table is missing")
			}
		}
	}
}

func (f *fsck) onDisk(d manifest.Digest) bool { return f.disk != nil && f.disk.Whole[d] != nil }

// indexed tells that the index names a version.
func (f *fsck) indexed(d manifest.Digest) bool {
	return f.disk != nil && slices.ContainsFunc(f.disk.Entries, func(e oci.Entry) bool { return e.Version == d })
}

// sum lists what is whole.
func (f *fsck) sum() {
	seen := map[manifest.Digest]bool{}
	add := func(d manifest.Digest) {
		if !seen[d] {
			seen[d] = true
			names := slices.Clone(f.names[d])
			slices.Sort(names)
			f.r.Versions = append(f.r.Versions, FsckVersion{Digest: d, Names: names, InMemory: f.memory[d] != nil, OnDisk: f.onDisk(d)})
		}
	}
	for d := range f.memory {
		add(d)
	}
	if f.disk != nil {
		for d := range f.disk.Whole {
			add(d)
		}
	}
	slices.SortFunc(f.r.Versions, func(a, b FsckVersion) int {
		return cmp.Or(slices.Compare(a.Names, b.Names), compareDigests(a.Digest, b.Digest))
	})
	slices.SortStableFunc(f.r.Findings, func(a, b Finding) int {
		return cmp.Or(strings.Compare(a.Where, b.Where), strings.Compare(a.Name, b.Name))
	})
}

// rebuild writes a catalog of what is whole, and an index where that is lost.
func (f *fsck) rebuild(ctx context.Context) error {
	if f.newer || f.disk != nil && f.disk.Newer {
		return zcerr.New(zcerr.Unsupported, "a newer release of zcstored wrote this: it is not rebuilt").WithHint("use the zcctl of that release")
	}
	models := f.rebuildModels()
	f.names = map[manifest.Digest][]string{}
	for _, m := range models {
		for tag, d := range m.tags {
			f.addName(d, m.name+":"+tag)
		}
	}
	if f.disk != nil && f.disk.BadIndex {
		kept, err := oci.Rebuild(ctx, f.opt.Data, oci.Options{}, func(v *oci.Version) []oci.Entry { return entriesOf(models, v.Digest) })
		if err != nil {
			return err
		}
		f.r.Rebuilt = true
		if kept != "" {
			f.r.Kept = append(f.r.Kept, kept)
		}
	}
	if f.s == nil {
		return nil
	}
	boot, err := bootID(Options{BootID: f.opt.BootID})
	if err != nil {
		return err
	}
	c := &catalog{boot: boot, models: models, unwritten: map[manifest.Digest]bool{}}
	if f.cat != nil {
		c.owners = f.cat.owners
	}
	for d := range f.memory {
		if !f.onDisk(d) {
			c.unwritten[d] = true // with a data directory it is written there at the next start
		}
	}
	b, err := encodeCatalog(c)
	if err != nil {
		return err
	}
	if old, err := f.readFile(catalogFile); err == nil {
		kept := "catalog.before-" + time.Now().UTC().Format("20060102T150405.000000000")
		if err := f.s.dir.ReplaceFile(kept, old); err != nil {
			return fmt.Errorf("keep the old catalog: %w", err)
		}
		f.r.Kept = append(f.r.Kept, kept)
	}
	if err := f.s.dir.ReplaceFile(catalogFile, b); err != nil {
		return fmt.Errorf("write catalog: %w", err)
	}
	f.r.Rebuilt = true
	return nil
}

func entriesOf(models map[string]*model, d manifest.Digest) []oci.Entry {
	var out []oci.Entry
	for _, m := range models {
		for _, tag := range m.tagsOf(d) {
			out = append(out, oci.Entry{Name: m.name, Tag: tag, Version: d, Created: m.created[d], Next: m.next, Pinned: m.pinned[d]})
		}
	}
	return out
}

// rebuildModels names what is whole: as the index says, else as the catalog says, else as the segment says that the version
// was put, else by its digest.
func (f *fsck) rebuildModels() map[string]*model {
	models := map[string]*model{}
	get := func(name string) *model {
		if models[name] == nil {
			models[name] = newModel(name)
		}
		return models[name]
	}
	named := map[manifest.Digest]bool{}
	set := func(name, tag string, d manifest.Digest, created time.Time) {
		m := get(name)
		if _, taken := m.tags[tag]; taken {
			return
		}
		m.tags[tag], m.created[d] = d, created
		named[d] = true
		if n, ok := autoNumber(tag); ok {
			m.next = max(m.next, n+1)
		}
	}
	if f.disk != nil {
		for _, e := range f.disk.Entries { // also what is damaged on disk: it may be repaired by a put
			set(e.Name, e.Tag, e.Version, e.Created)
			m := get(e.Name)
			m.next = max(m.next, e.Next)
			if e.Pinned {
				m.pinned[e.Version] = true
			}
		}
	}
	if f.cat != nil {
		for _, from := range f.cat.models {
			for tag, d := range from.tags {
				if f.memory[d] == nil && !f.onDisk(d) {
					continue
				}
				set(from.name, tag, d, from.created[d])
				if m := models[from.name]; m != nil && from.pinned[d] {
					m.pinned[d] = true
				}
			}
		}
	}
	f.nameByHint(models, named, set)
	for _, m := range models {
		if len(m.tags) == 0 {
			delete(models, m.name)
		}
	}
	return models
}

// nameByHint names the versions that neither index nor catalog names, oldest first.
func (f *fsck) nameByHint(models map[string]*model, named map[manifest.Digest]bool, set func(name, tag string, d manifest.Digest, created time.Time)) {
	type lone struct {
		d       manifest.Digest
		created time.Time
	}
	var rest []lone
	for d := range f.memory {
		if !named[d] {
			rest = append(rest, lone{d, f.modified(tableFile(d))})
		}
	}
	if f.disk != nil && f.disk.BadIndex {
		for d := range f.disk.Whole {
			if !named[d] && f.memory[d] == nil {
				rest = append(rest, lone{d, time.Time{}})
			}
		}
	}
	slices.SortFunc(rest, func(a, b lone) int { return cmp.Or(a.created.Compare(b.created), compareDigests(a.d, b.d)) })
	for _, l := range rest {
		r, ok := f.hint(l.d)
		if ok {
			if r.Tag != "" {
				set(r.Name, r.Tag, l.d, l.created)
			} else {
				m := models[r.Name]
				if m == nil {
					m = newModel(r.Name)
					models[r.Name] = m
				}
				set(r.Name, m.auto(), l.d, l.created)
				if named[l.d] {
					m.tags[ref.Latest] = l.d // of the puts to a bare name the last one has it
				}
			}
		}
		if !named[l.d] {
			set("recovered/"+l.d.Short(), ref.Latest, l.d, l.created)
		}
	}
}

func (f *fsck) modified(name string) time.Time {
	file, err := f.s.dir.Open(name)
	if err != nil {
		return time.Time{}
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return time.Time{}
	}
	return st.ModTime().UTC().Truncate(time.Millisecond)
}

// hint is what a version was put as, by the segment that was written for it. A version that shares all of its bytes has none.
func (f *fsck) hint(d manifest.Digest) (ref.Ref, bool) {
	v := f.memory[d]
	if v == nil {
		return ref.Ref{}, false
	}
	for _, sg := range v.segs {
		meta, err := f.metadata(sg)
		if err != nil || meta[metaVersion] != d.Hex() {
			continue
		}
		r, err := ref.Parse(meta[metaName])
		if err == nil && r.Digest == nil {
			return r, true
		}
	}
	return ref.Ref{}, false
}

func (f *fsck) metadata(sg *segment) (map[string]string, error) {
	file, err := f.s.dir.Open(sg.file())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	m, err := shm.Map(file, int(sg.use.Size))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var h *safetensors.Header
	err = region.Guard(func() (err error) { // the file may be cut while it is read
		h, err = safetensors.Parse(m.Bytes())
		return err
	})
	if err != nil {
		return nil, err
	}
	return h.Metadata, nil
}
