package store

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// What a user has put counts for him: through a restart, while it is deleted and held, and not for others; and he may put again
// when it is gone.
func TestQuota(t *testing.T) {
	path := testPath(t)
	const quota = 200_000
	s, err := Open(Options{Dir: path, MaxBytesPerUID: quota})
	if err != nil {
		t.Fatal(err)
	}
	putAs := func(uid uint32, target string, fill uint64, size int) error {
		t.Helper()
		v := sealed(t, draft(row{"w", size, fill}))
		p, err := s.Begin(PutSpec{Ref: target, Manifest: v.Encoded, Owner: uid})
		if err != nil {
			return err
		}
		defer p.Abort()
		if err := p.Fill(t.Context(), io.NewSectionReader(v.Data[0], 0, int64(size))); err != nil {
			t.Fatal(err)
		}
		_, err = p.Commit()
		return err
	}
	refused := func(when string, uid uint32) {
		t.Helper()
		err := putAs(uid, "more", 'z', 100_000)
		if !errors.Is(err, zcerr.Limit) || !strings.Contains(err.Error(), "uid 7 has") || !strings.Contains(err.Error(), "quota of 195.3 KiB") || !strings.Contains(zcerr.HintOf(err), "--max-bytes-per-uid") {
			t.Errorf("%s: %v (%s)", when, err, zcerr.HintOf(err))
		}
	}
	if err := putAs(7, "a", 'a', 120_000); err != nil {
		t.Fatal(err)
	}
	refused("over the quota", 7)
	if err := putAs(8, "b", 'b', 120_000); err != nil {
		t.Errorf("another user: %v", err)
	}
	if err := putAs(0, "root", 'r', 250_000); !errors.Is(err, zcerr.Limit) {
		t.Errorf("root: %v", err)
	}
	check(t, s)
	s.Close()
	if s, err = Open(Options{Dir: path, MaxBytesPerUID: quota}); err != nil {
		t.Fatal(err)
	}
	defer func() { s.Close() }()
	refused("after a restart", 7)
	l, files, err := s.Attach("a", Holder{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	if _, err := s.Remove("a", true); err != nil {
		t.Fatal(err)
	}
	refused("while what was removed is held", 7)
	s.Release(l.ID)
	if err := putAs(7, "more", 'z', 100_000); err != nil {
		t.Errorf("after it is gone: %v", err)
	}
	s.mu.Lock()
	if len(s.reservedBy) != 0 || s.ownedLocked(7) == 0 || s.ownedLocked(9) != 0 {
		t.Errorf("reserved %v, uid 7 %d, uid 9 %d", s.reservedBy, s.ownedLocked(7), s.ownedLocked(9))
	}
	s.mu.Unlock()
	check(t, s)
}
