package shm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// allSeals leave nothing to change: no write, no growth, no cut or hole, and no further seal that could be mistaken for one.
const allSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// memfdName is what /proc/PID/maps of every worker shows. It says whose the memory is and nothing about what is in it.
const memfdName = "zcstore"

// Keeper holds descriptors for the time when this process is not there. Calls reach it in the order in which they are made;
// that they did, only Sync tells.
type Keeper interface {
	// Keep gives it a copy of f under a name.
	Keep(name string, f *os.File) error
	// Drop has it let go of a name. One that it does not have is no error.
	Drop(name string) error
	// Sync returns when everything before has arrived.
	Sync() error
	// Room is how many further descriptors it takes.
	Room() int
}

// Kept is a descriptor that a keeper gave back, under the name it was kept by.
type Kept struct {
	Name string
	File *os.File
}

// Memfd keeps every file in a memfd that is sealed before anybody else sees it: not even root, and not this process, can
// change a published byte. It has no name on any file system, so it lives exactly as long as somebody holds a descriptor or a
// mapping: without a Keeper, no longer than this process.
//
// A file that is replaced is kept as NAME.GENERATION. The new generation is with the keeper before the old one is
// dropped, and the next process takes the highest.
type Memfd struct {
	keeper Keeper // nil: none

	mu    sync.Mutex
	files map[string]*memFile // guarded by mu; by the name without generation
	last  map[string]uint64   // guarded by mu; the last generation that was tried, of each name that has any
	stale map[string]bool     // guarded by mu; old generations that the keeper could not be told to drop
}

type memFile struct {
	f          *os.File // O_RDONLY
	keptAs     string
	generation uint64 // 0: it was never replaced
}

var _ Backing = (*Memfd)(nil)

// NewMemfd makes a memfd backing of what a keeper gave back, which may be nothing; without a keeper everything goes with this
// process. It owns the files of kept. Those that are no sealed regular files are closed, dropped, and reported in refused; so
// is nothing else.
func NewMemfd(keeper Keeper, kept []Kept) (m *Memfd, refused []error) {
	m = &Memfd{keeper: keeper, files: map[string]*memFile{}, last: map[string]uint64{}, stale: map[string]bool{}}
	for _, k := range kept {
		if err := m.adopt(k); err != nil {
			refused = append(refused, fmt.Errorf("kept descriptor %q: %w", k.Name, err))
			k.File.Close()
			if err := m.drop(k.Name); err != nil {
				refused = append(refused, err)
			}
		}
	}
	return m, refused
}

func (m *Memfd) adopt(k Kept) error {
	name, generation := splitGeneration(k.Name)
	if err := checkName(name); err != nil {
		return err
	}
	if err := checkSealed(k.File); err != nil {
		return err
	}
	f, err := reopen(k.File)
	if err != nil {
		return err
	}
	k.File.Close()
	next := &memFile{f: f, keptAs: k.Name, generation: generation}
	m.last[name] = max(m.last[name], generation)
	have := m.files[name]
	switch {
	case have == nil:
		m.files[name] = next
	case have.generation < generation: // a daemon that ended between the two steps of a replacement
		m.files[name] = next
		m.retireLocked(have)
	case have.keptAs == next.keptAs: // to drop one is to drop both
		return next.f.Close()
	default:
		m.retireLocked(next)
	}
	return nil
}

// retireLocked lets go of an old generation. It is no error when that fails, since the higher one wins; it is tried again with
// the next.
func (m *Memfd) retireLocked(old *memFile) {
	old.f.Close()
	m.stale[old.keptAs] = true
	for name := range m.stale {
		if m.drop(name) == nil {
			delete(m.stale, name)
		}
	}
}

// splitGeneration takes NAME.7 apart; a name without a number is of generation 0.
func splitGeneration(keptAs string) (name string, generation uint64) {
	name, number, ok := strings.Cut(keptAs, ".")
	if n, err := strconv.ParseUint(number, 10, 64); ok && err == nil && n > 0 && strconv.FormatUint(n, 10) == number {
		return name, n
	}
	return keptAs, 0
}

// checkSealed refuses what somebody could still change.
func checkSealed(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("no regular file (mode %#o)", st.Mode)
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("no memfd: %w", err)
	}
	if seals&allSeals != allSeals {
		return fmt.Errorf("not sealed (seals %#x)", seals)
	}
	return nil
}

// reopen gives a file description of its own, for reading only.
func reopen(f *os.File) (*os.File, error) {
	var fd int
	err := call("reopen", func() (err error) {
		fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "memfd", Err: err}
	}
	return os.NewFile(uintptr(fd), memfdName), nil
}

// Kind is KindMemfd.
func (m *Memfd) Kind() string { return KindMemfd }

// Path is words: memfds have no place.
func (m *Memfd) Path() string { return "sealed memory without a name" }

// Create reserves size bytes of memory. Errors: *NoSpaceError, *FullError.
func (m *Memfd) Create(size int64) (*Writer, error) {
	if size <= 0 {
		return nil, fmt.Errorf("a segment of %d bytes cannot be made", size)
	}
	if err := m.checkRoom(); err != nil {
		return nil, err
	}
	f, err := newMemfd(size)
	if err != nil {
		return nil, err
	}
	return &Writer{f: f, size: size, publish: m.publish}, nil
}

// putFiles is how many descriptors a put adds at most: segment, table, and the catalog's next generation.
const putFiles = 3

func (m *Memfd) checkRoom() error {
	if m.keeper == nil {
		return nil
	}
	if room := m.keeper.Room(); room < putFiles {
		return &FullError{
			What: "descriptors of the service manager's store", Need: putFiles, Have: uint64(max(0, room)),
			Fix: "raise FileDescriptorStoreMax= in the daemon's unit",
		}
	}
	return nil
}

// newMemfd makes a memfd with every page allocated. A size that only swap or an OOM kill could satisfy is not found out here:
// there is no file system that says no, so admission has to have asked before.
func newMemfd(size int64) (*os.File, error) {
	var fd int
	err := call("memfd", func() (err error) {
		const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
		if fd, err = unix.MemfdCreate(memfdName, flags|unix.MFD_NOEXEC_SEAL); errors.Is(err, unix.EINVAL) { // before Linux 6.3
			fd, err = unix.MemfdCreate(memfdName, flags)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), memfdName)
	if err := reserve(f, size, kernelHuge()); err != nil {
		f.Close()
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EFBIG) || errors.Is(err, unix.ENOMEM) {
			_, free := Memory()
			return nil, &NoSpaceError{Dir: KindMemfd, Need: uint64(size), Have: free}
		}
		return nil, fmt.Errorf("reserve %d bytes: %w", size, err)
	}
	return f, nil
}

// seal makes a memfd unchangeable, for this process too. It is EBUSY while anybody has it mapped for writing.
func seal(f *os.File) error {
	if err := call("chmod", func() error { return f.Chmod(0o400) }); err != nil {
		return err
	}
	return call("seal", func() error {
		_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals)
		return err
	})
}

func (m *Memfd) publish(f *os.File, name string, over bool) error {
	if err := seal(f); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	own, err := reopen(f)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] != nil {
		if over {
			return m.replaceLocked(name, own)
		}
		own.Close()
		return unix.EEXIST
	}
	if err := m.keep(name, own); err != nil {
		own.Close()
		return err
	}
	m.files[name] = &memFile{f: own, keptAs: name}
	return nil
}

func (m *Memfd) keep(name string, f *os.File) error {
	if m.keeper == nil {
		return nil
	}
	return call("keep", func() error { return m.keeper.Keep(name, f) })
}

func (m *Memfd) drop(name string) error {
	if m.keeper == nil {
		return nil
	}
	return call("drop", func() error { return m.keeper.Drop(name) })
}

// Open gives a file description of its own.
func (m *Memfd) Open(name string) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.files[name]
	if have == nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
	}
	return reopen(have.f)
}

// Remove lets go of a file, here and at the keeper.
func (m *Memfd) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.files[name]
	if have == nil {
		return nil
	}
	if err := m.drop(have.keptAs); err != nil {
		return err
	}
	delete(m.files, name)
	return have.f.Close()
}

// ReplaceFile keeps the new bytes as the next generation, waits until they and everything published before are with the
// keeper, and only then drops the old ones: when it returns, all that the file names survives this process.
func (m *Memfd) ReplaceFile(name string, b []byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	if strings.Contains(name, ".") || len(b) == 0 {
		return fmt.Errorf("%q with %d bytes cannot be replaced", name, len(b))
	}
	f, err := newMemfd(int64(len(b)))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := writeStep(b, func(p []byte) (int, error) { return f.WriteAt(p, 0) }); err != nil {
		return err
	}
	if err := seal(f); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	own, err := reopen(f)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.replaceLocked(name, own)
}

// replaceLocked makes own the next generation of a name. It owns the file.
func (m *Memfd) replaceLocked(name string, own *os.File) error {
	m.last[name]++
	next := &memFile{f: own, generation: m.last[name]}
	old := m.files[name]
	next.keptAs = name + "." + strconv.FormatUint(next.generation, 10)
	err := m.keep(next.keptAs, own)
	if err == nil && m.keeper != nil {
		err = call("sync", m.keeper.Sync)
	}
	if err != nil {
		// Whether it arrived is unknown. The old generation must win at the next start, so this one has to go.
		own.Close()
		return errors.Join(err, m.drop(next.keptAs))
	}
	m.files[name] = next
	if old != nil {
		m.retireLocked(old)
	}
	return nil
}

// Names lists what is published.
func (m *Memfd) Names() ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, 0, len(m.files))
	for n := range m.files {
		names = append(names, n)
	}
	return names, nil
}

// Space is the machine's memory: no file system limits memfds.
func (m *Memfd) Space() (Space, error) {
	var s Space
	s.Size, s.Free = Memory()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, have := range m.files {
		u, err := UsageOf(have.f)
		if err != nil {
			return Space{}, err
		}
		s.Linked += u.Blocks
	}
	return s, nil
}

// Guarantee is the strongest there is; whether files survive depends on the keeper.
func (m *Memfd) Guarantee() Guarantee {
	return Guarantee{
		OtherUIDs: ReachNever, SameUID: ReachNever, Root: ReachNever,
		SurvivesRestart: m.keeper != nil, HugePages: kernelHuge(), Swap: MachineSwap(),
	}
}

// kernelHuge tells whether memfds get pages of 2 MiB from fallocate, which is a setting of the machine.
func kernelHuge() bool {
	b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
	if err != nil {
		return false
	}
	s := string(b)
	return strings.Contains(s, "[always]") || strings.Contains(s, "[within_size]") || strings.Contains(s, "[force]")
}

// Destroy drops expendable files when there are no others.
func (m *Memfd) Destroy(expendable ...string) error { return destroy(m, expendable) }

// Close lets go of every file. The keeper still has them.
func (m *Memfd) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	for _, have := range m.files {
		err = errors.Join(err, have.f.Close())
	}
	clear(m.files)
	return err
}
