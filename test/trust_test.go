package e2e

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
	"github.com/zcstore/zcstore/test/supervisor"
)

// kinds are daemons with each backing, as processes.
func kinds(t *testing.T, run func(t *testing.T, p *place)) {
	for _, kind := range []string{shm.KindShm, shm.KindMemfd} {
		t.Run(kind, func(t *testing.T) {
			p := &place{}
			p.socket, p.dir = testdaemon.Place(t)
			p.daemon = testdaemon.StartProcess(t, p.socket, p.dir, testdaemon.EnvBacking+"="+kind, "NOTIFY_SOCKET=", "FDSTORE=")
			p.c = testdaemon.Client(t, p.socket)
			run(t, p)
		})
	}
}

// Case 18: what a client does to its descriptor, no other client and not the daemon notices: each has a description of its own.
func TestCase18DescriptorsAreNotShared(t *testing.T) {
	kinds(t, func(t *testing.T, p *place) {
		put(t, p, "m", stack(1, 2, 3, 4))
		mine, theirs := segmentOf(t, p, "m"), segmentOf(t, p, "m")
		if _, err := mine.Seek(12345, 0); err != nil {
			t.Fatal(err)
		}
		if at, err := theirs.Seek(0, 1); err != nil || at != 0 {
			t.Errorf("one client's lseek moved another to %d, %v", at, err)
		}
		before, err := unix.FcntlInt(theirs.Fd(), unix.F_GETFL, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(mine.Fd(), unix.F_SETFL, unix.O_NONBLOCK|unix.O_APPEND|unix.O_ASYNC); err != nil {
			t.Fatal(err)
		}
		if after, err := unix.FcntlInt(theirs.Fd(), unix.F_GETFL, 0); err != nil || after != before {
			t.Errorf("one client's F_SETFL changed another's flags from %#x to %#x, %v", before, after, err)
		}
		if err := unix.Flock(int(mine.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		// The lock is on a file that everybody has; nobody waits for it.
		if v, err := p.c.Verify(ctx, "m"); err != nil || len(v.Damaged) > 0 {
			t.Errorf("verify: %v, %v", v, err)
		}
		var got Stack
		m, err := pipeline.Load(ctx, p.c, "m", &got, pipeline.LoadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m.Close()
		if _, err := p.c.Remove(ctx, "m", true); err != nil {
			t.Error(err)
		}
		put(t, p, "m", stack(1, 2, 3, 4))
	})
}

// Case 65: the daemon is out of reach for a process of its own uid, and goes on.
func TestCase65DaemonOutOfReachOfItsUID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to run a daemon and a stranger as one other user")
	}
	t.Setenv(client.EnvServerUID, fmt.Sprint(daemonUID))
	for _, backing := range []string{"plain shm", "memfd"} {
		p := attackedDaemon(t, backing)
		got := probe(t, p, daemonUID, "daemon's descriptors", "pidfd_getfd", "ptrace", "memory", "read memory", "environment")
		for name, outcome := range got {
			if outcome != "EACCES" && outcome != "EPERM" {
				t.Errorf("%s, %s: %s", backing, name, outcome)
			}
		}
		put(t, p, "after", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
	}
}

// Case 36, end to end: what does not fit is refused with what is needed and what there is, and the store goes on.
func TestCase36FullSharedMemory(t *testing.T) {
	p, mount := ownMount(t, "size=3m,mode=0700")
	put(t, p, "m", stack(1, 2, 3, 4))
	before := statfsUsed(t, mount)
	_, err := pipeline.Put(ctx, p.c, "big", &Target{nn.NewLinear(1024, 1024, nn.Seed(1))}, pipeline.PutOptions{})
	if zcerr.KindOf(err) != zcerr.NoSpace || !strings.Contains(err.Error(), "needed") || !strings.Contains(err.Error(), "free") || zcerr.HintOf(err) == "" {
		t.Errorf("4 MiB into what is left of 3: %v (%s)", err, zcerr.HintOf(err))
	}
	if after := statfsUsed(t, mount); after != before {
		t.Errorf("a refused put has left %d bytes", after-before)
	}
	put(t, p, "small", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
	if v, err := p.c.Verify(ctx, "m"); err != nil || len(v.Damaged) > 0 {
		t.Errorf("verify: %v, %v", v, err)
	}
}

// Case 37: a mount without inodes refuses a put and says what to do; then it works.
func TestCase37NoInodes(t *testing.T) {
	p, mount := ownMount(t, "size=8m,mode=0700,nr_inodes=5") // root, directory, lock, segment, table; none for the catalog
	_, err := pipeline.Put(ctx, p.c, "m", &Target{nn.NewLinear(64, 64, nn.Seed(1))}, pipeline.PutOptions{})
	if zcerr.KindOf(err) != zcerr.NoSpace || !strings.Contains(err.Error(), "inodes") || !strings.Contains(zcerr.HintOf(err), "nr_inodes=") {
		t.Errorf("without inodes: %v (%s)", err, zcerr.HintOf(err))
	}
	if st := status(t, p); st.Versions != 0 || st.UsedBytes != 0 || st.OpenPuts != 0 {
		t.Errorf("afterwards: %v", st)
	}
	if err := unix.Mount("", mount, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, "size=8m,nr_inodes=100"); err != nil {
		t.Fatal(err)
	}
	put(t, p, "m", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
}

// Case 70: the daemon listens on its socket's path and on nothing else, of any family.
func TestCase70Listeners(t *testing.T) {
	kinds(t, func(t *testing.T, p *place) {
		put(t, p, "m", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
		sockets := map[string]bool{}
		for _, fd := range fds(t, p.daemon.PID()) {
			if inode, ok := strings.CutPrefix(fd.target, "socket:["); ok {
				sockets[strings.TrimSuffix(inode, "]")] = true
			}
		}
		listening := []string{}
		for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6", "packet", "netlink", "unix"} {
			f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", p.daemon.PID(), table))
			if os.IsNotExist(err) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for sc := bufio.NewScanner(f); sc.Scan(); {
				fields := strings.Fields(sc.Text())
				for i, field := range fields {
					if !sockets[field] || table == "unix" && i != 6 {
						continue
					}
					switch {
					case table != "unix":
						t.Errorf("the daemon has a socket of %s: %s", table, sc.Text())
					case len(fields) > 7 && strings.HasPrefix(fields[7], "@"):
						t.Errorf("an abstract socket: %s", sc.Text())
					case fields[3] == "00010000":
						listening = append(listening, fields[7])
					}
				}
			}
			f.Close()
		}
		if len(listening) != 1 || listening[0] != p.socket {
			t.Errorf("it listens on %v, its socket is %s", listening, p.socket)
		}
	})
}

type fdInfo struct {
	n      int
	target string
	exec   bool // stays open over exec
}

// fds lists the descriptors of a process.
func fds(t *testing.T, pid int) []fdInfo {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	entries, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []fdInfo
	for _, e := range entries {
		n, _ := strconv.Atoi(e.Name())
		target, err := os.Readlink(dir + "fd/" + e.Name())
		if err != nil {
			continue // it has just gone
		}
		info, err := os.ReadFile(dir + "fdinfo/" + e.Name())
		if err != nil {
			continue
		}
		flags := uint64(0)
		for line := range strings.Lines(string(info)) {
			if v, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, _ = strconv.ParseUint(strings.TrimSpace(v), 8, 64)
			}
		}
		out = append(out, fdInfo{n, target, flags&unix.O_CLOEXEC == 0})
	}
	return out
}

// Case 71: no descriptor of a daemon or of a client with weights in hand reaches a program that it executes.
func TestCase71DescriptorsOverExec(t *testing.T) {
	inherited := children(t)
	ofTest := map[string]bool{} // what whoever runs the tests has left open
	for _, fd := range fds(t, os.Getpid()) {
		if fd.exec {
			ofTest[fd.target] = true
		}
	}
	sup := supervisor.New(t, 64, 0)
	for _, start := range []func(p *place) *testdaemon.Process{
		func(p *place) *testdaemon.Process { return testdaemon.StartProcess(t, p.socket, p.dir) },
		func(p *place) *testdaemon.Process { return sup.Start(p.socket, p.dir) },
		func(p *place) *testdaemon.Process { return sup.Start(p.socket, p.dir) }, // with what the one before stored
	} {
		p := &place{}
		p.socket, p.dir = testdaemon.Place(t)
		p.daemon = start(p)
		p.c = testdaemon.Client(t, p.socket)
		put(t, p, "m", stack(1, 2, 3, 4))
		m, err := p.c.Attach(ctx, "m")
		if err != nil {
			t.Fatal(err)
		}
		_, lease := leaseSegment(t, p, "m")
		half, err := net.Dial("unix", p.socket) // a connection that has only begun
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds(t, p.daemon.PID()) {
			if fd.n > 2 && fd.exec && !ofTest[fd.target] {
				t.Errorf("descriptor %d of the daemon (%s) stays open over exec", fd.n, fd.target)
			}
		}
		if got := children(t); got != inherited {
			t.Errorf("a child of a client has %s; before the client was, %s", got, inherited)
		}
		half.Close()
		lease.Close()
		m.Close()
		p.daemon.Kill()
	}
}

// children says which descriptors a program has that this process executes.
func children(t *testing.T) string {
	t.Helper()
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no sh")
	}
	// The exec'd process's own table, before it opens anything: the shell expands the list from one more descriptor.
	out, err := exec.Command(sh, "-c", "for f in /proc/$$/fd/*; do readlink $f; done 2>/dev/null | grep -v '^/proc/\\|^pipe:' | sort").Output()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}

// Case 84: whatever umask the daemon is started under, its files have exactly the modes they should.
func TestCase84Umask(t *testing.T) {
	for _, umask := range []string{"0000", "0777", "0077"} {
		t.Run(umask, func(t *testing.T) {
			p := &place{}
			base := testdaemon.PublicDir(t)
			run := filepath.Join(base, "run") // made by the daemon, as its directory is
			p.socket = filepath.Join(run, "s")
			_, dir := testdaemon.Place(t)
			p.dir = filepath.Join(dir, "d")
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := testdaemon.Command(p.socket, p.dir, testdaemon.EnvHarden+"=1")
			cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", "umask " + umask + `; exec "$0"`, exe}
			if os.Geteuid() == 0 { // root may do what modes forbid: another user shows whether they are right
				t.Setenv(client.EnvServerUID, fmt.Sprint(daemonUID))
				if exe, err = copyOf(exe, base); err != nil {
					t.Fatal(err)
				}
				cmd.Args[3] = exe
				for _, d := range []string{base, dir} {
					if err := os.Chown(d, daemonUID, daemonUID); err != nil {
						t.Fatal(err)
					}
				}
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: daemonUID, Gid: daemonUID}
			}
			p.daemon = testdaemon.StartCommand(t, cmd)
			p.c = testdaemon.Client(t, p.socket)
			put(t, p, "m", stack(1, 2, 3, 4))
			put(t, p, "m", stack(1, 2, 3, 5))
			got := map[string]fs.FileMode{}
			for _, root := range []string{run, p.dir} {
				err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
					if err != nil {
						return err
					}
					info, err := e.Info()
					if err == nil {
						name := e.Name()
						if strings.HasPrefix(name, "s-") || strings.HasPrefix(name, "t-") {
							name = name[:2]
						}
						if mode, ok := got[name]; ok && mode != info.Mode() {
							t.Errorf("%s has modes %v and %v", name, mode, info.Mode())
						}
						got[name] = info.Mode()
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			want := map[string]fs.FileMode{
				"run": fs.ModeDir | 0o755, "s": fs.ModeSocket | 0o660, "s.lock": 0o600,
				"d": fs.ModeDir | 0o700, "lock": 0o600, "catalog": 0o600, "s-": 0o400, "t-": 0o400,
			}
			for name, mode := range want {
				if got[name] != mode {
					t.Errorf("%s has mode %v, want %v", name, got[name], mode)
				}
			}
			if len(got) != len(want) {
				t.Errorf("there are %v", got)
			}
		})
	}
}

// copyOf puts a program where every user can execute it.
func copyOf(exe, dir string) (string, error) {
	b, err := os.ReadFile(exe)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "daemon")
	return path, os.WriteFile(path, b, 0o755)
}
