package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/test/supervisor"
)

// What is in sealed memory without a name outlives a daemon that is killed, when a service manager keeps it: the next daemon
// serves the same bytes, and workers notice nothing.
func TestMemfdKeptThroughKill(t *testing.T) {
	p := &place{}
	p.socket, p.dir = testdaemon.Place(t)
	sup := supervisor.New(t, 64, 0)
	p.daemon = sup.Start(p.socket, p.dir)
	p.c = testdaemon.Client(t, p.socket)
	if st := status(t, p); st.Backing != shm.KindMemfd || !st.Guards.SurvivesRestart || st.Guards.Root != zcstorev1.Reach_REACH_NEVER {
		t.Fatalf("backing %s, guarantee %v", st.Backing, st.Guards)
	}
	put(t, p, "tutorial", trainedTutorial(t))
	put(t, p, "complex", trainedComplex(t))
	put(t, p, "stateful", trainedStateful(t))
	if _, err := p.c.Remove(ctx, "stateful", true); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(p.dir); err != nil || len(names) != 0 {
		t.Errorf("the memfd backing has left %d files in %s, %v", len(names), p.dir, err)
	}
	w := pool(t, pipes, Args{Socket: p.socket, Ref: "tutorial", Kind: "tutorial", Dir: p.dir}, 2)
	before := each(t, w, "sum")
	rows, wants := goldenRows(t, "tutorial", "", []string{"input"}, []string{"output.temperature_1.0"})

	for round := range 3 {
		p.daemon.Kill()
		outs, err := w.Each(ctx, rows[:25])
		if err != nil {
			t.Fatalf("round %d: a batch without a daemon: %v", round, err)
		}
		for _, a := range outs {
			if d := largest(a, map[string][][]float32{"output.temperature_1.0": wants["output.temperature_1.0"][:25]}); !(d <= 1e-5) {
				t.Errorf("round %d: largest difference %g", round, d)
			}
		}
		// Two tables, two segments, one catalog: the messages are there, whether or not they have been read.
		waitFor(t, fmt.Sprintf("five of %v", sup.Kept()), func() bool { return len(sup.Kept()) == 5 })
		p.daemon = sup.Start(p.socket, p.dir)
		waitFor(t, "the workers' leases", func() bool {
			holders, err := p.c.Holders(ctx, "tutorial")
			return err == nil && len(holders) == 2
		})
		if st := status(t, p); st.AdoptedVersions != 2 || st.DamagedVersions != 0 {
			t.Errorf("round %d: %d versions adopted, %d damaged", round, st.AdoptedVersions, st.DamagedVersions)
		}
		for _, name := range []string{"tutorial", "complex"} {
			if v, err := p.c.Verify(ctx, name); err != nil || len(v.Damaged) > 0 {
				t.Errorf("round %d: verify %s: %v, %v", round, name, v, err)
			}
		}
		each(t, w, "reload")
		for i, a := range each(t, w, "sum") {
			if fmt.Sprint(a.Probe) != fmt.Sprint(before[i].Probe) {
				t.Errorf("round %d: worker %d has %v now, %v before", round, i, a.Probe, before[i].Probe)
			}
		}
	}
	everywhere(t, w, rows, wants)
	put(t, p, "wide", wide(3)) // and it stores
	if _, err := p.c.Remove(ctx, "wide", true); err != nil {
		t.Fatal(err)
	}
}

// What comes back from the service manager is taken only when it is ours and nobody can change it any more.
func TestMemfdAdoptsOnlySealed(t *testing.T) {
	p := &place{}
	p.socket, p.dir = testdaemon.Place(t)
	sup := supervisor.New(t, 64, 0)
	p.daemon = sup.Start(p.socket, p.dir)
	p.c = testdaemon.Client(t, p.socket)
	put(t, p, "tutorial", trainedTutorial(t))
	p.daemon.Kill()

	unsealed := func(name string) {
		fd, err := unix.MemfdCreate("stranger", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte(`{"format":1,"models":{}}`)); err != nil {
			t.Fatal(err)
		}
		sup.Add(name, os.NewFile(uintptr(fd), name))
	}
	unsealed("catalog.999")                   // newer than the real one, and open to change
	unsealed("s-" + strings.Repeat("ab", 16)) // a name of ours
	unsealed("http")                          // a name of somebody else's
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	sup.Add("t-"+strings.Repeat("cd", 32), null)

	p.daemon = sup.Start(p.socket, p.dir)
	waitFor(t, "an answer", func() bool { _, err := p.c.Status(ctx); return err == nil })
	if st := status(t, p); st.AdoptedVersions != 1 || st.DamagedVersions != 0 {
		t.Errorf("%d versions adopted, %d damaged", st.AdoptedVersions, st.DamagedVersions)
	}
	if v, err := p.c.Verify(ctx, "tutorial"); err != nil || len(v.Damaged) > 0 {
		t.Errorf("verify: %v, %v", v, err)
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.daemon.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", p.daemon.PID(), fd.Name())); strings.Contains(to, "stranger") {
			t.Errorf("the daemon keeps %s open", to)
		}
	}
	if !slices.Contains(sup.Kept(), "http") || len(sup.Kept()) != 4 {
		t.Errorf("the supervisor has %v; what is not ours stays, what is damaged goes", sup.Kept())
	}
}

// At the limit of the store a put is refused before its bytes are sent, and what is there stays.
func TestMemfdStoreIsFull(t *testing.T) {
	p := &place{}
	p.socket, p.dir = testdaemon.Place(t)
	sup := supervisor.New(t, 5, 20*time.Millisecond)
	p.daemon = sup.Start(p.socket, p.dir)
	p.c = testdaemon.Client(t, p.socket)
	put(t, p, "tutorial", trainedTutorial(t))
	if n := len(sup.Kept()); n != 3 { // segment, table, catalog: the answer waits for a manager that takes its time
		t.Errorf("a put was acknowledged when the supervisor had %d of 3 descriptors", n)
	}
	_, err := pipeline.Put(ctx, p.c, "complex", trainedComplex(t), pipeline.PutOptions{})
	if zcerr.KindOf(err) != zcerr.NoSpace || !strings.Contains(zcerr.HintOf(err), "FileDescriptorStoreMax=") || !strings.Contains(err.Error(), "3 descriptors") {
		t.Errorf("a put over the limit: %v (%s)", err, zcerr.HintOf(err))
	}
	if st := status(t, p); st.Versions != 1 || st.OpenPuts != 0 || st.ReservedBytes != 0 {
		t.Errorf("afterwards: %v", st)
	}
}

// Without a service manager the memfd backing says what it is: strong, and gone with the daemon.
func TestMemfdAlone(t *testing.T) {
	p := &place{}
	p.socket, p.dir = testdaemon.Place(t)
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir, testdaemon.EnvBacking+"=memfd", "NOTIFY_SOCKET=", "FDSTORE=")
	p.c = testdaemon.Client(t, p.socket)
	st := status(t, p)
	if st.Guards.SurvivesRestart || !strings.Contains(st.Durability, "goes when the daemon ends") {
		t.Errorf("it says: %s", st.Durability)
	}
	put(t, p, "tutorial", trainedTutorial(t))
	p.daemon.Kill()
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir, testdaemon.EnvBacking+"=memfd", "NOTIFY_SOCKET=", "FDSTORE=")
	waitFor(t, "an answer", func() bool { _, err := p.c.Status(ctx); return err == nil })
	if st := status(t, p); st.Versions != 0 || st.UsedBytes != 0 {
		t.Errorf("the next daemon has %d versions, %d bytes", st.Versions, st.UsedBytes)
	}
}

// waitFor asks until the answer is yes: for what another process does in its own time.
func waitFor(t testing.TB, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !yes(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
