package store

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zcstore/zcstore/internal/failpoint"
	"github.com/zcstore/zcstore/internal/memlimit"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// pending is a draft sealed without a digest of the rows of 64 KiB and more, and its data.
func pending(t testing.TB, rows ...row) *manifest.Sealed {
	t.Helper()
	d := draft(rows...)
	sums := make([]manifest.Digest, len(d.Tensors))
	for i, r := range rows {
		if r.size < dedupBytes {
			if err := d.Hash(context.Background(), []int{i}, sums, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	v, err := d.SealWith(sums)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func beginPending(t testing.TB, s *Store, v *manifest.Sealed) *Put {
	t.Helper()
	p, err := s.Begin(PutSpec{Ref: "m", Manifest: v.Encoded, Pending: v.Pending})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Abort)
	return p
}

func TestPendingRowsMustHaveNoDigest(t *testing.T) {
	s := open(t, testPath(t))
	v := pending(t, big...)
	for _, rows := range [][]int{{-1}, {99}, {1, 0}, {0, 0}, {3}} { // 3 is small, and has one
		if _, err := s.Begin(PutSpec{Ref: "m", Manifest: v.Encoded, Pending: rows}); !errors.Is(err, zcerr.Invalid) {
			t.Errorf("%v: %v", rows, err)
		}
	}
	check(t, s)
}

// Rows may come in any order and in parts; each once, and only those that are wanted.
func TestRowsInAnyOrder(t *testing.T) {
	s := open(t, testPath(t))
	v, whole := pending(t, big...), sealed(t, draft(big...))
	p := beginPending(t, s, v)
	send := func(rows ...int) error {
		var parts []io.Reader
		for _, r := range rows {
			parts = append(parts, io.NewSectionReader(v.Data[r], 0, int64(v.Manifest.Tensors[r].Bytes())))
		}
		return p.FillRows(context.Background(), rows, io.MultiReader(parts...))
	}
	if err := send(4, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Settle(); !errors.Is(err, zcerr.Invalid) {
		t.Errorf("settled before all came: %v", err)
	}
	for _, bad := range [][]int{{0}, {-1}, {len(big)}} {
		if err := send2(p, bad); !errors.Is(err, zcerr.Invalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if err := send(5, 3, 2, 1); err != nil {
		t.Fatal(err)
	}
	if again, err := p.Settle(); again != nil || err != nil || p.Digest() != whole.Digest {
		t.Fatalf("%v, %v, digest %v, want %v", again, err, p.Digest(), whole.Digest)
	}
	if _, err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	readBack(t, s, "m", whole)
	check(t, s)
}

func send2(p *Put, rows []int) error {
	return p.FillRows(context.Background(), rows, strings.NewReader(""))
}

// file writes a draft's rows to a file, one after the other.
func file(t testing.TB, v *manifest.Sealed) (f *os.File, size uint64, rows []RowAt) {
	t.Helper()
	var all bytes.Buffer
	for i := range v.Manifest.Tensors {
		rows = append(rows, RowAt{Row: i, Offset: uint64(all.Len())})
		if _, err := io.Copy(&all, io.NewSectionReader(v.Data[i], 0, int64(v.Manifest.Tensors[i].Bytes()))); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "weights")
	if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, uint64(all.Len()), rows
}

func nothing()       {}
func noProgress(int) {}

const idleTime = 30 * time.Second

func TestImport(t *testing.T) {
	s := open(t, testPath(t))
	v, whole := pending(t, big...), sealed(t, draft(big...))
	f, size, rows := file(t, v)
	p := beginPending(t, s, v)
	read, ended := 0, 0
	var mu sync.Mutex
	if err := p.Import(context.Background(), f, size, rows, idleTime, func() { ended++ }, func(n int) { mu.Lock(); read += n; mu.Unlock() }); err != nil {
		t.Fatal(err)
	}
	if uint64(read) != size || ended != 1 {
		t.Errorf("read %d of %d, ended %d times", read, size, ended)
	}
	if _, err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	readBack(t, s, "m", whole)
	check(t, s)
}

// Where a row is said to lie is checked against the file before a byte is read.
func TestImportOfRowsOutsideOfTheFile(t *testing.T) {
	s := open(t, testPath(t))
	v := pending(t, big...)
	f, size, rows := file(t, v)
	for _, tt := range []struct {
		name string
		size uint64
		off  uint64
	}{
		{"one byte past the end", size - 1, rows[4].Offset},
		{"far past the end", size, 1 << 40},
		{"an offset that overflows", size, 1<<64 - 1},
		{"an empty file", 0, 0},
	} {
		p := beginPending(t, s, v)
		all := append([]RowAt(nil), rows...)
		all[4].Offset = tt.off
		ended := 0
		err := p.Import(context.Background(), f, tt.size, all, idleTime, func() { ended++ }, noProgress)
		if !errors.Is(err, zcerr.Invalid) || !strings.Contains(err.Error(), "of a file that has") || ended != 1 {
			t.Errorf("%s: %v, ended %d times", tt.name, err, ended)
		}
		p.Abort()
	}
	check(t, s)
}

// Case 16: a source that is rewritten or cut while it is read gives an error, or a version of exactly what was read: its digests
// are those of its bytes.
func TestCase16SourceChangesWhileItIsRead(t *testing.T) {
	s := open(t, testPath(t))
	rows := []row{{"a", 1 << 20, 1}, {"b", 1 << 20, 2}, {"c", 1 << 20, 3}}
	v := pending(t, rows...)
	stored, refused := 0, 0
	for turn := range 30 {
		f, size, at := file(t, v)
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for k := byte(0); ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				_, _ = f.WriteAt(bytes.Repeat([]byte{k}, 64<<10), int64(k)<<13)
				if turn%3 == 2 {
					_ = f.Truncate(int64(size) / 2)
				}
			}
		}()
		p := beginPending(t, s, v)
		err := p.Import(context.Background(), f, size, at, idleTime, nothing, noProgress)
		close(stop)
		<-done
		if err != nil {
			refused++
			if !errors.Is(err, zcerr.Corrupt) {
				t.Fatalf("turn %d: %v", turn, err)
			}
			p.Abort()
			continue
		}
		stored++
		if again, err := p.Settle(); err != nil || again != nil {
			p.Abort() // twins, if the writer won twice
			continue
		}
		if _, err := p.Commit(); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Verify(context.Background(), "m"); err != nil || len(got.Damaged) > 0 {
			t.Fatalf("turn %d: stored bytes are not those of their digests: %+v, %v", turn, got, err)
		}
		if _, err := s.Remove("m", true); err != nil {
			t.Fatal(err)
		}
	}
	if stored == 0 || refused == 0 {
		t.Errorf("%d stored, %d refused: the race was not run", stored, refused)
	}
	check(t, s)
}

// hanging is a source on a file system that does not answer.
type hanging struct{ release chan struct{} }

func (h hanging) ReadAt(p []byte, off int64) (int, error) {
	<-h.release
	return len(p), nil
}

// A source that hangs costs its put after the idle time, and its slot until it answers: then whatever it held is given back.
func TestSourceThatHangs(t *testing.T) {
	s := open(t, testPath(t))
	v := pending(t, big...)
	_, size, rows := file(t, v)
	p := beginPending(t, s, v)
	synctest.Test(t, func(t *testing.T) {
		src := hanging{make(chan struct{})}
		over := make(chan struct{})
		begin := time.Now()
		var late atomic.Bool
		err := p.Import(context.Background(), src, size, rows, 30*time.Second, func() { close(over) }, func(int) {
			if late.Load() {
				t.Error("progress after Import has returned")
			}
		})
		late.Store(true)
		if took := time.Since(begin); !errors.Is(err, zcerr.Timeout) || took < 30*time.Second || took > 61*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		select {
		case <-over:
			t.Error("the slot was given back while a read hangs")
		default:
		}
		p.Abort()
		restore := failpoint.Set(func(step string) error {
			t.Errorf("%s after the put was aborted", step)
			return nil
		})
		close(src.release)
		<-over
		restore()
	})
	check(t, s)
}

// What two puts store at the same time is told when the second one settles, and kept bytes do not have to come again.
func TestAgain(t *testing.T) {
	s := open(t, testPath(t))
	v, whole := pending(t, big...), sealed(t, draft(big...))
	f, size, rows := file(t, v)
	p := beginPending(t, s, v)
	put(t, s, "other", sealed(t, draft(big[0]))) // after the client had asked
	if err := p.Import(context.Background(), f, size, rows, idleTime, nothing, noProgress); err != nil {
		t.Fatal(err)
	}
	again, err := p.Settle()
	if err != nil || len(again) != len(v.Pending) {
		t.Fatalf("%v, %v", again, err)
	}
	for k, r := range v.Pending {
		if again[k] != whole.Manifest.Tensors[r].SHA256 {
			t.Errorf("digest %d is %v", k, again[k])
		}
	}
	q, err := s.Begin(PutSpec{Ref: "m", Manifest: whole.Encoded, Kept: p})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Abort()
	if err := q.FillKept(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	p.Abort()
	res, err := q.Commit()
	if err != nil || res.Shared != 1<<20 {
		t.Fatalf("%+v, %v", res, err)
	}
	readBack(t, s, "m", whole)
	check(t, s)
}

// The checksums in a segment are those of its entries, padding included, and quick finds a flipped bit by them.
func TestVerifyQuick(t *testing.T) {
	s := open(t, testPath(t))
	put(t, s, "m", sealed(t, draft(big...)))
	got, err := s.VerifyQuick(context.Background(), "m")
	if err != nil || got.Tensors != len(big) || len(got.Damaged) > 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	path := segmentPath(t, s)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sums, err := readChecksums(f, uint64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range h.Entries {
		at := uint64(h.DataStart + e.Begin)
		if e.SizeBytes() > 0 && sums[at] != checksum(b[at:][:e.SizeBytes()]) {
			t.Errorf("%s has another checksum", e.Name)
		}
	}
	e, _ := h.Find("c")
	damageAt(t, path, h.DataStart+e.Begin+1)
	if got, err = s.VerifyQuick(context.Background(), "m"); err != nil || len(got.Damaged) != 1 || got.Damaged[0] != "c" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, err := s.Attach("m", Holder{}); !errors.Is(err, zcerr.Corrupt) {
		t.Errorf("still served: %v", err)
	}
}

// A segment of an older release has no checksums, and quick says so.
func TestVerifyQuickWithoutChecksums(t *testing.T) {
	s := open(t, testPath(t))
	p, err := s.BeginPut("m", false, sealed(t, draft(big...)).Encoded)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	v := sealed(t, draft(big...))
	p.lay.header = bytes.Replace(p.lay.header, []byte(metaCRC), []byte("zcstore.crc__c"), 1)
	var parts []io.Reader
	for _, r := range p.Wanted() {
		parts = append(parts, io.NewSectionReader(v.Data[r], 0, int64(v.Manifest.Tensors[r].Bytes())))
	}
	if err := p.Fill(context.Background(), io.MultiReader(parts...)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.VerifyQuick(context.Background(), "m"); !errors.Is(err, zcerr.Unsupported) || !strings.Contains(zcerr.HintOf(err), "without --quick") {
		t.Errorf("got %v", err)
	}
	if got, err := s.Verify(context.Background(), "m"); err != nil || len(got.Damaged) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// Every limit is looked at, the tightest one refuses, and the refusal says which it is and what to do.
func TestAdmission(t *testing.T) {
	s := open(t, testPath(t))
	v := sealed(t, draft(row{"x", 1 << 20, 1}))
	for _, tt := range []struct {
		name   string
		limits []memlimit.Limit
		want   string // "": admitted
		hint   string
	}{
		{"plenty", []memlimit.Limit{{Name: "memory of this host", Max: 8 << 30, Free: 4 << 30}}, "", ""},
		{"a host that keeps its margin", []memlimit.Limit{{Name: "memory of this host", Max: 8 << 30, Free: 256<<20 + 1<<20}}, "memory of this host", "end other programs"},
		{"a group that keeps a tenth", []memlimit.Limit{{Name: "memory of this host", Max: 8 << 30, Free: 4 << 30}, {Name: "memory cgroup /a", Max: 64 << 20, Free: 6<<20 + 1<<20}}, "memory cgroup /a", "MemoryMax"},
		{"a group with just enough", []memlimit.Limit{{Name: "memory of this host", Max: 8 << 30, Free: 4 << 30}, {Name: "memory cgroup /a", Max: 64 << 20, Free: 8<<20 + 1<<20}}, "", ""},
		{"an ancestor", []memlimit.Limit{{Name: "memory of this host", Max: 8 << 30, Free: 4 << 30}, {Name: "memory cgroup /a/b", Max: 1 << 30, Free: 1 << 30}, {Name: "memory cgroup /a", Max: 1 << 20, Free: 1 << 20}}, "memory cgroup /a of", "MemoryMax"},
	} {
		s.memLimits = func() ([]memlimit.Limit, error) { return tt.limits, nil }
		p, err := s.BeginPut("m", false, v.Encoded)
		if err == nil {
			p.Abort()
		}
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if !errors.Is(err, zcerr.NoSpace) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "1.0 MiB needed") || !strings.Contains(zcerr.HintOf(err), tt.hint) {
			t.Errorf("%s: %v; %s", tt.name, err, zcerr.HintOf(err))
		}
	}
	s.memLimits = func() ([]memlimit.Limit, error) { return nil, errors.New("nonsense in memory.max") }
	if p, err := s.BeginPut("m", false, v.Encoded); err == nil {
		p.Abort()
		t.Error("admitted without knowing the limits")
	}
	check(t, s)
}

// segmentPath is the store's only segment.
func segmentPath(t *testing.T, s *Store) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir(), segmentPrefix+"*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("segments %v, %v", files, err)
	}
	return files[0]
}

// damageAt changes one bit of a published file, as only somebody with the daemon's rights can.
func damageAt(t *testing.T, path string, at int64) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Case 38: what is over the budget is refused before anything is allocated, the whole model and a single tensor alike.
func TestCase38OverTheBudget(t *testing.T) {
	s, err := Open(Options{Dir: testPath(t), MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	var steps []string
	shm.SetHook(func(step string) error { steps = append(steps, step); return nil })
	t.Cleanup(func() { shm.SetHook(nil) })
	for _, rows := range [][]row{{{"x", 1<<20 + 1, 1}}, {{"x", 600_000, 1}, {"y", 600_000, 2}}} {
		for _, v := range []*manifest.Sealed{sealed(t, draft(rows...)), pending(t, rows...)} {
			p, err := s.Begin(PutSpec{Ref: "m", Manifest: v.Encoded, Pending: v.Pending})
			if err == nil {
				p.Abort()
			}
			if !errors.Is(err, zcerr.NoSpace) || !strings.Contains(err.Error(), "needed") || !strings.Contains(err.Error(), "left of the budget of 1.0 MiB") || !strings.Contains(zcerr.HintOf(err), "--max-bytes") {
				t.Errorf("%v; %s", err, zcerr.HintOf(err))
			}
		}
	}
	if slices.Contains(steps, "fallocate") {
		t.Errorf("something was allocated: %v", steps)
	}
	shm.SetHook(nil)
	put(t, s, "m", sealed(t, draft(row{"x", 600_000, 1})))
	check(t, s)
}

// A tag that is taken refuses a put before its bytes when they cannot be the tag's own, and takes the repair of a damaged one.
func TestPendingPutToATakenTag(t *testing.T) {
	s := open(t, testPath(t))
	put(t, s, "m:one", sealed(t, draft(big...)))
	other := pending(t, row{"x", 1<<20 + 1, 1})
	if p, err := s.Begin(PutSpec{Ref: "m:one", Manifest: other.Encoded, Pending: other.Pending}); !errors.Is(err, zcerr.Conflict) || !strings.Contains(err.Error(), "not at these bytes") {
		if err == nil {
			p.Abort()
		}
		t.Errorf("other bytes: %v", err)
	}
	damageAt(t, segmentPath(t, s), 5<<10)
	if got, err := s.Verify(context.Background(), "m:one"); err != nil || len(got.Damaged) == 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	v, whole := pending(t, big...), sealed(t, draft(big...))
	f, size, rows := file(t, v)
	p, err := s.Begin(PutSpec{Ref: "m:one", Manifest: v.Encoded, Pending: v.Pending})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	if err := p.Import(context.Background(), f, size, rows, idleTime, nothing, noProgress); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	readBack(t, s, "m:one", whole)
}
