package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/units"
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
	man     *manifest.Manifest
	digest  manifest.Digest

	existed bool // nothing to send: the digest is stored
	wanted  []int
	segs    []*segment       // reused ones; pinned until the end
	locs    []table.Location // segment index: into segs, or len(segs) for the new one
	lay     *layout          // nil when nothing is wanted
	w       *shm.Writer      // nil when nothing is wanted
	filled  bool

	wantedBytes, sharedBytes uint64
	reserved                 uint64 // of the budget, until the end
	end                      sync.Once
}

// PutResult is what a put did.
type PutResult struct {
	Version VersionInfo
	Existed bool   // the digest was stored already
	Written uint64 // bytes the kernel allocated for it
	Shared  uint64 // bytes of tensors that other versions had stored
}

// BeginPut checks a reference and a canonical manifest, and reserves the memory for what is missing. Errors: Invalid,
// Conflict (an explicit tag points at other bytes), NoSpace, Limit.
func (s *Store) BeginPut(target string, replace bool, encoded []byte) (*Put, error) {
	r, err := ref.Parse(target)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	if r.Digest != nil {
		return nil, zcerr.New(zcerr.Invalid, "reference %s: a put cannot choose its digest", target).WithHint("leave the @sha256:... away")
	}
	man, digest, err := manifest.Decode(encoded)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	p := &Put{s: s, ref: r, replace: replace, man: man, digest: digest}
	if err := p.plan(); err != nil {
		return nil, err
	}
	if err := p.reserve(); err != nil {
		p.Abort()
		return nil, err
	}
	return p, nil
}

// plan opens the put and decides which tensors are taken from other versions, whose segments it pins.
func (p *Put) plan() error {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkTargetLocked(p.ref, p.digest, p.replace); err != nil {
		return err
	}
	if s.openPuts >= s.opt.MaxPuts {
		return zcerr.New(zcerr.Limit, "%d puts are open, the limit is %d", s.openPuts, s.opt.MaxPuts).WithHint("wait for one to end, or start the daemon with a larger --max-puts")
	}
	s.openPuts++
	if s.versions[p.digest] != nil {
		p.existed = true
		return nil
	}
	p.shareLocked()
	return nil
}

// checkTargetLocked refuses an explicit tag that points at other bytes.
func (s *Store) checkTargetLocked(r ref.Ref, d manifest.Digest, replace bool) error {
	if r.Tag == "" || replace {
		return nil
	}
	m := s.models[r.Name]
	if m == nil {
		return nil
	}
	if old, ok := m.tags[r.Tag]; ok && old != d {
		return zcerr.New(zcerr.Conflict, "%s:%s points at %s already, not at %s", r.Name, r.Tag, old.Short(), d.Short()).
			WithHint("move the tag with --replace; a put to the bare name %s makes a new version beside it", r.Name)
	}
	return nil
}

// shareLocked takes what other versions have, and lists what is wanted.
func (p *Put) shareLocked() {
	reuse := p.chooseSegmentsLocked()
	index := map[*segment]int{}
	p.locs = make([]table.Location, len(p.man.Tensors))
	for i := range p.man.Tensors {
		t := &p.man.Tensors[i]
		size := uint64(t.Bytes())
		if at, ok := p.s.content[t.SHA256]; ok && size >= dedupBytes && reuse[at.seg] {
			k, ok := index[at.seg]
			if !ok {
				k = len(p.segs)
				index[at.seg] = k
				p.segs = append(p.segs, at.seg)
				at.seg.pins++
			}
			p.locs[i] = table.Location{Segment: k, Offset: at.offset}
			p.sharedBytes += size
			continue
		}
		p.wanted = append(p.wanted, i)
		p.wantedBytes += size
	}
}

// reserve lays out the new segment and allocates every page of it. Large ones take a while, so no lock is held.
func (p *Put) reserve() error {
	if len(p.wanted) == 0 {
		p.filled = true
		return nil
	}
	lay, err := layOut(p.man, p.wanted)
	if err != nil {
		return zcerr.New(zcerr.Invalid, "%w", err)
	}
	p.lay = lay
	for _, row := range p.wanted {
		p.locs[row] = table.Location{Segment: len(p.segs), Offset: uint64(lay.offset[row])}
	}
	if err := p.admit(uint64(lay.size)); err != nil {
		return err
	}
	if p.w, err = p.s.dir.Create(lay.size); err != nil {
		p.s.mu.Lock()
		defer p.s.mu.Unlock()
		return p.s.explainLocked(err)
	}
	_, err = p.w.WriteAt(lay.header, 0)
	return err
}

// chooseSegmentsLocked picks the segments to share with other versions: those with the most bytes in common, few enough
// for a worker to map, and none of which most is dead.
func (p *Put) chooseSegmentsLocked() map[*segment]bool {
	common := map[*segment]uint64{}
	for i := range p.man.Tensors {
		t := &p.man.Tensors[i]
		if size := uint64(t.Bytes()); size >= dedupBytes {
			if at, ok := p.s.content[t.SHA256]; ok {
				common[at.seg] += size
			}
		}
	}
	live := map[*segment]uint64{} // most bytes that any one version uses: a lower bound
	for _, v := range p.s.versions {
		for k, sg := range v.segs {
			live[sg] = max(live[sg], v.used[k])
		}
	}
	chosen := map[*segment]bool{}
	for len(chosen) < maxSegments-1 {
		var best *segment
		for sg, n := range common {
			if max(live[sg], n) < sg.use.Size/2 || chosen[sg] {
				continue
			}
			if best == nil || n > common[best] || (n == common[best] && sg.id < best.id) {
				best = sg
			}
		}
		if best == nil {
			break
		}
		chosen[best] = true
	}
	return chosen
}

// admit refuses what would not fit before anything is allocated, and reserves it of the budget.
func (p *Put) admit(need uint64) error {
	s := p.s
	_, free, err := s.dir.Space()
	if err != nil {
		return err
	}
	if need > free {
		return s.noSpace(need, free)
	}
	// A tmpfs may be larger than the memory that is left; filling it then ends in an out-of-memory kill, not in an error.
	if avail, ok := s.memAvailable(); ok && need+reserveBytes > avail {
		return s.noSpace(need, avail-min(avail, reserveBytes))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if max := s.opt.MaxBytes; max > 0 {
		// What deleted versions still pin counts, too: it is memory that the budget was given for.
		used := s.usedBytesLocked() + s.heldBytesLocked() + s.reserved
		if used+need > max {
			return zcerr.New(zcerr.NoSpace, "%s needed, %s left of the budget of %s", units.Bytes(need), units.Bytes(max-min(used, max)), units.Bytes(max)).
				WithHint("remove a version ('zcctl ls', 'zcctl rm REF'), see who holds deleted ones ('zcctl ls --all', 'zcctl ps'), or start the daemon with a larger --max-bytes")
		}
	}
	p.reserved = need
	s.reserved += need
	return nil
}

// reserveBytes of available memory are left to everybody else.
const reserveBytes = 256 << 20

func memAvailable() (uint64, bool) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var kb uint64
		if n, _ := fmt.Sscanf(sc.Text(), "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10, true
		}
	}
	return 0, false
}

// Existed reports that the version is stored already, so that Commit only names it.
func (p *Put) Existed() bool { return p.existed }

// Digest is the version's digest.
func (p *Put) Digest() manifest.Digest { return p.digest }

// Wanted lists the rows whose bytes Fill expects, in order.
func (p *Put) Wanted() []int { return p.wanted }

// WantedBytes is how many bytes Fill reads; SharedBytes is what other versions have.
func (p *Put) WantedBytes() uint64 { return p.wantedBytes }

// SharedBytes is the size of the tensors that are taken from other versions.
func (p *Put) SharedBytes() uint64 { return p.sharedBytes }

// Rows is the number of tensor rows.
func (p *Put) Rows() int { return len(p.man.Tensors) }

const chunkBytes = 1 << 20

// chunk is a piece of one row on its way to a hashing goroutine.
type chunk struct {
	row   int
	first bool // of its row
	last  bool
	off   int64 // in the segment
	buf   *[]byte
	n     int
}

// Fill reads the bytes of the wanted rows from r, in order and without framing, writes them into the segment and hashes
// them while they are hot. It reads exactly WantedBytes. Errors: Corrupt when a row's bytes do not have its SHA-256, Invalid
// when r ends early.
func (p *Put) Fill(ctx context.Context, r io.Reader) error {
	if p.existed || p.filled {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	workers := max(1, runtime.GOMAXPROCS(0))
	bufs := sync.Pool{New: func() any { b := make([]byte, chunkBytes); return &b }}
	queues := make([]chan chunk, workers)
	var wg sync.WaitGroup
	for i := range queues {
		queues[i] = make(chan chunk, 4)
		wg.Add(1)
		go func() {
			defer wg.Done()
			p.drain(queues[i], &bufs, cancel)
		}()
	}
	err := p.readRows(ctx, bufio.NewReaderSize(r, chunkBytes), queues, &bufs)
	for _, q := range queues {
		close(q)
	}
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		return err
	}
	p.filled = true
	return nil
}

// readRows deals the rows to the queues in turn, so that several are hashed at a time.
func (p *Put) readRows(ctx context.Context, r io.Reader, queues []chan chunk, bufs *sync.Pool) error {
	for i, row := range p.wanted {
		size := int64(p.man.Tensors[row].Bytes())
		q := queues[i%len(queues)]
		for done := int64(0); ; {
			n := int(min(chunkBytes, size-done))
			buf := bufs.Get().(*[]byte)
			if _, err := io.ReadFull(r, (*buf)[:n]); err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					return zcerr.New(zcerr.Invalid, "the bytes end inside tensor %q: %w", p.man.Tensors[row].Names[0], err)
				}
				return err
			}
			c := chunk{row: row, first: done == 0, last: done+int64(n) == size, off: p.lay.offset[row] + done, buf: buf, n: n}
			select {
			case q <- c:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if done += int64(n); done == size {
				break
			}
		}
	}
	return nil
}

// drain writes and hashes the chunks of one queue.
func (p *Put) drain(q <-chan chunk, bufs *sync.Pool, fail context.CancelCauseFunc) {
	var h hash.Hash
	for c := range q {
		if c.first {
			h = sha256.New()
		}
		b := (*c.buf)[:c.n]
		if _, err := p.w.WriteAt(b, c.off); err != nil {
			fail(err)
		}
		h.Write(b)
		bufs.Put(c.buf)
		if !c.last {
			continue
		}
		t := &p.man.Tensors[c.row]
		var sum manifest.Digest
		h.Sum(sum[:0])
		if sum != t.SHA256 {
			fail(zcerr.New(zcerr.Corrupt, "tensor %q arrived with %s, the manifest says %s", t.Names[0], sum.Short(), t.SHA256.Short()).
				WithHint("the source changed while it was read; put it again"))
		}
	}
}

// Commit publishes the version and names it. Afterwards it is there whole, whatever happens to the daemon.
// Errors: as BeginPut; Invalid when bytes are missing.
func (p *Put) Commit() (*PutResult, error) {
	defer p.Abort()
	if !p.existed && !p.filled {
		return nil, zcerr.New(zcerr.Invalid, "commit before all bytes were sent")
	}
	fresh, encoded, err := p.publishSegment()
	if err != nil {
		return nil, err
	}
	failpoint.Reached("put.segment-published")
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
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
		if err = s.nameLocked(p.ref, p.digest, p.replace); err != nil {
			s.forgetVersionLocked(v)
		}
	default: // stored already, perhaps by a put that was faster
		err = s.nameLocked(p.ref, p.digest, p.replace)
	}
	if fresh != nil {
		s.unlinkIfUnusedLocked(fresh)
	}
	if err != nil {
		return nil, err
	}
	res.Version = s.infoLocked(p.ref.Name, v)
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
		if err := p.w.Publish(segmentPrefix + id); err != nil {
			return nil, nil, err
		}
		sg, err := p.s.openSegment(id)
		if err != nil {
			return nil, nil, errors.Join(err, p.s.dir.Remove(segmentPrefix+id))
		}
		fresh = sg
		list = append(list, table.Segment{ID: sg.id, Bytes: sg.use.Size})
	}
	b, err := table.Encode(p.man, p.digest, list, p.locs)
	if err != nil && fresh != nil {
		err = errors.Join(err, p.s.dir.Remove(fresh.file()))
	}
	return fresh, b, err
}

// publishTableLocked makes the version's own file, in place of a damaged one if there is.
func (p *Put) publishTableLocked(fresh *segment, encoded []byte) (*version, error) {
	w, err := p.s.dir.Create(int64(len(encoded)))
	if err != nil {
		return nil, p.s.explainLocked(err)
	}
	defer w.Abort()
	name := tableFile(p.digest)
	if _, err := w.WriteAt(encoded, 0); err != nil {
		return nil, err
	}
	if err := p.s.dir.Remove(name); err != nil {
		return nil, err
	}
	if err := w.Publish(name); err != nil {
		return nil, err
	}
	f, err := p.s.dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	use, err := shm.UsageOf(f)
	if err != nil {
		return nil, err
	}
	segs := append([]*segment(nil), p.segs...)
	if fresh != nil {
		segs = append(segs, fresh)
	}
	return newVersion(p.man, p.digest, use, segs, p.locs), nil
}

// nameLocked points the tags of a reference at a digest and writes the catalog. On error nothing has changed.
func (s *Store) nameLocked(r ref.Ref, d manifest.Digest, replace bool) error {
	if err := s.checkTargetLocked(r, d, replace); err != nil {
		return err
	}
	m := s.models[r.Name]
	isNew := m == nil
	if isNew {
		m = &model{name: r.Name, tags: map[string]manifest.Digest{}, created: map[manifest.Digest]time.Time{}, next: 1}
		s.models[r.Name] = m
	}
	before := m.clone()
	if r.Tag != "" {
		m.tags[r.Tag] = d
	} else {
		m.tags[ref.Latest] = d
		if !m.hasAuto(d) {
			for m.tags[m.auto()] != (manifest.Digest{}) {
				m.next++
			}
			m.tags[m.auto()] = d
			m.next++
		}
	}
	if _, ok := m.created[d]; !ok {
		m.created[d] = now()
	}
	gone := m.pruneCreated()
	if err := s.writeCatalogLocked(); err != nil {
		if isNew {
			delete(s.models, r.Name)
		} else {
			*m = *before
		}
		return err
	}
	failpoint.Reached("tag.named")
	s.releaseUnnamedLocked(gone)
	return nil
}

// now is the wall clock to the millisecond, as the catalog has it.
func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

func (m *model) auto() string { return fmt.Sprintf("v%d", m.next) }

func (m *model) hasAuto(d manifest.Digest) bool {
	for tag, got := range m.tags {
		if _, ok := autoNumber(tag); ok && got == d {
			return true
		}
	}
	return false
}

func (m *model) clone() *model {
	c := &model{name: m.name, next: m.next, tags: make(map[string]manifest.Digest, len(m.tags)), created: make(map[manifest.Digest]time.Time, len(m.created))}
	for k, v := range m.tags {
		c.tags[k] = v
	}
	for k, v := range m.created {
		c.created[k] = v
	}
	return c
}

// pruneCreated forgets digests that no tag of the model names any more, and lists them.
func (m *model) pruneCreated() []manifest.Digest {
	named := map[manifest.Digest]bool{}
	for _, d := range m.tags {
		named[d] = true
	}
	var gone []manifest.Digest
	for d := range m.created {
		if !named[d] {
			delete(m.created, d)
			gone = append(gone, d)
		}
	}
	return gone
}

// Abort gives everything back that the put reserved. After Commit it does nothing.
func (p *Put) Abort() {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.abortLocked()
}

func (p *Put) abortLocked() {
	p.end.Do(func() {
		p.s.openPuts--
		p.s.reserved -= p.reserved
		for _, sg := range p.segs {
			sg.pins--
			p.s.unlinkIfUnusedLocked(sg)
		}
		if p.w != nil {
			p.w.Abort()
		}
	})
}
