package fault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/test/supervisor"
)

// place is a tmpfs of the test's own where that is allowed, so that the kernel's count of all that is used on it is the
// store's alone; else a directory of /dev/shm.
func place(t testing.TB) (socket, dir string, own bool) {
	t.Helper()
	socket, dir = testdaemon.Place(t)
	mount := filepath.Join(filepath.Dir(socket), "m")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("zcstore-test", mount, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1g,mode=0700"); err != nil {
		t.Logf("no tmpfs of its own (%v): bytes without a name are not counted", err)
		return socket, dir, false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return socket, filepath.Join(mount, "d"), true
}

// unnamed is how many bytes of a tmpfs belong to no file with a name.
func unnamed(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, err
	}
	n := int64(fs.Blocks-fs.Bfree) * int64(fs.Bsize)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, e.Name()), &st); err != nil {
			return 0, err
		}
		n -= st.Blocks * 512
	}
	return n, nil
}

// remote dials a daemon.
func remote(t testing.TB, socket string) (storetest.Remote, func()) {
	t.Helper()
	s, hangUp, err := dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	return s, hangUp
}

func dial(socket string) (storetest.Remote, func(), error) {
	c, err := client.Dial(context.Background(), client.Options{Socket: socket})
	if err != nil {
		return storetest.Remote{}, nil, err
	}
	return storetest.Remote{C: c}, func() { c.Close() }, nil
}

func TestCase19DaemonKilledAtEveryStepOfPut(t *testing.T) {
	killSweep(t, filesKept, "put", "put of a stored digest")
}

func TestCase20DaemonKilledAtEveryStepOfDeleteAndReplace(t *testing.T) {
	killSweep(t, filesKept, "delete of a tag", "delete of a model", "retag", "retag that drops a version", "replace")
}

func TestCase19DaemonKilledAtEveryStepOfPutToDisk(t *testing.T) {
	killSweep(t, diskKept, "put", "put of a stored digest")
}

func TestCase20DaemonKilledAtEveryStepOfDeleteAndReplaceOnDisk(t *testing.T) {
	killSweep(t, diskKept, "delete of a tag", "delete of a model", "retag", "retag that drops a version", "replace")
}

// With sealed memfds it is the service manager that has everything; a put is not acknowledged before it has.
func TestCase19DaemonKilledAtEveryStepOfPutMemfd(t *testing.T) {
	killSweep(t, memfdsKept, "put")
}

func TestCase20DaemonKilledAtEveryStepOfReplaceMemfd(t *testing.T) {
	killSweep(t, memfdsKept, "delete of a model", "replace")
}

// kept is a place whose daemon is killed, and what starts the next one.
type kept struct {
	socket, dir string
	own         bool
	start       func() *testdaemon.Process
	stride      int // every so many steps one kill; 0: at each
}

func filesKept(t *testing.T) kept {
	k := kept{}
	k.socket, k.dir, k.own = place(t)
	k.start = func() *testdaemon.Process {
		return testdaemon.StartProcess(t, k.socket, k.dir, testdaemon.EnvControl+"=1")
	}
	return k
}

// diskKept has the durable tier, and every other time the machine goes down with the daemon: memory is empty afterwards.
func diskKept(t *testing.T) kept {
	k := filesKept(t)
	k.stride = size(7, 1, 1) // a disk takes its time
	data := filepath.Join(t.TempDir(), "data")
	starts := 0
	k.start = func() *testdaemon.Process {
		if starts++; starts%2 == 0 {
			if err := os.RemoveAll(k.dir); err != nil {
				t.Fatal(err)
			}
		}
		return testdaemon.StartProcess(t, k.socket, k.dir, testdaemon.EnvControl+"=1", testdaemon.EnvData+"="+data)
	}
	return k
}

func memfdsKept(t *testing.T) kept {
	k := kept{}
	k.socket, k.dir = testdaemon.Place(t)
	sup := supervisor.New(t, 1000, 0)
	k.start = func() *testdaemon.Process { return sup.Start(k.socket, k.dir, testdaemon.EnvControl+"=1") }
	return k
}

// killSweep has a daemon, a process of its own, end itself with SIGKILL at the first step of an operation, the second, and so
// on. The next daemon on the same directory must have everything that was acknowledged; an operation that was not acknowledged
// is there whole, or not at all; and nothing is left over.
func killSweep(t *testing.T, on func(t *testing.T) kept, names ...string) {
	digests := digestsOf(t)
	for _, op := range operations {
		if !slices.Contains(names, op.name) {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			at := on(t)
			socket, dir, own := at.socket, at.dir, at.own
			p := at.start()
			kills, did, didnt := 0, 0, 0
			stride := max(1, at.stride)
			for n := 1; ; n += stride {
				s, hangUp := remote(t, socket)
				emptyStore(t, s)
				prepare(t, s)
				testdaemon.KillAt(t, socket, n)
				begin := time.Now()
				err := op.run(s)
				if err == nil {
					if steps := testdaemon.Steps(t, socket); len(steps) < n {
						hangUp()
						t.Logf("killed at %d steps (%d times it had been done, %d times not): %s", kills, did, didnt, strings.Join(steps, " "))
						if stride == 1 && kills != len(steps) {
							t.Errorf("%d kills, %d steps", kills, len(steps))
						}
						break
					}
					t.Fatalf("step %d: acknowledged by a daemon that is dead", n)
				}
				if time.Since(begin) > 5*time.Second {
					t.Errorf("step %d: the client noticed after %v: %v", n, time.Since(begin), err)
				}
				p.Wait()
				hangUp()
				p = at.start()
				kills++
				s, hangUp = remote(t, socket)
				before, after := matches(s, before, digests), matches(s, op.after, digests)
				switch {
				case after == nil:
					did++
				case before == nil:
					didnt++
				default:
					t.Errorf("step %d: neither what was there before (%v) nor what was to be (%v)", n, before, after)
				}
				checkKilled(t, s, dir, own, n)
				hangUp()
			}
			if did == 0 || didnt == 0 {
				t.Errorf("it was done %d times and not done %d times: a sweep sees both", did, didnt)
			}
			p.Kill()
		})
	}
}

func checkKilled(t *testing.T, s storetest.Store, dir string, own bool, n int) {
	t.Helper()
	if err := storetest.Accounts(s); err != nil {
		t.Errorf("step %d: %v", n, err)
	}
	if own {
		if bytes, err := unnamed(dir); err != nil || bytes != 0 {
			t.Errorf("step %d: %d bytes without a name are left, %v", n, bytes, err)
		}
	}
}

func emptyStore(t testing.TB, s storetest.Store) {
	t.Helper()
	list, err := s.List("", false)
	if err != nil {
		t.Fatal(err)
	}
	gone := map[string]bool{}
	for _, v := range list {
		if gone[v.Name] {
			continue
		}
		gone[v.Name] = true
		if _, err := s.Remove(v.Name, true); err != nil {
			t.Fatal(err)
		}
	}
}

// A daemon that is killed at any step of its start leaves the next one everything.
func TestCase20DaemonKilledAtEveryStepOfAStart(t *testing.T) {
	digests := digestsOf(t)
	socket, dir, own := place(t)
	p := testdaemon.StartProcess(t, socket, dir)
	s, hangUp := remote(t, socket)
	prepare(t, s)
	hangUp()
	p.Kill()
	for n := 1; ; n++ {
		if err := litter(dir); err != nil {
			t.Fatal(err)
		}
		served, err := startAndDie(socket, dir, n)
		if err != nil {
			t.Fatal(err)
		}
		p := testdaemon.StartProcess(t, socket, dir)
		s, hangUp := remote(t, socket)
		if err := matches(s, before, digests); err != nil {
			t.Errorf("step %d: %v", n, err)
		}
		checkKilled(t, s, dir, own, n)
		hangUp()
		p.Kill()
		if served {
			t.Logf("killed at %d steps of a start", n-1)
			if n < 10 {
				t.Error("a start has more steps than that")
			}
			return
		}
	}
}

// litter is what crashes leave: files that no catalog names.
func litter(dir string) error {
	var errs []error
	for _, name := range []string{"s-0123", "t-4567", "catalog.new"} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte("left by a crash"), 0o400))
	}
	return errors.Join(errs...)
}

// startAndDie starts a daemon that kills itself at its n-th step, and says whether it came to serve before that.
func startAndDie(socket, dir string, n int) (served bool, err error) {
	cmd := testdaemon.Command(socket, dir, fmt.Sprintf("%s=%d", testdaemon.EnvKillAt, n))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, err
	}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	served = line == "ready\n"
	if served {
		_ = cmd.Process.Kill()
	}
	_ = cmd.Wait()
	if ws, ok := cmd.ProcessState.Sys().(interface{ Signaled() bool }); !ok || !ws.Signaled() {
		return served, fmt.Errorf("the daemon ended by itself at step %d: %v", n, cmd.ProcessState)
	}
	return served, nil
}
