package store

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/models/manifest"
)

// What a disk below costs a put, and what a load from it takes: 128 MiB in 32 tensors. Where the disk is: $TMPDIR.
func BenchmarkDurable(b *testing.B) {
	var rows []row
	for i := range 32 {
		rows = append(rows, row{fmt.Sprintf("t%02d", i), 4 << 20, uint64(i)})
	}
	v := sealed(b, draft(rows...))
	size := int64(v.Manifest.TensorBytes())
	for _, disk := range []bool{false, true} {
		b.Run(fmt.Sprintf("put/disk=%v", disk), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				b.StopTimer()
				s := benchStore(b, disk)
				b.StartTimer()
				put(b, s, "m", v)
				b.StopTimer()
				removeAndClose(b, s)
				b.StartTimer()
			}
		})
	}
	b.Run("load", func(b *testing.B) {
		b.SetBytes(size)
		s := benchStore(b, true)
		put(b, s, "m", v)
		for b.Loop() {
			b.StopTimer()
			s.evict(b, v.Digest)
			b.StartTimer()
			if err := s.loadVersion(v.Digest); err != nil {
				b.Fatal(err)
			}
		}
		removeAndClose(b, s)
	})
}

func benchStore(b *testing.B, disk bool) *Store {
	b.Helper()
	opt := Options{Dir: testPath(b)}
	if disk {
		opt.Data = filepath.Join(b.TempDir(), "data")
	}
	s, err := Open(opt)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func removeAndClose(b *testing.B, s *Store) {
	b.Helper()
	if _, err := s.Remove("m", true); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

// evict takes a version out of memory that nobody holds.
func (s *Store) evict(t testing.TB, d manifest.Digest) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.versions[d]
	if v == nil || s.disk[d] == nil {
		t.Fatal("it is not in memory, or not on disk")
	}
	s.forgetVersionLocked(v)
}
