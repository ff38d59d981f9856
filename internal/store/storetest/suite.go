package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// Options are what a case wants of its store.
type Options struct {
	Dir      string
	MaxBytes uint64
}

// Start makes a store on a directory; stop ends it, so that the directory can be opened again.
type Start func(t *testing.T, opt Options) (s Store, stop func())

// Dir makes a directory for one store, which goes with the test.
func Dir(t testing.TB) string {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("zcstore-test-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(path) })
	return path
}

// Run runs the suite over the stores that start makes, but for the cases that are not to hold there.
func Run(t *testing.T, start Start, except ...string) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Start)
	}{
		{"automatic tags", automaticTags},
		{"the same digest again", sameDigestAgain},
		{"explicit tags", explicitTags},
		{"tags and names", tagsAndNames},
		{"references", references},
		{"no tensors", noTensors},
		{"a second version adds what changed", secondVersion},
		{"equal tensors of two models", twoModels},
		{"few segments", fewSegments},
		{"deleted while held", deletedWhileHeld},
		{"retagged while held", retaggedWhileHeld},
		{"figures of rm", figuresOfRemove},
		{"near names", nearNames},
		{"refusals", refusals},
		{"budget", budget},
		{"verify", verify},
		{"restart", restart},
		{"many at once", manyAtOnce},
		{"forms", forms},
		{"a form is made once", formMadeOnce},
		{"forms share what they have in common", formsShare},
		{"forms that cannot be", formsRefused},
		{"forms make room", formsMakeRoom},
		{"forms and rm", formsAndRemove},
		{"forms and a restart", formsAndRestart},
		{"a form that is damaged", formDamaged},
		{"forms by many at once", formsByMany},
		{"default forms of tags", tagForms},
	} {
		if slices.Contains(except, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.run(t, start) })
	}
}

// fresh starts a store on a directory of its own.
func fresh(t *testing.T, start Start) Store {
	t.Helper()
	s, stop := start(t, Options{Dir: Dir(t)})
	t.Cleanup(stop)
	return s
}

func tags(want ...string) string { return strings.Join(want, " ") }

func expect(t *testing.T, what string, err error, kind zcerr.Kind, says ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v (%v), want %v", what, err, zcerr.KindOf(err), kind)
		return
	}
	for _, s := range says {
		if text := err.Error() + "\n" + zcerr.HintOf(err); !strings.Contains(text, s) {
			t.Errorf("%s: %q is not in %q", what, s, text)
		}
	}
}

func must[T any](v T, err error) func(t *testing.T, what string) T {
	return func(t *testing.T, what string) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return v
	}
}

func automaticTags(t *testing.T, start Start) {
	s := fresh(t, start)
	for i := range 11 {
		row := Row{"x", 70_000, uint64(i)}
		res := Put(t, s, "org/Model", row)
		if got, want := tags(res.Version.Tags...), tags(fmt.Sprintf("v%d", i+1), "latest"); got != want || res.Existed {
			t.Errorf("put %d: tags %q, want %q", i+1, got, want)
		}
		Whole(t, s, "org/Model", row)
		Whole(t, s, fmt.Sprintf("org/Model:v%d", i+1), row)
	}
	list := must(s.List("org/Model", false))(t, "ls")
	if len(list) != 11 {
		t.Errorf("%d versions are listed", len(list))
	}
	for _, v := range list {
		if slices.Contains(v.Tags, "latest") != slices.Contains(v.Tags, "v11") {
			t.Errorf("latest is one of %q", v.Tags)
		}
	}
	// A number is not given twice, not even when its version has gone.
	must(s.Remove("org/Model:v11", false))(t, "rm")
	must(s.Remove("org/Model:latest", false))(t, "rm")
	if res := Put(t, s, "org/Model", Row{"x", 70_000, 50}); tags(res.Version.Tags...) != tags("v12", "latest") {
		t.Errorf("after rm of v11: %q", res.Version.Tags)
	}
	Settled(t, s)
}

func sameDigestAgain(t *testing.T, start Start) {
	s := fresh(t, start)
	first := Put(t, s, "m", Big()...)
	again := Put(t, s, "m", Big()...)
	if first.Existed || !again.Existed || again.Written != 0 || tags(again.Version.Tags...) != tags("v1", "latest") || again.Version.Digest != first.Version.Digest {
		t.Errorf("first %+v, again %+v", first, again)
	}
	// An older version put again is the latest again, under the number that it has.
	Put(t, s, "m", Row{"x", 10, 1})
	if back := Put(t, s, "m", Big()...); tags(back.Version.Tags...) != tags("v1", "latest") {
		t.Errorf("put again: %q", back.Version.Tags)
	}
	other := Put(t, s, "n:prod", Big()...)
	if !other.Existed || tags(other.Version.Tags...) != "prod" {
		t.Errorf("under another name: %+v", other)
	}
	Whole(t, s, "n:prod", Big()...)
	Settled(t, s)
}

func explicitTags(t *testing.T, start Start) {
	s := fresh(t, start)
	one, two := Row{"x", 70_000, 1}, Row{"x", 70_000, 2}
	if res := Put(t, s, "m:prod", one); tags(res.Version.Tags...) != "prod" {
		t.Errorf("tags %q", res.Version.Tags)
	}
	Put(t, s, "m:prod", one) // the same bytes are no conflict
	_, err := s.Put("m:prod", false, Draft(two))
	expect(t, "other bytes", err, zcerr.Conflict, "m:prod", "--replace")
	Whole(t, s, "m:prod", one)
	Settled(t, s)
	if _, err := s.Put("m:prod", true, Draft(two)); err != nil {
		t.Fatalf("--replace: %v", err)
	}
	Whole(t, s, "m:prod", two)
	if list := must(s.List("m", true))(t, "ls --all"); len(list) != 1 {
		t.Errorf("what nobody names or holds is still listed: %+v", list)
	}
	Settled(t, s)
}

func tagsAndNames(t *testing.T, start Start) {
	s := fresh(t, start)
	one, two := Row{"x", 70_000, 1}, Row{"x", 70_000, 2}
	Put(t, s, "m", one)
	Put(t, s, "m", two)
	d, previous, err := s.Tag("m:v1", "m:prod", false)
	if err != nil || d != Digest(t, one) || previous != (manifest.Digest{}) {
		t.Fatalf("tag: %v, before %v, %v", d, previous, err)
	}
	_, _, err = s.Tag("m:v2", "m:prod", false)
	expect(t, "a tag that points elsewhere", err, zcerr.Conflict, "--replace")
	d, previous, err = s.Tag("m:v2", "m:prod", true)
	if err != nil || d != Digest(t, two) || previous != Digest(t, one) {
		t.Errorf("retag: %v, before %v, %v", d, previous, err)
	}
	if _, _, err := s.Tag("m:v1", "other/name:x", false); err != nil {
		t.Errorf("another model's name: %v", err)
	}
	must(s.Remove("m", true))(t, "rm --all")
	Whole(t, s, "other/name:x", one)
	_, err = s.Attach("m:v2")
	expect(t, "a removed model", err, zcerr.NotFound)
	Settled(t, s)
}

func references(t *testing.T, start Start) {
	s := fresh(t, start)
	one, two := Row{"x", 70_000, 1}, Row{"x", 70_000, 2}
	Put(t, s, "m", one)
	Put(t, s, "m", two)
	Whole(t, s, "m@"+Digest(t, one).String(), one)
	Whole(t, s, "m:v2@"+Digest(t, two).String(), two)
	_, err := s.Attach("m:v2@" + Digest(t, one).String())
	expect(t, "a tag and another digest", err, zcerr.Conflict)
	_, err = s.Show("m@" + Digest(t, Row{"x", 1, 9}).String())
	expect(t, "a digest that is not stored", err, zcerr.NotFound)
	info := must(s.Show("m:v1"))(t, "show")
	if info.Digest != Digest(t, one) || info.TensorBytes != 70_000 || info.Tensors != 1 || info.Kind != "test" || info.Created.IsZero() || len(info.Segments) != 1 {
		t.Errorf("show: %+v", info)
	}
}

func noTensors(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "values")
	Whole(t, s, "values")
	Put(t, s, "empty", Row{"nothing", 0, 0})
	Whole(t, s, "empty", Row{"nothing", 0, 0})
	if v := must(s.Verify("empty"))(t, "verify"); v.Tensors != 1 || v.Bytes != 0 || len(v.Damaged) != 0 {
		t.Errorf("verify: %+v", v)
	}
	Settled(t, s)
}

func used(t *testing.T, s Store) uint64 {
	t.Helper()
	return must(s.Status())(t, "status").Used
}

func secondVersion(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "m", Big()...)
	before := used(t, s)
	changed := With(Big(), map[string]uint64{"b": 99})
	res := Put(t, s, "m", changed...)
	if grown := used(t, s) - before; grown < 300_000 || grown > 300_000+64<<10 || grown != res.Written {
		t.Errorf("grew by %d (said %d), one tensor of 300000 changed", grown, res.Written)
	}
	if len(res.Version.Segments) != 2 || res.Shared != 1<<20+200_001+5003 {
		t.Errorf("segments %+v, shared %d", res.Version.Segments, res.Shared)
	}
	Settled(t, s)
	rm := must(s.Remove("m:v1", false))(t, "rm")
	if len(rm.Versions) != 1 || rm.Versions[0] != Digest(t, Big()...) || rm.Pinned < 1<<20 {
		t.Errorf("removed %+v", rm)
	}
	Whole(t, s, "m", changed...)
	third := With(changed, map[string]uint64{"d": 98}) // meets tensors of both segments
	Put(t, s, "m", third...)
	Whole(t, s, "m:v3", third...)
	Whole(t, s, "m:v2", changed...)
	Settled(t, s)
	if rm := must(s.Remove("m", true))(t, "rm --all"); len(rm.Untagged) != 3 || rm.Pinned != 0 || rm.Held != 0 {
		t.Errorf("remove all: %+v", rm)
	}
	if st := must(s.Status())(t, "status"); st.Used != 0 || st.Segments != 0 || st.Versions != 0 || st.Models != 0 {
		t.Errorf("left: %+v", st)
	}
	Settled(t, s)
}

func twoModels(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "m", Big()...)
	other := append([]Row{{"head", 100, 7}}, Big()...)
	if res := Put(t, s, "org/other", other...); res.Shared < 1<<20 || res.Written > 64<<10 {
		t.Errorf("wrote %d, shared %d", res.Written, res.Shared)
	}
	must(s.Remove("m", false))(t, "rm")
	Whole(t, s, "org/other", other...)
	Settled(t, s)
}

// A worker maps at most eight files, and a version is not spread over segments of which most is dead.
func fewSegments(t *testing.T, start Start) {
	s := fresh(t, start)
	var rows []Row
	for i := range 20 {
		rows = append(rows, Row{fmt.Sprintf("t%02d", i), 100_000, uint64(i)})
	}
	Put(t, s, "m", rows...)
	for i := range rows {
		rows[i].Seed += 1000
		if res := Put(t, s, "m", rows...); len(res.Version.Segments) > 8 {
			t.Fatalf("version %d lies in %d segments", i+2, len(res.Version.Segments))
		}
		Whole(t, s, "m", rows...)
	}
	Settled(t, s)
}

func deletedWhileHeld(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "m", Big()...)
	h := must(s.Attach("m"))(t, "attach")
	rm := must(s.Remove("m", false))(t, "rm")
	if rm.Held < 1<<20 || rm.Freed != 0 || rm.Pinned != 0 {
		t.Errorf("removed %+v", rm)
	}
	_, err := s.Attach("m")
	expect(t, "attach after rm", err, zcerr.NotFound)
	if st := must(s.Status())(t, "status"); st.Held != rm.Held || st.Used != 0 || st.Leases != 1 {
		t.Errorf("status %+v, rm said %d held", st, rm.Held)
	}
	if held := must(s.List("", true))(t, "ls --all"); len(held) != 1 || !held[0].Deleted || held[0].Holders != 1 || len(held[0].Tags) != 0 {
		t.Errorf("ls --all: %+v", held)
	}
	if held := must(s.List("", false))(t, "ls"); len(held) != 0 {
		t.Errorf("ls: %+v", held)
	}
	ps := must(s.Holders(""))(t, "ps")
	if len(ps) != 1 || !ps[0].Deleted || ps[0].Holder.PID != int32(os.Getpid()) || ps[0].Holder.UID != uint32(os.Getuid()) || ps[0].Holder.Command == "" || ps[0].Since.IsZero() || ps[0].Digest != h.Digest {
		t.Errorf("ps: %+v", ps)
	}
	h.Same(t, Big()...)      // old bytes stay
	Put(t, s, "m", Big()...) // the same digest again is a version of its own
	Whole(t, s, "m", Big()...)
	h.Same(t, Big()...)
	h.Release()
	if st := must(s.Status())(t, "status"); st.Held != 0 || st.Leases != 0 {
		t.Errorf("after release: %+v", st)
	}
	Settled(t, s)
}

func retaggedWhileHeld(t *testing.T, start Start) {
	s := fresh(t, start)
	one, two := With(Big(), nil), With(Big(), map[string]uint64{"a": 51, "b": 52, "c": 53})
	Put(t, s, "m:prod", one...)
	h := must(s.Attach("m:prod"))(t, "attach")
	if _, err := s.Put("m:prod", true, Draft(two...)); err != nil {
		t.Fatal(err)
	}
	h2 := must(s.Attach("m:prod"))(t, "attach")
	h.Same(t, one...)
	h2.Same(t, two...)
	st := must(s.Status())(t, "status")
	if st.Held < 1<<20 || st.Leases != 2 || st.Versions != 1 {
		t.Errorf("two generations: %+v", st)
	}
	h.Release()
	h2.Same(t, two...)
	if st := must(s.Status())(t, "status"); st.Held != 0 || st.Leases != 1 {
		t.Errorf("after the first release: %+v", st)
	}
	h2.Release()
	Whole(t, s, "m:prod", two...)
	Settled(t, s)
}

func figuresOfRemove(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "m", Big()...)
	Put(t, s, "m", With(Big(), map[string]uint64{"c": 9})...)
	h := must(s.Attach("m:v2"))(t, "attach")
	before := used(t, s)
	rm := must(s.Remove("m:v1", false))(t, "rm v1") // its segment is still used by v2, its table is not
	if rm.Pinned < 1<<20 || rm.Held != 0 || rm.Freed == 0 || before-used(t, s) != rm.Freed {
		t.Errorf("rm v1: %+v; used %d, before %d", rm, used(t, s), before)
	}
	before = used(t, s)
	rm = must(s.Remove("m", true))(t, "rm v2") // all of it is held
	if rm.Held != before || rm.Freed != 0 || rm.Pinned != 0 || used(t, s) != 0 {
		t.Errorf("rm v2: %+v, used before %d", rm, before)
	}
	if st := must(s.Status())(t, "status"); st.Held != rm.Held {
		t.Errorf("status says %d held, rm %d", st.Held, rm.Held)
	}
	h.Release()
	if st := must(s.Status())(t, "status"); st.Held != 0 {
		t.Errorf("still held: %+v", st)
	}
	Put(t, s, "two:a", Row{"x", 70_000, 1})
	Put(t, s, "two:b", Row{"x", 70_000, 2})
	_, err := s.Remove("two", false)
	expect(t, "a name with two versions", err, zcerr.Invalid, "2 versions", "--all")
	if rm := must(s.Remove("two@"+Digest(t, Row{"x", 70_000, 1}).String(), false))(t, "rm by digest"); tags(rm.Untagged...) != "two:a" || rm.Freed < 70_000 {
		t.Errorf("rm by digest: %+v", rm)
	}
	Settled(t, s)
}

func nearNames(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "sentence-transformers/all-MiniLM", Row{"x", 10, 1})
	Put(t, s, "whisper", Row{"x", 10, 2})
	_, err := s.Attach("sentence-transformers/all-miniLM")
	expect(t, "a letter of another case", err, zcerr.NotFound, "did you mean sentence-transformers/all-MiniLM?")
	_, err = s.Show("MiniLM")
	expect(t, "a part of a name", err, zcerr.NotFound, "did you mean sentence-transformers/all-MiniLM?")
	_, err = s.Show("wisper:latest")
	expect(t, "a letter that is missing", err, zcerr.NotFound, "did you mean whisper?", "zcctl put")
	_, err = s.List("llama", false)
	expect(t, "nothing near", err, zcerr.NotFound, "no model llama is stored", "zcctl put llama DIR")
	_, err = s.Attach("whisper:v7")
	expect(t, "a tag that is missing", err, zcerr.NotFound, "no tag v7", "v1, latest", "zcctl ls whisper")
}

func refusals(t *testing.T, start Start) {
	s := fresh(t, start)
	one, two := Row{"x", 70_000, 1}, Row{"x", 70_000, 2}
	Put(t, s, "m:prod", one)
	for _, tt := range []struct {
		name string
		kind zcerr.Kind
		says string
		do   func() error
	}{
		{"a bad reference", zcerr.Invalid, "'!'", func() error { _, err := s.Put("m!", false, Draft(one)); return err }},
		{"a chosen digest", zcerr.Invalid, "choose", func() error {
			_, err := s.Put("m@"+Digest(t, one).String(), false, Draft(one))
			return err
		}},
		{"attach of a bad reference", zcerr.Invalid, "", func() error { _, err := s.Attach("../m"); return err }},
		{"show of a bad reference", zcerr.Invalid, "", func() error { _, err := s.Show("m:"); return err }},
		{"verify of nothing", zcerr.NotFound, "no model", func() error { _, err := s.Verify("n"); return err }},
		{"rm of nothing", zcerr.NotFound, "no model", func() error { _, err := s.Remove("n", false); return err }},
		{"rm of a tag that is not there", zcerr.NotFound, "no tag", func() error { _, err := s.Remove("m:x", false); return err }},
		{"rm of a tag that has moved", zcerr.Conflict, "moved", func() error {
			_, err := s.Remove("m:prod@"+Digest(t, two).String(), false)
			return err
		}},
		{"tag without a tag", zcerr.Invalid, "is no tag", func() error { _, _, err := s.Tag("m:prod", "m", false); return err }},
		{"tag of nothing", zcerr.NotFound, "", func() error { _, _, err := s.Tag("m:v1", "m:x", false); return err }},
	} {
		err := tt.do()
		expect(t, tt.name, err, tt.kind, tt.says)
	}
	Whole(t, s, "m:prod", one)
	Settled(t, s)
}

func budget(t *testing.T, start Start) {
	s, stop := start(t, Options{Dir: Dir(t), MaxBytes: 500_000})
	t.Cleanup(stop)
	_, err := s.Put("m", false, Draft(Big()...))
	expect(t, "over the budget", err, zcerr.NoSpace, "needed", "left of the budget", "zcctl")
	Settled(t, s)
	Put(t, s, "a", Row{"x", 300_000, 1})
	_, err = s.Put("b", false, Draft(Row{"x", 300_000, 2}))
	expect(t, "beside another", err, zcerr.NoSpace)
	h := must(s.Attach("a"))(t, "attach")
	must(s.Remove("a", false))(t, "rm")
	_, err = s.Put("b", false, Draft(Row{"x", 300_000, 2}))
	expect(t, "beside a version that is held", err, zcerr.NoSpace)
	h.Release()
	Put(t, s, "b", Row{"x", 300_000, 2})
	Settled(t, s)
}

func verify(t *testing.T, start Start) {
	s := fresh(t, start)
	Put(t, s, "m", Big()...)
	v := must(s.Verify("m"))(t, "verify")
	if v.Tensors != len(Big()) || v.Bytes != 1<<20+300_000+200_001+5000+3 || len(v.Damaged) != 0 || v.Ref != "m:latest" {
		t.Errorf("a good version: %+v", v)
	}
	st := must(s.Status())(t, "status")
	if st.Backing == shm.KindMemfd {
		return // nobody can damage it, this test included
	}
	dir := st.Directory
	segs, err := filepath.Glob(filepath.Join(dir, "s-*"))
	if err != nil || len(segs) != 1 {
		t.Fatalf("segments %q, %v", segs, err)
	}
	flip(t, segs[0], -1)
	v = must(s.Verify("m"))(t, "verify")
	if len(v.Damaged) != 1 {
		t.Errorf("a flipped bit: %+v", v)
	}
	_, err = s.Attach("m")
	expect(t, "a damaged version", err, zcerr.Corrupt, "zcctl rm")
	if list := must(s.List("m", false))(t, "ls"); len(list) != 1 || list[0].Damaged == "" {
		t.Errorf("ls: %+v", list)
	}
	Put(t, s, "m", Big()...) // repairs it
	Whole(t, s, "m", Big()...)
	Settled(t, s)
}

// flip turns a bit of a published file; a negative place counts from the end.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at += st.Size()
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func restart(t *testing.T, start Start) {
	dir := Dir(t)
	s, stop := start(t, Options{Dir: dir})
	one, two := Big(), With(Big(), map[string]uint64{"a": 50})
	Put(t, s, "a/b", one...)
	Put(t, s, "a/b", two...)
	if _, _, err := s.Tag("a/b:v1", "a/b:prod", false); err != nil {
		t.Fatal(err)
	}
	before := must(s.List("", false))(t, "ls")
	st1 := must(s.Status())(t, "status")
	stop()
	s, stop = start(t, Options{Dir: dir})
	t.Cleanup(stop)
	st2 := must(s.Status())(t, "status")
	if st2.Adopted != 2 || st2.Versions != 2 || st2.Used != st1.Used || st2.Segments != st1.Segments || st2.Instance == st1.Instance {
		t.Errorf("before %+v, adopted %+v", st1, st2)
	}
	after := must(s.List("", false))(t, "ls")
	for i := range before {
		if len(after) != len(before) || after[i].Digest != before[i].Digest || tags(after[i].Tags...) != tags(before[i].Tags...) || !after[i].Created.Equal(before[i].Created) {
			t.Errorf("before %+v\nafter %+v", before, after)
			break
		}
	}
	Whole(t, s, "a/b:prod", one...)
	Whole(t, s, "a/b", two...)
	if res := Put(t, s, "a/b", With(two, map[string]uint64{"c": 51})...); tags(res.Version.Tags...) != tags("v3", "latest") || res.Shared == 0 {
		t.Errorf("put after a restart: %+v", res)
	}
	Settled(t, s)
}

// Puts, tags and removals of a few versions by many at once: whatever happens, what is there is whole and accounted for.
func manyAtOnce(t *testing.T, start Start) {
	s := fresh(t, start)
	versions := make([][]Row, 4)
	for i := range versions {
		versions[i] = []Row{{"common", 200_000, 1}, {"own", 100_000, uint64(10 + i)}}
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 20 {
				name := fmt.Sprintf("m%d", rng.IntN(3))
				switch rng.IntN(5) {
				case 0:
					if _, err := s.Remove(name, true); err != nil && !errors.Is(err, zcerr.NotFound) {
						t.Error(err)
					}
				case 1, 2:
					h, err := s.Attach(name)
					if err != nil {
						if !errors.Is(err, zcerr.NotFound) {
							t.Error(err)
						}
						continue
					}
					if bad := h.Broken(); bad != "" {
						t.Errorf("tensor %s of %s is not what was put", bad, h.Ref)
					}
					h.Release()
				default:
					// A put can lose what it shares; it then says so.
					if _, err := s.Put(name, false, Draft(versions[rng.IntN(len(versions))]...)); err != nil && !errors.Is(err, zcerr.Conflict) {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	Settled(t, s)
	for _, v := range must(s.List("", false))(t, "ls") {
		h := must(s.Attach(v.Name+":"+v.Tags[0]))(t, "attach")
		if bad := h.Broken(); bad != "" || h.Digest != v.Digest {
			t.Errorf("%s %q: damaged %q", v.Name, v.Tags, bad)
		}
		h.Release()
	}
}
