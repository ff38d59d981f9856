// Package store is the daemon's mind: which versions there are, where their bytes lie, what they are called and who holds
// them. It is a plain Go interface without gRPC; internal/server puts it on a socket.
//
// # What is on the file system
//
// One directory of a tmpfs, owned by the daemon:
//
//	lock        flock of the daemon that serves this directory
//	catalog     names, tags and the digests they point at (catalog.go)
//	t-<digest>  a version: its table (models/table)
//	f-<digest>  a form of a version that was made of it: its table (form.go)
//	s-<id>      a segment: a valid safetensors file
//
// A file is published before the catalog names it and unlinked after the catalog forgets it, so whatever the moment of a
// crash, everything the catalog names is whole, and what it does not name is litter that the next start sweeps away.
//
// # Locks
//
// mu guards everything that is marked so. It is held while the catalog is written, never while bytes are moved or hashed, and
// never while a disk syncs. names is held by whoever changes names, from before mu until the change is durable.
package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/memlimit"
	"github.com/zcstore/zcstore/internal/oci"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/shm/region"
)

const (
	lockFile      = "lock"
	catalogFile   = "catalog"
	tablePrefix   = "t-"
	segmentPrefix = "s-"

	// dedupBytes is the size from which a tensor is looked for in all other versions; smaller ones only in the segments that
	// are shared for the larger ones, and a version costs no segment more for them.
	dedupBytes = 64 << 10
	// maxSegments is how many files a worker maps for one version.
	maxSegments = 8
)

// Options say where a store is and what it may use. The zero value of a field is its default.
type Options struct {
	Dir        string        // directory of segments; made when missing
	AnyFS      bool          // take a directory that is not on a tmpfs (tests)
	HandoutDir string        // a read-only bind mount of Dir to open files for clients through; empty: none
	Backing    shm.Backing   // in place of Dir: opened, and locked, by the caller; the store closes it, on error too
	Data       string        // directory of the durable tier (disk.go); empty: memory only
	MaxBytes   uint64        // budget for segments and tables; 0: what the file system has
	MaxPuts    int           // open puts at once; 0: 8
	BootID     string        // of this boot; empty: the kernel's (tests)
	Grace      time.Duration // after a start that found versions in memory, nothing is evicted; 0: 5 s
	Log        *zap.Logger

	MaxBytesPerUID uint64 // quota of one user, see PutSpec.Owner; 0: none
}

// Store is safe for concurrent use.
type Store struct {
	memLimits func() ([]memlimit.Limit, error) // immutable; replaced by tests

	opt      Options     // immutable
	dir      shm.Backing // immutable; a *shm.Dir or another
	lock     *os.File    // immutable; the flock of the directory; nil when the caller has locked its Backing
	log      *zap.Logger // immutable
	instance string      // immutable; changes with every Open
	started  time.Time   // immutable
	adopted  int         // immutable; versions found at Open
	ready    bool        // immutable after Open: what is stored was read

	compact   chan struct{}      // immutable; wakes the compactor
	compacted chan struct{}      // immutable; closed when it has ended
	stop      context.CancelFunc // immutable; ends it

	data   *oci.Layout     // immutable; nil: memory only
	dataID string          // immutable after Open; of the data directory
	boot   string          // immutable; id of this boot of the machine
	life   context.Context // immutable; ends with Close
	end    context.CancelFunc
	work   sync.WaitGroup // what Open left running

	names sync.Mutex // held by who changes names; taken before mu

	admitting sync.Mutex // taken before mu; held while the limits of memory are read
	cooking   sync.Mutex // taken before all others; held by who needs much private memory to make a form

	mu       sync.Mutex
	models   map[string]*model            // guarded by mu
	versions map[manifest.Digest]*version // guarded by mu; those that a tag names
	lost     map[manifest.Digest]error    // guarded by mu; named by the catalog, but their files are not whole
	segments map[string]*segment          // guarded by mu; linked ones
	content  map[manifest.Digest]place    // guarded by mu; where a tensor of dedupBytes or more lies
	held     map[*version]struct{}        // guarded by mu; versions and forms, deleted, and leases hold them
	forms    map[formKey]*formed          // guarded by mu; what was made of versions that are in memory
	making   map[formKey]*load            // guarded by mu; forms that are being made
	asked    map[formKey]int              // guarded by mu; how many attaches want a form
	leases   map[uint64]*Lease            // guarded by mu
	disk     map[manifest.Digest]*onDisk  // guarded by mu; versions that are on disk and named, or just being named
	loads    map[manifest.Digest]*load    // guarded by mu; on their way from disk to memory
	wanted   map[manifest.Digest]int      // guarded by mu; how many attaches wait for a version that is on disk
	clock    uint64                       // guarded by mu; counts uses, for the least recently used
	nextID   uint64                       // guarded by mu
	openPuts int                          // guarded by mu
	closed   bool                         // guarded by mu
	reserved uint64                       // guarded by mu; bytes of segments that open puts fill
	debris   map[string]bool              // guarded by mu; files that could not be unlinked
	doubtful map[string]bool              // guarded by mu; segments that a version in lost may need
	filling  uint64                       // guarded by mu; blocks of their files, which have no name yet
	admitted uint64                       // guarded by mu; of these, what is not yet allocated

	owned      map[string]uint32 // guarded by mu; file -> uid whose put wrote it
	reservedBy map[uint32]uint64 // guarded by mu; of reserved, by owner
}

// model is a name with its tags. Fields are guarded by Store.mu.
type model struct {
	name    string
	tags    map[string]manifest.Digest
	created map[manifest.Digest]time.Time
	pinned  map[manifest.Digest]bool // kept in memory
	forms   map[string]derive.Form   // tag -> form of who names none; none: plain
	next    int                      // number of the next automatic tag
}

func newModel(name string) *model {
	return &model{name: name, tags: map[string]manifest.Digest{}, created: map[manifest.Digest]time.Time{}, pinned: map[manifest.Digest]bool{}, forms: map[string]derive.Form{}, next: 1}
}

// version is one stored version. Immutable but for leases and what comes after them, which Store.mu guards.
type version struct {
	digest   manifest.Digest
	file     string // its table
	kind     string // what the root is
	tensors  int
	bytes    uint64 // of all tensors
	tableUse shm.Usage
	segs     []*segment // in the order of the table
	used     []uint64   // bytes of each that this version uses
	rows     []rowPlace // tensors of dedupBytes or more, to forget them in content
	small    []rowPlace // the others, for versions that share their segment
	created  time.Time  // when it was first named here
	leases   int
	deleted  bool

	tokenizers bool                  // it has values to make tables of
	formless   map[derive.Form]error // guarded by Store.mu; forms that cannot be made of it
	dropped    []*version            // its forms, that were dropped with it
}

type rowPlace struct {
	sum  manifest.Digest
	size uint64
	place
}

// place is where a tensor's bytes lie.
type place struct {
	seg    *segment
	offset uint64
}

// segment is a linked file, or one that only held versions use. refs and pins are guarded by Store.mu.
type segment struct {
	id   string
	use  shm.Usage
	huge uint64 // bytes in pages of 2 MiB
	refs int    // tagged versions that use it
	pins int    // open puts that plan to use it
}

// IsFile tells whether a name is one that a store gives to its files, with the generation of one that was replaced.
func IsFile(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	hexID := func(prefix string, bytes int) bool {
		id, ok := strings.CutPrefix(base, prefix)
		raw, err := hex.DecodeString(id)
		return ok && err == nil && len(raw) == bytes
	}
	return base == catalogFile || hexID(tablePrefix, 32) || hexID(formPrefix, 32) || hexID(segmentPrefix, 16)
}

func (s *segment) file() string { return segmentPrefix + s.id }

func tableFile(d manifest.Digest) string { return tablePrefix + d.Hex() }

// LockedError says that another process serves the directory.
type LockedError struct {
	Dir, Holder string
	Data        bool // Dir is the data directory, not that of segments
}

func (e *LockedError) Error() string {
	if e.Data {
		return fmt.Sprintf("another daemon (%s) has the data directory %s", e.Holder, e.Dir)
	}
	return fmt.Sprintf("another daemon (%s) serves the segments in %s", e.Holder, e.Dir)
}

// Open opens the store of a directory: it takes its lock, adopts what the catalog names, and sweeps away what it does not.
// Errors: *LockedError; Corrupt when the catalog itself cannot be read.
func Open(opt Options) (*Store, error) {
	if opt.MaxPuts <= 0 {
		opt.MaxPuts = 8
	}
	if opt.Grace == 0 {
		opt.Grace = evictGrace
	}
	if opt.Log == nil {
		opt.Log = zap.NewNop()
	}
	dir, lock := opt.Backing, (*os.File)(nil)
	if dir == nil {
		d, l, err := openLocked(opt)
		if err != nil {
			return nil, err
		}
		dir, lock = d, l
	}
	s := &Store{
		opt: opt, memLimits: func() ([]memlimit.Limit, error) { return memlimit.Read("") }, dir: dir, lock: lock, log: opt.Log, instance: randomID(), started: time.Now(),
		models: map[string]*model{}, versions: map[manifest.Digest]*version{}, lost: map[manifest.Digest]error{}, doubtful: map[string]bool{},
		segments: map[string]*segment{}, content: map[manifest.Digest]place{}, held: map[*version]struct{}{}, leases: map[uint64]*Lease{},
		owned: map[string]uint32{}, reservedBy: map[uint32]uint64{},
		compact: make(chan struct{}, 1), compacted: make(chan struct{}),
		forms: map[formKey]*formed{}, making: map[formKey]*load{}, asked: map[formKey]int{},
		disk: map[manifest.Digest]*onDisk{}, loads: map[manifest.Digest]*load{}, wanted: map[manifest.Digest]int{},
	}
	s.life, s.end = context.WithCancel(context.Background())
	err := s.start()
	if err != nil {
		s.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go s.compactor(ctx)
	s.wakeCompactor() // a crash may have come between a removal and its compaction
	return s, nil
}

// start reads what is stored.
func (s *Store) start() (err error) {
	if s.boot, err = bootID(s.opt); err != nil {
		return err
	}
	if s.data, err = openData(s.opt); err != nil {
		return err
	}
	if err := s.adopt(); err != nil {
		return err
	}
	s.adopted, s.ready = len(s.versions), true
	if s.data != nil {
		s.work.Go(s.catchUp)
	}
	return nil
}

// openLocked opens the directory and takes its lock. A daemon that ends may remove an empty directory between the two: then
// it is made anew.
func openLocked(opt Options) (*shm.Dir, *os.File, error) {
	for {
		_, err := os.Lstat(opt.Dir)
		made := errors.Is(err, os.ErrNotExist)
		dir, err := shm.OpenDir(opt.Dir, opt.AnyFS)
		if err != nil && !errors.As(err, new(syscall.Errno)) { // it is there, and is none for weights
			err = zcerr.New(zcerr.Invalid, "%w", err).WithHint("choose a directory of this user on a tmpfs, as in --dir /dev/shm/NAME")
		}
		if err != nil {
			return nil, nil, err
		}
		if opt.HandoutDir != "" {
			if err := dir.HandOutThrough(opt.HandoutDir); err != nil {
				dir.Close()
				if made {
					_ = os.Remove(opt.Dir) // nothing is in it
				}
				return nil, nil, zcerr.New(zcerr.Invalid, "%w", err).
					WithHint("mount --bind %[1]s %[2]s && mount -o remount,bind,ro %[2]s (deploy/srv-zcview.mount does it at boot)", opt.Dir, opt.HandoutDir)
			}
		}
		lock, holder, err := dir.Lock(fmt.Sprintf("pid %d", os.Getpid()))
		if err == nil && !dir.Gone() {
			return dir, lock, nil
		}
		gone := dir.Gone()
		if err == nil {
			lock.Close()
		}
		dir.Close()
		switch {
		case gone:
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, nil, &LockedError{Dir: opt.Dir, Holder: holder}
		default:
			return nil, nil, err
		}
	}
}

// Close lets go of the directory. Everything stored stays, for the next Open; a store with nothing in it leaves nothing.
func (s *Store) Close() error {
	if s.stop != nil {
		s.stop()
		<-s.compacted
	}
	s.end()
	s.work.Wait()
	s.mu.Lock()
	empty := len(s.models) == 0 && s.openPuts == 0 && !s.closed
	s.closed = true
	s.mu.Unlock()
	var err error
	if empty && s.ready {
		err = s.dir.Destroy(lockFile, catalogFile)
	} else if !s.ready { // what Open made on its way to an error
		err = s.dir.Destroy(lockFile)
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	if s.data != nil {
		err = errors.Join(err, s.data.Close())
	}
	return errors.Join(err, s.dir.Close())
}

// Instance is an id that changes with every Open.
func (s *Store) Instance() string { return s.instance }

// Dir is where the segments are.
func (s *Store) Dir() string { return s.dir.Path() }

func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// adoptVersion opens a version's table and checks that its segments are there and whole.
func (s *Store) adoptVersion(digest manifest.Digest) (*version, error) {
	v, _, _, err := s.openVersion(digest, tableFile(digest))
	return v, err
}

// openVersion is adoptVersion by the table in a file, with what that says.
func (s *Store) openVersion(digest manifest.Digest, file string) (*version, *manifest.Manifest, []table.Location, error) {
	refuse := func(err error) (*version, *manifest.Manifest, []table.Location, error) { return nil, nil, nil, err }
	f, err := s.dir.Open(file)
	if err != nil {
		return refuse(fmt.Errorf("table: %w", err))
	}
	defer f.Close()
	use, err := shm.UsageOf(f)
	if err != nil {
		return refuse(err)
	}
	m, err := shm.Map(f, int(use.Size))
	if err != nil {
		return refuse(fmt.Errorf("table: %w", err))
	}
	defer m.Close()
	man, segs, locs, err := parseTable(m.Bytes(), digest)
	if err != nil {
		return refuse(err)
	}
	found := make([]*segment, len(segs))
	for i, sg := range segs {
		if found[i] = s.segments[sg.ID]; found[i] == nil {
			if found[i], err = s.openSegment(sg.ID); err != nil {
				return refuse(err)
			}
		}
		if found[i].use.Size != sg.Bytes {
			return refuse(fmt.Errorf("segment %d has %d bytes, the table says %d", i, found[i].use.Size, sg.Bytes))
		}
	}
	return newVersion(man, digest, file, use, found, locs), man, locs, nil
}

// parseTable reads back all of a version's table, which somebody may cut while it is mapped.
func parseTable(b []byte, digest manifest.Digest) (man *manifest.Manifest, segs []table.Segment, locs []table.Location, err error) {
	err = region.Guard(func() error {
		t, err := table.Open(b)
		if err != nil {
			return err
		}
		if err := t.Verify(); err != nil {
			return err
		}
		if man, segs, locs, err = t.Manifest(); err != nil {
			return err
		}
		if t.Digest() != digest {
			return fmt.Errorf("the table is of %v", t.Digest())
		}
		return nil
	})
	return man, segs, locs, err
}

func (s *Store) openSegment(id string) (*segment, error) {
	f, err := s.dir.Open(segmentPrefix + id)
	if err != nil {
		return nil, fmt.Errorf("segment: %w", err)
	}
	defer f.Close()
	use, err := shm.UsageOf(f)
	if err != nil {
		return nil, err
	}
	huge, err := shm.HugeBytes(f)
	if err != nil { // a measurement that nothing depends on
		s.log.Warn("measure the page size of a segment", zap.Error(err))
	}
	return &segment{id: id, use: use, huge: huge}, nil
}

func newVersion(m *manifest.Manifest, digest manifest.Digest, file string, tableUse shm.Usage, segs []*segment, locs []table.Location) *version {
	v := &version{digest: digest, file: file, kind: rootKind(m.Root), tensors: len(m.Tensors), tableUse: tableUse, segs: segs, used: make([]uint64, len(segs)),
		tokenizers: hasTokenizers(m.Root)}
	for i := range m.Tensors {
		size := uint64(m.Tensors[i].Bytes())
		v.bytes += size
		if size == 0 {
			continue
		}
		v.used[locs[i].Segment] += size
		r := rowPlace{m.Tensors[i].SHA256, size, place{segs[locs[i].Segment], locs[i].Offset}}
		if size >= dedupBytes {
			v.rows = append(v.rows, r)
		} else {
			v.small = append(v.small, r)
		}
	}
	return v
}

func rootKind(n *manifest.Node) string {
	if n.Impl != "" {
		return n.Impl
	}
	return n.Kind.String()
}

// addVersionLocked makes a version known: its segments, and its tensors for the next put.
func (s *Store) addVersionLocked(v *version) {
	s.versions[v.digest] = v
	delete(s.lost, v.digest)
	for _, sg := range v.segs {
		sg.refs++
		s.segments[sg.id] = sg
	}
	for _, r := range v.rows {
		if _, ok := s.content[r.sum]; !ok {
			s.content[r.sum] = r.place
		}
	}
}

// sweep removes files that a crash left: made, and never named by the catalog.
func (s *Store) sweep(keep map[string]bool) error {
	names, err := s.dir.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		ours := strings.HasPrefix(n, tablePrefix) || strings.HasPrefix(n, formPrefix) || strings.HasPrefix(n, segmentPrefix) || n == catalogFile+".new"
		if !ours || keep[n] {
			continue
		}
		if len(s.lost) > 0 && strings.HasPrefix(n, segmentPrefix) {
			// A version could not be read, perhaps only now (too many open files, an error of the disk): its bytes may be here.
			s.doubtful[n] = true
			continue
		}
		if err := s.dir.Remove(n); err != nil {
			return err
		}
		s.log.Info("removed what an interrupted put or rm had left", zap.String("file", n[:2]+"..."))
	}
	return nil
}

// explainLocked turns a full file system into what a client can act on; other errors stay as they are.
func (s *Store) explainLocked(err error) error {
	var full *shm.NoSpaceError
	if errors.As(err, &full) {
		return noSpace(full.Need, full.Have, s.heldBytesLocked())
	}
	var none *shm.FullError
	if errors.As(err, &none) {
		return zcerr.New(zcerr.NoSpace, "%d %s needed, %d left", none.Need, none.What, none.Have).
			WithHint("remove a version ('zcctl ls', 'zcctl rm REF'), or %s", none.Fix)
	}
	return err
}

func noSpace(need, have, held uint64) error {
	e := zcerr.New(zcerr.NoSpace, "%s needed, %s free in shared memory", units.Bytes(need), units.Bytes(have))
	if held > 0 {
		return e.WithHint("%s are held by workers of deleted versions: see 'zcctl ps'; or remove a version: 'zcctl rm REF'", units.Bytes(held))
	}
	return e.WithHint("remove a version ('zcctl ls', 'zcctl rm REF'), or give shared memory more room: mount -o remount,size=SIZE /dev/shm, docker run --shm-size=SIZE")
}

// tagsOf lists the tags of a model that point at a digest, sorted: the automatic ones by number first.
func (m *model) tagsOf(d manifest.Digest) []string {
	var tags []string
	for tag, got := range m.tags {
		if got == d {
			tags = append(tags, tag)
		}
	}
	slices.SortFunc(tags, compareTags)
	return tags
}

// compareTags puts v2 before v10 and both before names.
func compareTags(a, b string) int {
	na, aok := autoNumber(a)
	nb, bok := autoNumber(b)
	switch {
	case aok && bok:
		return na - nb
	case aok:
		return -1
	case bok:
		return 1
	}
	return strings.Compare(a, b)
}

// autoNumber is N for the tag vN.
func autoNumber(tag string) (int, bool) {
	digits, ok := strings.CutPrefix(tag, "v")
	if !ok || digits == "" || len(digits) > 9 || digits[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}
