package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/oci"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// host is a machine of a test: shared memory that a reboot empties, and a disk that it does not.
type host struct {
	t    testing.TB
	opt  Options
	boot int
	log  *observer.ObservedLogs
}

func newHost(t testing.TB) *host {
	h := &host{t: t, opt: Options{Dir: testPath(t), Data: filepath.Join(t.TempDir(), "data"), BootID: "boot-0", Grace: time.Millisecond}}
	core, log := observer.New(zapcore.InfoLevel)
	h.log, h.opt.Log = log, zap.New(core)
	return h
}

func (h *host) open() *Store {
	h.t.Helper()
	s, err := Open(h.opt)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { s.Close() })
	s.work.Wait()
	return s
}

// reboot empties shared memory, as a machine does that is started anew. The store must be closed.
func (h *host) reboot() {
	h.t.Helper()
	h.boot++
	h.opt.BootID = fmt.Sprintf("boot-%d", h.boot)
	if err := os.RemoveAll(h.opt.Dir); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) restart(s *Store) *Store {
	h.t.Helper()
	if err := s.Close(); err != nil {
		h.t.Fatal(err)
	}
	return h.open()
}

func (h *host) loads() int { return h.log.FilterMessage("loaded from disk").Len() }

func (h *host) fsck() {
	h.t.Helper()
	r, err := oci.Check(context.Background(), h.opt.Data, oci.Options{})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, f := range r.Findings {
		if !f.Note {
			h.t.Errorf("on disk: %+v", f)
		}
	}
}

func state(t testing.TB, s *Store, target string) VersionInfo {
	t.Helper()
	info, err := s.Show(target)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func bigRows(seed uint64) []row {
	return []row{{"big", 256 << 10, seed}, {"same", 128 << 10, 7}, {"small", 100, seed}}
}

// After a reboot nothing is in memory, all is on disk, and an attach brings it back byte for byte.
func TestCase25Reboot(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a, b := sealed(t, draft(bigRows(1)...)), sealed(t, draft(bigRows(2)...))
	put(t, s, "a", a)
	put(t, s, "b", b)
	if _, _, err := s.Tag("a", "a:prod", false); err != nil {
		t.Fatal(err)
	}
	if i := state(t, s, "a"); !i.Resident || !i.OnDisk {
		t.Errorf("after the put: %+v", i)
	}
	before, err := s.List("", false)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	h.reboot()
	s = h.open()
	after, err := s.List("", false)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range after {
		if v.Resident || !v.OnDisk || len(v.Segments) > 0 {
			t.Errorf("after the reboot %+v", v)
		}
		w := before[i]
		if v.Name != w.Name || fmt.Sprint(v.Tags) != fmt.Sprint(w.Tags) || v.Digest != w.Digest || v.Tensors != w.Tensors || v.TensorBytes != w.TensorBytes || v.Kind != w.Kind || !v.Created.Equal(w.Created) {
			t.Errorf("before the reboot %+v, after it %+v", w, v)
		}
	}
	if st, err := s.Status(); err != nil || st.Cold != 2 || st.Versions != 2 || st.Used != 0 || !strings.Contains(st.Durability, "on disk in "+h.opt.Data) {
		t.Errorf("status %+v, %v", st, err)
	}
	readBack(t, s, "a:prod", a)
	readBack(t, s, "b", b)
	if i := state(t, s, "a"); !i.Resident {
		t.Errorf("after an attach: %+v", i)
	}
	s.mu.Lock()
	o := s.ownerLocked(tableFile(a.Digest))
	s.mu.Unlock()
	if o != (owner{0, true}) {
		t.Errorf("owner after the reboot: %+v", o)
	}
	// The automatic tags go on counting.
	if res := put(t, s, "a", sealed(t, draft(bigRows(3)...))); fmt.Sprint(res.Version.Tags) != "[v2 latest]" {
		t.Errorf("tags of the next put: %v", res.Version.Tags)
	}
	// What stays where a reboot leaves files behind (no tmpfs) is not believed.
	s.Close()
	h.opt.BootID = "another boot"
	s = h.open()
	if i := state(t, s, "b"); i.Resident {
		t.Error("files of another boot were taken for memory of this one")
	}
	readBack(t, s, "b", b)
}

// A restart without a reboot finds everything in memory still, and reads nothing from disk.
func TestRestartKeepsMemory(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	s = h.restart(s)
	if i := state(t, s, "a"); !i.Resident || !i.OnDisk {
		t.Errorf("%+v", i)
	}
	readBack(t, s, "a", a)
	if h.loads() != 0 {
		t.Error("it was loaded from disk")
	}
}

func TestOneLoadForManyAttaches(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	s.Close()
	h.reboot()
	s = h.open()
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() { readBack(t, s, "a", a) })
	}
	wg.Wait()
	if n := h.loads(); n != 1 {
		t.Errorf("%d loads for 32 attaches", n)
	}
	if st, _ := s.Status(); st.Segments != 1 || st.Leases != 0 {
		t.Errorf("status %+v", st)
	}
}

// flipBlob changes a byte of the blob of a row's bytes on disk.
func flipBlob(t testing.TB, dir string, d manifest.Digest) {
	t.Helper()
	name := filepath.Join(dir, "blobs", "sha256", d.Hex())
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A blob that is damaged on disk is never served, and a put of the same model writes it again.
func TestDamagedBlobIsNamedAndRepaired(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	s.Close()
	h.reboot()
	flipBlob(t, h.opt.Data, a.Manifest.Tensors[0].SHA256) // "big"
	s = h.open()
	for range 2 {
		_, _, err := s.Attach("a", Holder{})
		if !errors.Is(err, zcerr.Corrupt) || !strings.Contains(err.Error(), `tensor "big"`) || !strings.Contains(zcerr.HintOf(err), "put the model again") {
			t.Fatalf("attach: %v; %s", err, zcerr.HintOf(err))
		}
	}
	if st, _ := s.Status(); st.Used != 0 || st.Damaged != 1 {
		t.Errorf("status %+v", st)
	}
	if res := put(t, s, "a", a); res.Existed {
		t.Error("the damaged version counts as stored")
	}
	readBack(t, s, "a", a)
	s.Close()
	h.fsck()
	h.reboot()
	s = h.open()
	readBack(t, s, "a", a)
}

func TestPutOfAColdVersionSendsNothing(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	s.Close()
	h.reboot()
	s = h.open()
	p, err := s.BeginPut("again", false, a.Encoded)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	if !p.Existed() || p.WantedBytes() != 0 {
		t.Errorf("existed %v, wants %d bytes", p.Existed(), p.WantedBytes())
	}
	if _, err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	readBack(t, s, "again", a)
}

// budgeted is a host with room for two versions of big and not for three.
func budgeted(t testing.TB) (*host, *Store) {
	h := newHost(t)
	s := h.open()
	put(t, s, "probe", sealed(t, draft(row{"big", 256 << 10, 99})))
	st, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove("probe", false); err != nil {
		t.Fatal(err)
	}
	s.Close()
	h.opt.MaxBytes = st.Used*2 + st.Used/2
	return h, h.open()
}

func one(seed uint64) *manifest.Draft { return draft(row{"big", 256 << 10, seed}) }

func TestLeastRecentlyUsedIsEvicted(t *testing.T) {
	_, s := budgeted(t)
	a, b, c := sealed(t, one(1)), sealed(t, one(2)), sealed(t, one(3))
	put(t, s, "a", a)
	put(t, s, "b", b)
	readBack(t, s, "a", a) // b is the older one now
	put(t, s, "c", c)
	for name, want := range map[string]bool{"a": true, "b": false, "c": true} {
		if got := state(t, s, name).Resident; got != want {
			t.Errorf("%s resident: %v", name, got)
		}
	}
	// Held versions stay, and a load evicts as a put does.
	la, files, err := s.Attach("a", Holder{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, files, a)
	readBack(t, s, "b", b)
	if state(t, s, "c").Resident || !state(t, s, "a").Resident {
		t.Error("the load evicted the wrong one")
	}
	lb, files, err := s.Attach("b", Holder{})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, files, b)
	_, _, err = s.Attach("c", Holder{})
	if !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("attach with everything held: %v", err)
	}
	if _, err := putErr(s, "d", false, sealed(t, one(4))); !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("put with everything held: %v", err)
	}
	if !state(t, s, "a").Resident || !state(t, s, "b").Resident {
		t.Error("a version that somebody holds was evicted, for nothing: its pages stay")
	}
	s.Release(la.ID)
	readBack(t, s, "c", c)
	s.Release(lb.ID)
}

// The daemon does not remember over a restart what was used when; the oldest version goes first then.
func TestOldestIsEvictedAfterAStart(t *testing.T) {
	for range 5 { // maps have another order each time
		h, s := budgeted(t)
		put(t, s, "a", sealed(t, one(1)))
		time.Sleep(2 * time.Millisecond) // the catalog's times are milliseconds
		put(t, s, "b", sealed(t, one(2)))
		s = h.restart(s)
		put(t, s, "c", sealed(t, one(3)))
		if state(t, s, "a").Resident || !state(t, s, "b").Resident {
			t.Fatal("the newer version was evicted")
		}
	}
}

// A put that would not fit anyway evicts nothing.
func TestNothingIsEvictedInVain(t *testing.T) {
	_, s := budgeted(t)
	put(t, s, "a", sealed(t, one(1)))
	put(t, s, "b", sealed(t, one(2)))
	if _, err := putErr(s, "huge", false, sealed(t, draft(row{"x", 4 << 20, 1}))); !errors.Is(err, zcerr.NoSpace) {
		t.Fatal(err)
	}
	if !state(t, s, "a").Resident || !state(t, s, "b").Resident {
		t.Error("versions were evicted for a put that does not fit")
	}
}

func TestPinnedStaysAndComesBack(t *testing.T) {
	h, s := budgeted(t)
	a, b, c := sealed(t, one(1)), sealed(t, one(2)), sealed(t, one(3))
	put(t, s, "a", a)
	put(t, s, "b", b)
	if info, err := s.Pin("a", false); err != nil || !info.Pinned || !info.Resident {
		t.Fatal(info, err)
	}
	put(t, s, "c", c)
	if !state(t, s, "a").Resident || state(t, s, "b").Resident {
		t.Error("the pinned one was evicted")
	}
	s.Close()
	h.reboot()
	s = h.open() // waits for what the start does beside
	if i := state(t, s, "a"); !i.Resident || !i.Pinned {
		t.Errorf("after a reboot: %+v", i)
	}
	if info, err := s.Pin("b", false); err != nil || !info.Resident {
		t.Errorf("pin of a cold one: %+v, %v", info, err)
	}
	if _, err := s.Pin("c", false); !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("a third pin: %v", err)
	}
	if info, err := s.Pin("a", true); err != nil || info.Pinned {
		t.Fatal(info, err)
	}
	readBack(t, s, "c", c)
	if state(t, s, "a").Resident {
		t.Error("the unpinned one stayed")
	}
	if _, err := s.Pin("none", false); !errors.Is(err, zcerr.NotFound) {
		t.Error(err)
	}
}

// For a while after a start nothing is evicted: its workers have not taken their leases anew yet.
func TestGraceAfterAStart(t *testing.T) {
	h, s := budgeted(t)
	a, b := sealed(t, one(1)), sealed(t, one(2))
	put(t, s, "a", a)
	put(t, s, "b", b)
	s.Close()
	h.opt.Grace = 400 * time.Millisecond
	s = h.open()
	done := make(chan error, 1)
	go func() {
		_, err := putErr(s, "c", false, sealed(t, one(3)))
		done <- err
	}()
	l, files, err := s.Attach("a", Holder{}) // a worker that comes back within the grace
	if err != nil {
		t.Fatal(err)
	}
	compare(t, files, a)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if time.Since(s.started) < h.opt.Grace {
		t.Error("the put did not wait")
	}
	if !state(t, s, "a").Resident || state(t, s, "b").Resident {
		t.Error("the worker's version was evicted")
	}
	s.Release(l.ID)
}

func TestRemoveFreesTheDisk(t *testing.T) {
	h := newHost(t)
	s := h.open()
	empty, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", sealed(t, draft(bigRows(1)...)))
	put(t, s, "b", sealed(t, draft(bigRows(2)...)))
	s.Close()
	h.reboot()
	s = h.open()
	if r, err := s.Remove("a", false); err != nil || len(r.Versions) != 1 {
		t.Fatal(r, err)
	}
	if _, err := s.Show("a"); !errors.Is(err, zcerr.NotFound) {
		t.Error(err)
	}
	if _, err := s.Remove("b", false); err != nil {
		t.Fatal(err)
	}
	if st, _ := s.Status(); st.Data.Bytes != empty.Data.Bytes || st.Models != 0 || st.Versions != 0 {
		t.Errorf("%d bytes on disk, %d when it was empty; %+v", st.Data.Bytes, empty.Data.Bytes, st)
	}
	s.Close()
	h.fsck()
}

// What a memory-only daemon had stored is written to disk when it is first started with a data directory.
func TestMemoryOnlyVersionsAreTakenOver(t *testing.T) {
	h := newHost(t)
	data := h.opt.Data
	h.opt.Data = ""
	s := h.open()
	a, b := sealed(t, draft(bigRows(1)...)), sealed(t, draft(bigRows(2)...))
	put(t, s, "a", a)
	put(t, s, "a", b)
	if st, _ := s.Status(); !strings.Contains(st.Durability, "memory only") {
		t.Errorf("durability %q", st.Durability)
	}
	s.Close()
	h.opt.Data = data
	s = h.open()
	if st, _ := s.Status(); st.Unwritten != 0 || st.Versions != 2 {
		t.Errorf("status %+v", st)
	}
	s.Close()
	h.reboot()
	s = h.open()
	readBack(t, s, "a:v1", a)
	readBack(t, s, "a", b)
	// Back to memory only: what is not in memory says where it is.
	s.Close()
	h.reboot()
	s = h.open()
	readBack(t, s, "a:v1", a)
	if _, _, err := s.Tag("a:v1", "a:x", false); err != nil { // so that the catalog in memory is written
		t.Fatal(err)
	}
	s.Close()
	h.opt.Data = ""
	s = h.open()
	readBack(t, s, "a:v1", a)
	_, _, err := s.Attach("a", Holder{})
	if !errors.Is(err, zcerr.Corrupt) || !strings.Contains(err.Error(), data) {
		t.Errorf("attach of what is only on disk: %v", err)
	}
}

// Files of memory that go away under a daemon with a disk are loaded again; without one the version says why it is not served,
// and a put repairs it. Whoever had them mapped keeps valid bytes.
func TestCase28SegmentsRemovedUnderUs(t *testing.T) {
	for _, durable := range []bool{true, false} {
		for _, prefix := range []string{segmentPrefix, tablePrefix} {
			t.Run(fmt.Sprintf("durable=%v,%s", durable, prefix), func(t *testing.T) {
				h := newHost(t)
				if !durable {
					h.opt.Data = ""
				}
				s := h.open()
				a, b := sealed(t, draft(bigRows(1)...)), sealed(t, draft(append(bigRows(1), row{"more", 300, 5})...))
				put(t, s, "a", a)
				put(t, s, "b", b) // shares a's segment
				l, files, err := s.Attach("a", Holder{})
				if err != nil {
					t.Fatal(err)
				}
				names, err := filepath.Glob(filepath.Join(h.opt.Dir, prefix+"*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range names {
					if err := os.Remove(n); err != nil {
						t.Fatal(err)
					}
				}
				compare(t, files, a) // of before the removal
				if durable {
					readBack(t, s, "a", a)
					readBack(t, s, "b", b)
				} else {
					for _, name := range []string{"a", "b", "a"} {
						_, _, err := s.Attach(name, Holder{})
						if !errors.Is(err, zcerr.Corrupt) || !strings.Contains(err.Error(), "removed behind the daemon's back") {
							t.Errorf("attach %s: %v", name, err)
						}
					}
					if res := put(t, s, "a", a); res.Existed {
						t.Error("a version without files counts as stored")
					}
					readBack(t, s, "a", a)
				}
				s.Release(l.ID)
				s = h.restart(s)
				readBack(t, s, "a", a)
			})
		}
	}
}

// One changed bit anywhere in a segment's tensors is found by verify and not served; the disk brings the right bytes back.
func TestCase30BitFlips(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	const flips = 200
	for i := range flips {
		l, files, err := s.Attach("a", Holder{})
		if err != nil {
			t.Fatal(err)
		}
		s.Release(l.ID)
		for _, f := range files {
			f.Close()
		}
		d := a.Manifest.Tensors[i%3]
		name, off := s.placeOf(t, a.Digest, i%3)
		flipBit(t, filepath.Join(h.opt.Dir, name), off+int64(i*7919%d.Bytes()), byte(1)<<(i%8))
		v, err := s.Verify(context.Background(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Damaged) != 1 || v.Damaged[0] != d.Names[0] {
			t.Fatalf("flip %d in %q: verify found %q", i, d.Names[0], v.Damaged)
		}
		if state(t, s, "a").Resident {
			t.Fatal("a damaged version is still served from memory")
		}
	}
	readBack(t, s, "a", a)
	if n := h.loads(); n != flips {
		t.Errorf("%d loads after %d flips", n, flips)
	}
	t.Logf("%d of %d flips found", flips, flips)
}

// placeOf is the file and the offset of a row.
func (s *Store) placeOf(t testing.TB, d manifest.Digest, row int) (file string, off int64) {
	t.Helper()
	s.mu.Lock()
	v := s.versions[d]
	s.mu.Unlock()
	_, locs, err := s.readTable(v)
	if err != nil {
		t.Fatal(err)
	}
	return v.segs[locs[row].Segment].file(), int64(locs[row].Offset)
}

func flipBit(t testing.TB, name string, off int64, bit byte) {
	t.Helper()
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := []byte{0}
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= bit
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// On a full disk a put is refused with what it needs and what there is; attaches and removes go on.
func TestCase33DiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts small file systems as the disk")
	}
	for name, mount := range map[string]func(t *testing.T, dir string){"tmpfs": smallTmpfs, "ext4": smallExt4} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if err := os.Mkdir(h.opt.Data, 0o700); err != nil {
				t.Fatal(err)
			}
			mount(t, h.opt.Data)
			defer func() {
				if err := unix.Unmount(h.opt.Data, 0); err != nil {
					t.Error(err)
				}
			}()
			s := h.open()
			defer s.Close()
			if strings.Contains(s.Durability(), "tmpfs") != (name == "tmpfs") {
				t.Errorf("durability on %s: %q", name, s.Durability())
			}
			diskFull(t, h, s)
		})
	}
}

func smallTmpfs(t *testing.T, dir string) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=700"); err != nil {
		t.Skipf("mount: %v", err)
	}
}

func smallExt4(t *testing.T, dir string) {
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 8<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "1024", "-m", "0", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("mount on a loop device: %v\n%s", err, out)
	}
}

func diskFull(t *testing.T, h *host, s *Store) {
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	_, err := putErr(s, "b", false, sealed(t, draft(row{"x", 9 << 20, 1})))
	if !errors.Is(err, zcerr.NoSpace) || !strings.Contains(err.Error(), "needed") || !strings.Contains(err.Error(), "free in the data directory") || zcerr.HintOf(err) == "" {
		t.Errorf("put: %v; %s", err, zcerr.HintOf(err))
	}
	// The last byte goes to somebody else, so that not even an index fits.
	fill(t, filepath.Join(h.opt.Data, "somebody-elses"))
	if _, err := putErr(s, "c", false, sealed(t, draft(row{"x", 10, 1}))); !errors.Is(err, zcerr.NoSpace) {
		t.Errorf("put: %v", err)
	}
	readBack(t, s, "a", a)
	if _, err := s.Remove("a", false); err != nil {
		t.Fatalf("remove on a full disk: %v", err)
	}
	if st, err := s.Status(); err != nil || st.Data.ReadOnly != "" || st.Models != 0 {
		t.Errorf("status %+v, %v", st, err)
	}
	put(t, s, "d", sealed(t, draft(row{"x", 200 << 10, 1}))) // in the room that the remove made
}

func fill(t testing.TB, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(bytes.Repeat([]byte{1}, 4096)); err != nil {
			return
		}
	}
}

// After a failed fsync nothing is written to the disk any more, however often the kernel then says that all is well.
func TestCase34FsyncFails(t *testing.T) {
	for _, step := range []string{"disk.blob.sync", "disk.blob.syncdir", "disk.index.sync", "disk.index.syncdir"} {
		t.Run(step, func(t *testing.T) {
			h := newHost(t)
			s := h.open()
			a, b := sealed(t, draft(bigRows(1)...)), sealed(t, draft(bigRows(2)...))
			put(t, s, "a", a)
			restore := failpoint.Set(func(name string) error {
				if name == step {
					return unix.EIO
				}
				return nil
			})
			_, err := putErr(s, "b", false, b)
			restore()
			if !errors.Is(err, unix.EIO) || !strings.Contains(zcerr.HintOf(err), "restart") {
				t.Errorf("put: %v; %s", err, zcerr.HintOf(err))
			}
			if _, err := s.Show("b"); !errors.Is(err, zcerr.NotFound) {
				t.Errorf("what was not acknowledged is shown: %v", err)
			}
			if _, err := putErr(s, "b", false, b); err == nil {
				t.Error("the disk is trusted again")
			}
			if _, err := s.Remove("a", false); err == nil {
				t.Error("removed from a disk that is not trusted")
			}
			if st, _ := s.Status(); st.Data.ReadOnly == "" || !strings.Contains(st.Durability, "read-only") {
				t.Errorf("status %+v", st)
			}
			readBack(t, s, "a", a)
			s.Close()
			h.reboot()
			s = h.open()
			readBack(t, s, "a", a)
			put(t, s, "c", b)
			readBack(t, s, "c", b)
			s.Close()
			h.fsck()
		})
	}
}

// Every step of a put and of a remove fails in turn: what is named is whole, in memory, after a restart and after a reboot.
func TestEveryStepOfTheDurableTierFails(t *testing.T) {
	for n := 1; ; n++ {
		h := newHost(t)
		s := h.open()
		a, b := sealed(t, draft(bigRows(1)...)), sealed(t, draft(bigRows(2)...))
		put(t, s, "a", a)
		var step string
		at := failpoint.At(n, func(name string) error { step = name; return unix.EIO })
		restore := failpoint.Set(at.Listen)
		_, perr := putErr(s, "b", false, b)
		var rerr error
		if perr == nil {
			_, rerr = s.Remove("a", false)
		}
		restore()
		check := func(when string) {
			t.Helper()
			list, err := s.List("", false)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, v := range list {
				seen[v.Name] = true
				readBack(t, s, v.Name, map[string]*manifest.Sealed{"a": a, "b": b}[v.Name])
			}
			if (perr == nil && !seen["b"]) || (!seen["a"] && rerr != nil && when == "now") || (perr != nil && !seen["a"]) {
				t.Errorf("step %d (%s), %s: put %v, remove %v, there is %v", n, step, when, perr, rerr, seen)
			}
		}
		check("now")
		s = h.restart(s)
		check("after a restart")
		s.Close()
		h.reboot()
		s = h.open()
		check("after a reboot")
		s.Close()
		h.fsck()
		if !at.Hit() {
			t.Logf("%d steps", n-1)
			break
		}
	}
}

// An error while a version is loaded says nothing about its bytes: it is no damage, and the next attach tries again.
func TestEveryStepOfALoadFails(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	for _, fault := range []error{unix.EIO, unix.EMFILE} {
		seen := map[string]bool{}
		for n := 1; ; n++ {
			s.evict(t, a.Digest)
			var step string
			at := failpoint.At(n, func(name string) error { step = name; return fault })
			restore := failpoint.Set(at.Listen)
			l, files, err := s.Attach("a", Holder{})
			restore()
			for _, f := range files {
				f.Close()
			}
			if err == nil {
				s.Release(l.ID)
			} else if zcerr.KindOf(err) == zcerr.Corrupt || zcerr.HintOf(err) == "" {
				t.Errorf("%v at step %d (%s): %v (%v); %s", fault, n, step, err, zcerr.KindOf(err), zcerr.HintOf(err))
			}
			readBack(t, s, "a", a)
			if !at.Hit() {
				break
			}
			seen[step] = true
		}
		if !seen["disk.open"] || !seen["disk.read"] {
			t.Errorf("steps %v", seen)
		}
	}
}

// A version that is whole in memory and damaged on disk is written again at the next start.
func TestDamageOnDiskIsRepairedFromMemory(t *testing.T) {
	h := newHost(t)
	s := h.open()
	a := sealed(t, draft(bigRows(1)...))
	put(t, s, "a", a)
	blobs := filepath.Join(h.opt.Data, "blobs", "sha256")
	list, err := os.ReadDir(blobs)
	if err != nil {
		t.Fatal(err)
	}
	image := a.Digest // of the largest of the small JSON blobs, but the manifest: found by what it says
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(blobs, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(`"layers"`)) {
			if image, err = manifest.ParseDigest("sha256:" + e.Name()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, spoil := range map[string]func(){
		"image manifest flipped": func() { flipBlob(t, h.opt.Data, image) },
		"tensor missing":         func() { must(t, os.Remove(filepath.Join(blobs, a.Manifest.Tensors[0].SHA256.Hex()))) },
		"manifest cut":           func() { must(t, os.Truncate(filepath.Join(blobs, a.Digest.Hex()), 9)) },
	} {
		s.Close()
		spoil()
		s = h.open()
		if st, err := s.Status(); err != nil || st.Unwritten != 0 || st.Damaged != 0 {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
		s.Close()
		h.fsck()
		s = h.open()
		readBack(t, s, "a", a)
	}
}

// A put that is open shares bytes of a version: they stay in memory, although nobody holds that version.
func TestBytesThatAPutSharesAreNotEvicted(t *testing.T) {
	h := newHost(t)
	s := h.open()
	shared := row{"shared", 256 << 10, 1}
	put(t, s, "m", sealed(t, draft(shared)))
	evictable := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.evictableLocked())
	}
	if n := evictable(); n != 1 {
		t.Fatalf("%d may be evicted, one is stored", n)
	}
	p, err := s.Begin(PutSpec{Ref: "n", Manifest: sealed(t, draft(shared, row{"own", 256 << 10, 2})).Encoded})
	if err != nil {
		t.Fatal(err)
	}
	if n := evictable(); n != 0 {
		t.Error("what an open put shares may be evicted")
	}
	p.Abort()
	if n := evictable(); n != 1 {
		t.Errorf("after the put %d may be evicted", n)
	}
}
