package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/parallel"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// A form of a version is made of its bytes when the first client asks for it (models/derive), and lies in memory as a version
// does: a table and segments. No name points at it, no disk has it, and no digest knows it, so it may be dropped whenever
// nobody holds it. Its table has a row for each thing that was made, with two names: the key that says what it was made of and
// by which recipe, and derive.Name, by which a worker finds it.

// formPrefix is that of the table of a form. The digest behind it is of the form's own manifest.
const formPrefix = "f-"

// formKind is what the root of a form's manifest is.
const formKind = "zcstore.form"

// maxFormSegments is how many segments a form has: what forms of other versions have, and its own.
const maxFormSegments = 3

// MaxFiles is how many descriptors one attach can hand out: a version, a form of it, and its tokenizers.
const MaxFiles = 1 + maxSegments + 2*(1+maxFormSegments)

// formKey names a form.
type formKey struct {
	source manifest.Digest
	form   derive.Form
}

// formed is a form in memory. Fields are guarded by Store.mu, but for what version says and key.
type formed struct {
	*version // leases counts those that hold the form; rows are all that was made, by key
	key      formKey
	used     uint64 // when it was last attached; by Store.clock
	made     map[string]madeRow
}

// madeRow is one thing that was made.
type madeRow struct {
	dtype tensor.DType
	shape tensor.Shape
	sum   manifest.Digest
	place
}

// formConfig is the config of a form's root.
type formConfig struct {
	Form   derive.Form     `json:"form"`
	Source manifest.Digest `json:"source"`
}

// rawError says that a form is not in memory: who asks for it has it made.
type rawError struct{ formKey }

func (e *rawError) Error() string {
	return fmt.Sprintf("the form %s of %s was pushed out of memory as soon as it was made", e.form, e.source.Short())
}

// formsLocked are the forms that an attach hands out beside a version. Errors: *rawError for one that must be made first.
func (s *Store) formsLocked(v *version, form derive.Form, tokenizers bool) ([]*formed, error) {
	var wanted []derive.Form
	if form.Derived() {
		wanted = append(wanted, form)
	}
	if tokenizers && v.tokenizers {
		wanted = append(wanted, derive.Tables)
	}
	var out []*formed
	for _, form := range wanted {
		k := formKey{v.digest, form}
		f := s.forms[k]
		if f == nil {
			return nil, &rawError{k}
		}
		out = append(out, f)
	}
	return out, nil
}

// askFor keeps a form, which is perhaps still to be made, from being dropped before it is attached.
func (s *Store) askFor(k formKey) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[k]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unaskLocked(k)
	}
}

func (s *Store) unaskLocked(k formKey) {
	if s.asked[k]--; s.asked[k] == 0 {
		delete(s.asked, k)
	}
}

// makeForm makes a form, once for any number of callers at a time. Errors: Unsupported when the source has no such form,
// NoSpace.
func (s *Store) makeForm(k formKey) error {
	s.mu.Lock()
	if l := s.making[k]; l != nil {
		s.mu.Unlock()
		<-l.done
		return l.err
	}
	v := s.versions[k.source]
	if v == nil || s.forms[k] != nil || v.formless[k.form] != nil { // the caller looks again
		defer s.mu.Unlock()
		if v != nil {
			return v.formless[k.form]
		}
		return nil
	}
	l := &load{done: make(chan struct{})}
	s.making[k] = l
	s.mu.Unlock()
	begin := time.Now()
	l.err = explain(s.derive(s.life, k))
	s.mu.Lock()
	delete(s.making, k)
	if v := s.versions[k.source]; v != nil && zcerr.KindOf(l.err) == zcerr.Unsupported {
		if v.formless == nil {
			v.formless = map[derive.Form]error{}
		}
		v.formless[k.form] = l.err // it will always be so: nobody tries again in vain
	}
	s.mu.Unlock()
	log := s.log.With(zap.Stringer("digest", k.source), zap.String("form", string(k.form)), zap.Duration("dur", time.Since(begin)))
	if l.err == nil {
		log.Info("made a form")
	} else {
		log.Warn("a form could not be made", zap.Error(l.err))
	}
	close(l.done)
	return l.err
}

// derive is a put whose bytes are made of a version that is in memory. What forms of other versions have is shared. A
// version that is moved or removed meanwhile is no error: the caller looks again.
func (s *Store) derive(ctx context.Context, k formKey) (err error) {
	defer recovered(s.log, k, &err)
	v, release := s.pinVersion(k.source)
	if v == nil {
		return nil
	}
	defer release()
	man, locs, err := s.readTable(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	moved := s.versions[k.source] != v
	s.mu.Unlock()
	if moved { // a compaction put another table in its place
		return nil
	}
	src := sources{s: s, v: v, locs: locs, maps: make([]*shm.Mapping, len(v.segs))}
	defer src.close()
	p, err := s.planForm(k, man, &src)
	if err != nil {
		return err
	}
	defer p.Abort()
	if err := p.layOut(); err != nil {
		return err
	}
	if err := p.reserveOrEvict(); err != nil {
		return err
	}
	failpoint.Reached("form.reserved")
	if err := p.fillMade(ctx, src.made); err != nil {
		return err
	}
	failpoint.Reached("form.filled")
	if _, err := p.Settle(); err != nil {
		return err
	}
	fresh, encoded, err := p.publishSegment()
	if err != nil {
		return err
	}
	failpoint.Reached("form.segment-published")
	s.mu.Lock()
	defer s.mu.Unlock()
	if fresh != nil {
		defer s.unlinkIfUnusedLocked(fresh)
	}
	if s.versions[k.source] == nil || s.forms[k] != nil {
		return nil
	}
	made, err := p.publishTableLocked(fresh, encoded)
	if err != nil {
		return err
	}
	failpoint.Reached("form.table-published")
	s.addFormLocked(k, made, p.man, p.locs)
	return nil
}

// fillMade makes the wanted rows, on all cores, the large ones first. It writes and hashes them while they are hot.
func (p *Put) fillMade(ctx context.Context, made map[int]derive.Made) error {
	if err := p.claim(p.wanted); err != nil {
		return err
	}
	rows := slices.Clone(p.wanted)
	slices.SortStableFunc(rows, func(a, b int) int { return cmp.Compare(p.man.Tensors[b].Bytes(), p.man.Tensors[a].Bytes()) })
	return parallel.Each(ctx, runtime.GOMAXPROCS(0), len(rows), func(ctx context.Context) func(int) error {
		buf := make([]byte, madeBytes)
		return func(i int) error { return p.makeRow(ctx, rows[i], made[rows[i]], buf) }
	})
}

// madeBytes is how much of a row is made at a time: what the core's cache holds.
const madeBytes = 256 << 10

// makeRow reads what a recipe makes. The bytes of the version are read by that, and may be cut as any others.
func (p *Put) makeRow(ctx context.Context, row int, made io.Reader, buf []byte) (err error) {
	defer recovered(p.s.log, *p.form, &err)
	return region.Guard(func() error {
		sum := p.begin(row)
		for size := int64(p.man.Tensors[row].Bytes()); sum.at < size; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			b := buf[:min(int64(len(buf)), size-sum.at)]
			if _, err := io.ReadFull(made, b); err != nil {
				return err
			}
			if err := sum.add(b); err != nil {
				return err
			}
		}
		return sum.end()
	})
}

// recovered makes a panic of a recipe an error: sources are what clients put, and none of them may end the daemon.
func recovered(log *zap.Logger, k formKey, err *error) {
	r := recover()
	if r == nil {
		return
	}
	log.Error("panic in a recipe", zap.Stringer("digest", k.source), zap.String("form", string(k.form)), zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
	*err = zcerr.New(zcerr.Unsupported, "the form %s cannot be made: internal error", k.form).WithHint("this is a bug of zcstored; its log has the stack. Use the plain form")
}

// pinVersion keeps the files of a version in memory where they are, until release. It gives nil when the version is not there.
func (s *Store) pinVersion(d manifest.Digest) (v *version, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v = s.versions[d]; v == nil {
		return nil, nil
	}
	for _, sg := range v.segs {
		sg.pins++
	}
	return v, func() { s.unpin(v.segs...) }
}

// sources are the bytes of a version that forms are made of.
type sources struct {
	s    *Store
	v    *version
	locs []table.Location
	maps []*shm.Mapping      // of the version's segments, as they are needed
	made map[int]derive.Made // row of the form -> its bytes
}

// tensor is the bytes of a row.
func (r *sources) tensor(row int, size int) ([]byte, error) {
	at := r.locs[row]
	if r.maps[at.Segment] == nil {
		m, err := r.s.mapFile(r.v.segs[at.Segment].file(), r.v.segs[at.Segment].use.Size)
		if err != nil {
			return nil, err
		}
		r.maps[at.Segment] = m
	}
	return r.maps[at.Segment].Bytes()[at.Offset:][:size:size], nil
}

func (r *sources) close() {
	for _, m := range r.maps {
		if m != nil {
			_ = m.Close()
		}
	}
}

// ingredient is one thing that a form is made of, and where it stands in the version.
type ingredient struct {
	derive.Source
	key   string
	data  []byte
	names []string // derive.Name of each row or node that it is
}

// ingredients lists what a form is made of, by key.
func ingredients(form derive.Form, man *manifest.Manifest, src *sources) ([]*ingredient, error) {
	byKey := map[string]*ingredient{}
	add := func(from derive.Source, index int, data func() ([]byte, error)) error {
		key := form.Key(from)
		in := byKey[key]
		if in == nil {
			b, err := data()
			if err != nil {
				return err
			}
			in = &ingredient{Source: from, key: key, data: b}
			byKey[key] = in
		}
		in.names = append(in.names, derive.Name(index))
		return nil
	}
	for row := range man.Tensors {
		t := &man.Tensors[row]
		if !form.OfTensor(t.Role, t.Shape) {
			continue
		}
		from := derive.Source{Name: "tensor " + t.Names[0], SHA256: t.SHA256, DType: t.DType, Shape: t.Shape, Role: t.Role}
		if err := add(from, row, func() ([]byte, error) { return src.tensor(row, t.Bytes()) }); err != nil {
			return nil, err
		}
	}
	err := eachValue(man.Root, func(index int, name string, n *manifest.Node) error {
		if !form.OfValue(name) {
			return nil
		}
		if row, ok := n.ValueRow(); ok {
			t := &man.Tensors[row]
			return add(derive.Source{Name: name, SHA256: t.SHA256}, index, func() ([]byte, error) { return src.tensor(row, t.Bytes()) })
		}
		return add(derive.Source{Name: name, SHA256: sha256.Sum256(n.Value)}, index, func() ([]byte, error) { return n.Value, nil })
	})
	if err != nil {
		return nil, err
	}
	var out []*ingredient
	for _, in := range byKey {
		slices.Sort(in.names)
		out = append(out, in)
	}
	slices.SortFunc(out, func(a, b *ingredient) int { return strings.Compare(a.key, b.key) })
	return out, nil
}

// eachValue calls f for the values of modules, with their place in the tree's preorder and their name.
func eachValue(root *manifest.Node, f func(index int, name string, n *manifest.Node) error) error {
	next := 0
	var walk func(n *manifest.Node) error
	walk = func(n *manifest.Node) error {
		next++
		for _, it := range n.Items {
			if n.Kind == manifest.Module && it.Node.Kind == manifest.Value {
				if err := f(next, it.Key, it.Node); err != nil {
					return err
				}
			}
			if err := walk(it.Node); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(root)
}

// hasTokenizers reports whether there is something to make tables of.
func hasTokenizers(root *manifest.Node) bool {
	found := errors.New("found")
	return eachValue(root, func(_ int, name string, _ *manifest.Node) error {
		if derive.Tables.OfValue(name) {
			return found
		}
		return nil
	}) != nil
}

// planForm makes the put of a form: what other forms have is shared, for the rest src has the bytes that are to be made.
func (s *Store) planForm(k formKey, man *manifest.Manifest, src *sources) (*Put, error) {
	list, err := ingredients(k.form, man, src)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, zcerr.New(zcerr.Unsupported, "nothing in it has a form %s: no weight is multiplied", k.form).WithHint("use the plain form")
	}
	config, err := json.Marshal(formConfig{k.form, k.source})
	if err != nil {
		return nil, err
	}
	if config, err = manifest.CanonicalJSON(config); err != nil {
		return nil, err
	}
	p := &Put{s: s, inside: true, form: &k, man: &manifest.Manifest{Root: &manifest.Node{Kind: manifest.Module, Impl: formKind, Config: config}}}
	s.mu.Lock()
	shared := p.shareMadeLocked(list)
	s.mu.Unlock()
	src.made = map[int]derive.Made{}
	for row, in := range list {
		t := manifest.Tensor{Names: append([]string{in.key}, in.names...)}
		if from, ok := shared[row]; ok {
			t.DType, t.Shape, t.SHA256 = from.dtype, from.shape, from.sum
		} else {
			m, err := s.derivedOf(k.form, in)
			if err != nil {
				p.Abort()
				return nil, err
			}
			src.made[row] = m
			t.DType, t.Shape, t.Role = m.DType, m.Shape, tensor.Other
			p.wanted, p.pending = append(p.wanted, row), append(p.pending, row)
		}
		p.man.Tensors = append(p.man.Tensors, t)
		p.man.Root.Params = append(p.man.Root.Params, manifest.Param{Name: in.key, Tensor: row})
	}
	for _, row := range p.wanted {
		p.wantedBytes += uint64(p.man.Tensors[row].Bytes())
	}
	return p, nil
}

// freeScratch is from which private memory for making something is given back to the kernel at once.
const freeScratch = 16 << 20

// derivedOf begins to make something. Bytes of the version are read, and may be cut. What takes much private memory is made
// one at a time, and only where there is that much.
func (s *Store) derivedOf(form derive.Form, in *ingredient) (m derive.Made, err error) {
	if scratch := form.Scratch(len(in.data)); scratch >= freeScratch {
		s.cooking.Lock()
		defer s.cooking.Unlock()
		room, err := s.memoryRoom()
		if err != nil {
			return m, err
		}
		if scratch > room.Free {
			err := room.Refuse(scratch)
			return m, zcerr.New(zcerr.NoSpace, "the daemon needs memory of its own to compile %s: %w", in.Name, err).WithHint("%s", zcerr.HintOf(err))
		}
		defer debug.FreeOSMemory()
	}
	err = region.Guard(func() (err error) {
		m, err = form.Make(in.Source, in.data)
		return err
	})
	return m, err
}

// shareMadeLocked takes what other forms have, and pins its segments.
func (p *Put) shareMadeLocked(list []*ingredient) map[int]madeRow {
	p.locs = make([]table.Location, len(list))
	shared := map[int]madeRow{}
	for row, in := range list {
		for k, f := range p.s.forms {
			m, ok := f.made[in.key]
			if !ok || k.form != p.form.form {
				continue
			}
			i := slices.Index(p.segs, m.seg)
			if i < 0 && len(p.segs) == maxFormSegments-1 {
				continue
			}
			if i < 0 {
				i = len(p.segs)
				p.segs = append(p.segs, m.seg)
				m.seg.pins++
			}
			shared[row] = m
			p.locs[row] = table.Location{Segment: i, Offset: m.offset}
			p.sharedBytes += m.bytes()
			break
		}
	}
	return shared
}

func (m madeRow) bytes() uint64 {
	n, _ := tensor.SizeBytes(m.dtype, m.shape) // as the manifest was checked
	return uint64(n)
}

// addFormLocked makes a form known.
func (s *Store) addFormLocked(k formKey, v *version, man *manifest.Manifest, locs []table.Location) {
	f := &formed{version: v, key: k, made: make(map[string]madeRow, len(man.Tensors))}
	for row := range man.Tensors {
		t := &man.Tensors[row]
		f.made[t.Names[0]] = madeRow{t.DType, t.Shape, t.SHA256, place{v.segs[locs[row].Segment], locs[row].Offset}}
	}
	for _, sg := range v.segs {
		sg.refs++
		s.segments[sg.id] = sg
	}
	s.forms[k] = f
	s.touchFormLocked(f)
}

func (s *Store) touchFormLocked(f *formed) {
	s.clock++
	f.used = s.clock
}

// dropFormLocked takes a form out of memory. Who holds it keeps its pages, as with a version.
func (s *Store) dropFormLocked(f *formed) {
	delete(s.forms, f.key)
	s.removeLocked(f.file)
	f.deleted = true
	if f.leases > 0 {
		s.held[f.version] = struct{}{}
	}
	for _, sg := range f.segs {
		sg.refs--
		s.unlinkIfUnusedLocked(sg)
	}
}

// formsOfLocked are the forms of a version in memory, by name.
func (s *Store) formsOfLocked(d manifest.Digest) []*formed {
	var out []*formed
	for k, f := range s.forms {
		if k.source == d {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *formed) int { return strings.Compare(string(a.key.form), string(b.key.form)) })
	return out
}

// idleFormsLocked are the forms that may be dropped, the least recently used first.
func (s *Store) idleFormsLocked() []*formed {
	var out []*formed
	for k, f := range s.forms {
		if f.leases == 0 && s.asked[k] == 0 && !slices.ContainsFunc(f.segs, func(sg *segment) bool { return sg.pins > 0 }) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *formed) int { return cmp.Compare(a.used, b.used) })
	return out
}

func formFile(d manifest.Digest) string { return formPrefix + d.Hex() }

// adoptForms takes over what a daemon before made of versions that are here, by the recipes of this one: workers may still
// have it mapped. What it leaves is swept away. It gives the files that it takes.
func (s *Store) adoptFormsLocked() (files []string) {
	names, err := s.dir.Names()
	if err != nil {
		return nil // sweep will say it
	}
	for _, name := range names {
		hex, ok := strings.CutPrefix(name, formPrefix)
		d, err := manifest.ParseDigest("sha256:" + hex)
		if !ok || err != nil {
			continue
		}
		if err := s.adoptFormLocked(d, name); err != nil {
			s.log.Info("a form is not taken over", zap.String("form", d.Short()), zap.Error(err))
			continue
		}
		files = append(files, name)
	}
	return files
}

func (s *Store) adoptFormLocked(d manifest.Digest, name string) error {
	v, man, locs, err := s.openVersion(d, name)
	if err != nil {
		return err
	}
	var c formConfig
	if err := json.Unmarshal(man.Root.Config, &c); err != nil || man.Root.Impl != formKind || !c.Form.Derived() {
		return errors.New("it is no form")
	}
	k := formKey{c.Source, c.Form}
	if s.versions[k.source] == nil || s.forms[k] != nil {
		return errors.New("its version is not in memory")
	}
	for i := range man.Tensors {
		if !strings.HasPrefix(man.Tensors[i].Names[0], c.Form.Recipe()+"/") {
			return fmt.Errorf("another release made it: %s", man.Tensors[i].Names[0])
		}
	}
	s.addFormLocked(k, v, man, locs)
	return nil
}
