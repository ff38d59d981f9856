package fault

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
)

// soakTime is how long the soak takes; $ZCSTORE_SOAK_TIME sets it.
func soakTime(t *testing.T) time.Duration {
	if s := os.Getenv("ZCSTORE_SOAK_TIME"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return time.Duration(size(2, 20, 3_600)) * time.Second
}

// Everything at once: clients that put, replace, remove and attach, client processes that are killed, and a daemon that is
// killed, too. In the second half the daemon lives, and its own memory must not grow.
func TestCase87MixedSoak(t *testing.T) {
	length := soakTime(t)
	socket, dir, own := place(t)
	start := func() *testdaemon.Process {
		return testdaemon.StartProcess(t, socket, dir, testdaemon.EnvControl+"=1")
	}
	p := start()
	d := &storetest.Daemon{Socket: socket, PID: func() int { return p.PID() }, Goroutines: func() int { return testdaemon.Goroutines(socket) }}
	s, hangUp := remote(t, socket)
	storetest.Put(t, s, "m", rowsA...)
	hangUp()
	d.Ack("m:v1", storetest.Digest(t, rowsA...))
	l := &load{socket: socket, stop: make(chan struct{})}
	for i := range 3 {
		l.wg.Add(1)
		go l.run(fmt.Sprintf("load%d", i), uint64(i))
	}
	var killed atomic.Int64
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			c, err := spawn("hold", socket, "m")
			if err != nil { // the daemon was just killed
				time.Sleep(10 * time.Millisecond)
				continue
			}
			c.kill()
			killed.Add(1)
		}
	}()
	begin := time.Now()
	daemons := 0
	for time.Since(begin) < length/2 {
		time.Sleep(min(length/20, 5*time.Second) + time.Duration(rand.IntN(50))*time.Millisecond)
		p.Kill()
		p = start()
		daemons++
	}
	var at, rss []float64 // minutes, MiB
	for time.Since(begin) < length {
		time.Sleep(min(length/40, 10*time.Second))
		at, rss = append(at, time.Since(begin).Minutes()), append(rss, anonymous(t, p.PID()))
	}
	close(l.stop)
	l.wg.Wait()
	for _, err := range l.errs {
		t.Error(err)
	}
	s, hangUp = remote(t, socket)
	for _, r := range l.last {
		if err := r.check(s); err != nil {
			t.Error(err)
		}
	}
	hangUp()
	d.Invariants(t)
	s, hangUp = remote(t, socket)
	emptyStore(t, s)
	hangUp()
	if own {
		if n, err := unnamed(dir); err != nil || n != 0 {
			t.Errorf("%d bytes without a name are left, %v", n, err)
		}
	}
	grows := slope(at, rss)
	t.Logf("%v: %d daemons and %d clients killed, %d changes acknowledged, %d without an answer, %d attaches; the last daemon's own memory %.1f MiB, growing by %.2f MiB a minute",
		length, daemons, killed.Load(), l.acked.Load(), l.maybe.Load(), l.attached.Load(), rss[len(rss)-1], grows)
	if length >= 30*time.Minute && grows >= 1 { // in less time it is the heap's own ups and downs
		t.Errorf("memory grows by %.2f MiB a minute", grows)
	}
}

// anonymous is a process's own memory in MiB, without what it shares.
func anonymous(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// slope is the least-squares line's.
func slope(x, y []float64) float64 {
	var sx, sy, sxx, sxy float64
	n := float64(len(x))
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	if n*sxx == sx*sx {
		return 0
	}
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}

// The tests of this package that use a socket pass in a network namespace where there is no device at all but a loopback that
// is down. (make offline runs all tests of the tree in one.)
func TestCase86WithoutAnyNetwork(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run", "^(TestCase20DaemonKilledAtEveryStepOfAStart|TestCase47FindsPlantedBugs|TestCase01.*|FuzzCalls)$", "-test.v")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), "ZCSTORE_SOAK=", "ZCSTORE_CI=")
	out, err := cmd.CombinedOutput()
	if cmd.Process == nil {
		t.Skipf("no network namespace: %v", err)
	}
	if err != nil || bytes.Count(out, []byte("--- PASS: Test")) < 3 {
		t.Errorf("%v\n%s", err, out)
	}
}
