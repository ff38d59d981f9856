package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/models/manifest"
)

// rowsOf makes n rows of size bytes, whose content is that of seed and their number.
func rowsOf(prefix string, n, size int, seed uint64) []row {
	var out []row
	for i := range n {
		out = append(out, row{fmt.Sprintf("%s%02d", prefix, i), size, seed + uint64(i)})
	}
	return out
}

// settledStore waits until the compactor has nothing to do.
func settledStore(t testing.TB, s *Store) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		dead := false
		s.mu.Lock()
		for sg, live := range s.liveLocked() { // also while one is being moved, which mostlyDeadLocked leaves out
			dead = dead || sg.use.Size > 2*live+compactFrom
		}
		s.mu.Unlock()
		if !dead {
			return
		}
		if time.Now().After(end) {
			t.Fatal("mostly dead bytes stay pinned")
		}
	}
}

func TestMostlyDeadSegmentsAreCompacted(t *testing.T) {
	path := testPath(t)
	s := open(t, path)
	old := sealed(t, draft(rowsOf("w", 20, 256<<10, 1)...))
	put(t, s, "m:old", old)
	// Both share 3 of the 20, of which 2 are the same, and have something small of their own.
	shares := func(name string, from int) *manifest.Sealed {
		rows := slices.Clone(rowsOf("w", 20, 256<<10, 1)[from : from+3])
		return sealed(t, draft(append(rows, row{name, 100, 9})...))
	}
	a, b := shares("a", 0), shares("b", 1)
	put(t, s, "m:a", a)
	put(t, s, "m:b", b)
	s.mu.Lock()
	shared := len(s.segments) == 3 // the first, and two with the small ones
	s.mu.Unlock()
	if !shared {
		t.Fatal("the versions do not share the first segment")
	}

	l, files, err := s.Attach("m:a", Holder{PID: 1})
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	rm, err := s.Remove("m:old", false)
	if err != nil {
		t.Fatal(err)
	}
	if rm.Pinned < 20*256<<10 {
		t.Errorf("pinned %d bytes, the segment has %d", rm.Pinned, 20*256<<10)
	}
	settledStore(t, s)
	after, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	// Four tensors are alive, and the lease on a holds the old segment.
	if saved := int64(before.Used) - int64(after.Used); saved < 15*256<<10 {
		t.Errorf("used %d bytes before and %d after", before.Used, after.Used)
	}
	if after.Held < 20*256<<10 {
		t.Errorf("held %d bytes; a lease has the old segment mapped", after.Held)
	}
	infos, err := s.List("m", true)
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 2 || infos[0].Deleted || infos[0].Holders != 1 {
		t.Errorf("list after compaction: %+v", infos)
	}
	if h := s.Holders(""); len(h) != 1 || h[0].Deleted {
		t.Errorf("holders after compaction: %+v", h)
	}
	compare(t, files, a) // of before
	readBack(t, s, "m:a", a)
	readBack(t, s, "m:b", b)
	s.Release(l.ID)
	if st, err := s.Status(); err != nil || st.Held != 0 {
		t.Errorf("held %d bytes after the last release (%v)", st.Held, err)
	}

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	readBack(t, s, "m:a", a)
	readBack(t, s, "m:b", b)
	if got := put(t, s, "m:again", old); got.Shared != 4*256<<10 {
		t.Errorf("a put shares %d bytes with the compacted versions, want four tensors", got.Shared)
	}
}

// An error that passes is no damage: the version is served, and the next occasion compacts.
func TestCompactionSurvivesAPassingError(t *testing.T) {
	s := open(t, testPath(t))
	put(t, s, "m:old", sealed(t, draft(rowsOf("w", 20, 256<<10, 1)...)))
	a := sealed(t, draft(rowsOf("w", 3, 256<<10, 1)...))
	put(t, s, "m:a", a)
	failed := make(chan struct{}, 100)
	var opens atomic.Int32
	restore := failpoint.Set(func(step string) error {
		if step == "open" && opens.Add(1) > 1 { // the table opens, the segment does not
			failed <- struct{}{}
			return unix.EMFILE
		}
		return nil
	})
	defer restore()
	if _, err := s.Remove("m:old", false); err != nil {
		t.Fatal(err)
	}
	<-failed
	restore()
	readBack(t, s, "m:a", a)
	s.wakeCompactor()
	settledStore(t, s)
	readBack(t, s, "m:a", a)
}

func TestDamageIsNotCompacted(t *testing.T) {
	s := open(t, testPath(t))
	put(t, s, "m:old", sealed(t, draft(rowsOf("w", 20, 256<<10, 1)...)))
	put(t, s, "m:a", sealed(t, draft(rowsOf("w", 3, 256<<10, 1)...)))
	s.mu.Lock()
	at := s.content[sealed(t, draft(rowsOf("w", 1, 256<<10, 1)...)).Manifest.Tensors[0].SHA256]
	s.mu.Unlock()
	flip(t, s, at.seg.file(), int64(at.offset)+77)
	if _, err := s.Remove("m:old", false); err != nil {
		t.Fatal(err)
	}
	settledStore(t, s)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, _, err := s.Attach("m:a", Holder{}); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a damaged tensor was copied and is served")
		}
	}
}

// flip changes one bit of a stored file, as its owner can.
func flip(t testing.TB, s *Store, name string, at int64) {
	t.Helper()
	path := filepath.Join(s.Dir(), name)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// Versions that share what lies in a dead segment share it after compaction, too: the first one moves it, the others find it.
func TestCompactionCopiesWhatIsSharedOnce(t *testing.T) {
	for range 3 {
		s := open(t, testPath(t))
		shared := rowsOf("w", 3, 256<<10, 1)
		put(t, s, "m:old", sealed(t, draft(rowsOf("w", 10, 256<<10, 1)...)))
		for i := range 6 {
			put(t, s, fmt.Sprintf("m:%d", i), sealed(t, draft(append(slices.Clone(shared), row{"own", 100, uint64(90 + i)})...)))
		}
		if _, err := s.Remove("m:old", false); err != nil {
			t.Fatal(err)
		}
		settledStore(t, s)
		s.mu.Lock()
		places := map[manifest.Digest]map[place]bool{}
		for _, v := range s.versions {
			for _, r := range v.rows {
				if places[r.sum] == nil {
					places[r.sum] = map[place]bool{}
				}
				places[r.sum][r.place] = true
			}
		}
		s.mu.Unlock()
		for sum, at := range places {
			if len(at) != 1 {
				t.Errorf("%s is stored %d times", sum.Short(), len(at))
			}
		}
		s.Close()
	}
}

// A compaction is failed at its first step, its second, and so on, until it meets no fault. Each time everything is served as
// before, nothing is left over, and the next occasion compacts.
func TestCase35EveryStepOfACompactionFails(t *testing.T) {
	old := sealed(t, draft(rowsOf("w", 8, 256<<10, 1)...))
	a := sealed(t, draft(append(rowsOf("w", 2, 256<<10, 1), row{"a", 100, 9})...))
	b := sealed(t, draft(append(rowsOf("w", 3, 256<<10, 1)[1:], row{"b", 100, 9})...))
	for _, fault := range []error{unix.EIO, unix.EMFILE} {
		t.Run(fault.Error(), func(t *testing.T) {
			var hit []string
			for n := 1; ; n++ {
				if n > 500 {
					t.Fatal("it has no end")
				}
				step := failCompaction(t, n, fault, old, a, b)
				if step == "" {
					break
				}
				hit = append(hit, step)
			}
			t.Logf("%d steps failed: %q", len(hit), hit)
			if len(hit) < 10 {
				t.Error("a compaction has more steps")
			}
		})
	}
}

// failCompaction fails the n-th step of a compaction, and gives its name; "" when there are not so many.
func failCompaction(t *testing.T, n int, fault error, old, a, b *manifest.Sealed) string {
	t.Helper()
	path := testPath(t)
	s := open(t, path)
	defer func() { s.Close() }()
	put(t, s, "m:old", old)
	put(t, s, "m:a", a)
	put(t, s, "m:b", b)
	s.stop() // this test is the compactor
	<-s.compacted
	if _, err := s.Remove("m:old", false); err != nil {
		t.Fatal(err)
	}
	at := failpoint.At(n, func(string) error { return fault })
	restore := failpoint.Set(at.Listen)
	for s.compactOne(t.Context()) {
	}
	restore()
	step := ""
	if at.Hit() {
		step = at.Steps()[n-1]
	}
	readBack(t, s, "m:a", a)
	readBack(t, s, "m:b", b)
	for s.compactOne(t.Context()) {
	}
	settledStore(t, s)
	put(t, s, "bystander", sealed(t, draft(row{"x", 70_000, 99}))) // takes away what could not be unlinked
	readBack(t, s, "m:a", a)
	readBack(t, s, "m:b", b)
	if _, err := s.Remove("bystander", false); err != nil {
		t.Fatal(err)
	}
	check(t, s)
	s.Close()
	s = open(t, path)
	readBack(t, s, "m:a", a)
	readBack(t, s, "m:b", b)
	check(t, s)
	if t.Failed() {
		t.Logf("failed at step %d (%s)", n, step)
	}
	return step
}
