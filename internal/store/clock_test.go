package store

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The wall clock jumps by decades, forward while the store runs and backward between two runs: leases stay, nothing is freed, and
// what is newest is decided by the order of puts, not by the time of day.
func TestCase53ClockJumps(t *testing.T) {
	path := testPath(t)
	one, two, three := sealed(t, draft(row{"x", 70_000, 1})), sealed(t, draft(row{"x", 70_000, 2})), sealed(t, draft(row{"x", 70_000, 3}))
	tags := func(t *testing.T, s *Store, want string) {
		t.Helper()
		all, err := s.List("m", false)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range all {
			got = append(got, strings.Join(v.Tags, "+"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("in order: %v, want %s", got, want)
		}
	}
	s := open(t, path) // today
	put(t, s, "m", one)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) { // in here it is midnight, 1 January 2000: the clock was set back by decades
		if y := time.Now().Year(); y != 2000 {
			t.Fatalf("the clock says %d", y)
		}
		s, err := Open(Options{Dir: path})
		if err != nil {
			t.Fatal(err)
		}
		readBack(t, s, "m:v1", one)
		put(t, s, "m", two) // made "before" v1
		readBack(t, s, "m", two)
		tags(t, s, "v1 v2+latest")
		l, files, err := s.Attach("m:v1", Holder{PID: 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			f.Close()
		}
		if _, err := s.Remove("m:v1", false); err != nil { // held from now on
			t.Fatal(err)
		}
		time.Sleep(10 * 365 * 24 * time.Hour) // forward
		synctest.Wait()
		if y := time.Now().Year(); y != 2009 && y != 2010 {
			t.Fatalf("the clock says %d", y)
		}
		if h := s.Holders("m"); len(h) != 1 || h[0].ID != l.ID || !h[0].Deleted {
			t.Errorf("ten years later the leases are %v", h)
		}
		if st, err := s.Status(); err != nil || st.Versions != 1 || st.Leases != 1 {
			t.Errorf("ten years later: %+v, %v", st, err)
		}
		put(t, s, "m", three)
		readBack(t, s, "m", three)
		tags(t, s, "v2 v3+latest")
		s.Release(l.ID)
		if h := s.Holders("m"); len(h) != 0 {
			t.Errorf("released, and %v", h)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
	s = open(t, path) // and today again
	readBack(t, s, "m:v2", two)
	readBack(t, s, "m", three)
	tags(t, s, "v2 v3+latest")
}
