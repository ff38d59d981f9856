package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/nn"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
)

const (
	daemonUID = 65533 // of its own, as in production
	otherUID  = 65534
)

// Target is a model small enough to be stored once for every attack.
type Target struct{ Layer *nn.Linear }

// attackTable is the whole promise: who comes how far, with each attack, against each backing. An errno is how the kernel
// refuses; CHANGED is a success, as the bytes afterwards show. "allowed" is the daemon's process in the attacker's hands.
//
// The columns are the attacks in the order of attackOrder.
var attackTable = map[string]map[string]string{
	"plain shm": {
		"other uid": "EBADF EINVAL EBADF EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  EPERM    EACCES  EACCES  EPERM EPERM",
		"same uid":  "EBADF EINVAL EBADF EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  CHANGED  CHANGED EACCES  EPERM EPERM",
		"root":      "EBADF EINVAL EBADF EACCES  CHANGED CHANGED CHANGED CHANGED CHANGED CHANGED  CHANGED CHANGED none  allowed",
	},
	"shm handed out through a read-only bind mount": {
		"other uid": "EBADF EINVAL EBADF EACCES  EACCES  EROFS   EACCES  EACCES  EACCES  EROFS    EACCES  EACCES  EPERM EPERM",
		"same uid":  "EBADF EINVAL EBADF EACCES  EACCES  EROFS   EACCES  EACCES  EACCES  EROFS    CHANGED EACCES  EPERM EPERM",
		"root":      "EBADF EINVAL EBADF EACCES  EROFS   EROFS   EROFS   EROFS   EROFS   EROFS    CHANGED CHANGED none  allowed",
	},
	"memfd": {
		"other uid": "EBADF EINVAL EBADF EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  EPERM    no-name EACCES  EPERM EPERM",
		"same uid":  "EBADF EINVAL EBADF EACCES  EACCES  EACCES  EACCES  EACCES  EACCES  EPERM    no-name EACCES  EPERM EPERM",
		"root":      "EBADF EINVAL EBADF EACCES  EPERM   EPERM   EPERM   EPERM   EPERM   EPERM    no-name EPERM   EBADF allowed",
	},
}

// attackWords are of what show says in words.
var attackWords = map[string]string{
	"plain shm": "read-only for every other user; uid 65533 and root could reopen it for writing",
	"shm handed out through a read-only bind mount": "read-only through every descriptor that is handed out; uid 65533 and root could write by opening the file's name",
	"memfd": "sealed: nobody can change it, neither root nor this daemon",
}

// TestCase61WriteAttacks also is case 65: the daemon's process is out of reach for its own uid.
func TestCase61WriteAttacks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be three users")
	}
	if caps := capabilities(t); caps&(1<<unix.CAP_SYS_PTRACE) == 0 || caps&(1<<unix.CAP_SYS_ADMIN) == 0 {
		t.Skip("root has not all its capabilities here: the table is about one that has")
	}
	t.Setenv(client.EnvServerUID, fmt.Sprint(daemonUID))
	for _, backing := range []string{"plain shm", "shm handed out through a read-only bind mount", "memfd"} {
		t.Run(backing, func(t *testing.T) {
			p := attackedDaemon(t, backing)
			for i, who := range []string{"other uid", "same uid", "root"} {
				uid := []uint32{otherUID, daemonUID, 0}[i]
				got, guards, words := attack(t, p, who, uid)
				want := strings.Fields(attackTable[backing][who])
				for k, name := range attackOrder {
					if got[k] != want[k] {
						t.Errorf("%s, %q: %s, the table says %s", who, name, got[k], want[k])
					}
				}
				said := map[string]zcstorev1.Reach{"other uid": guards.OtherUids, "same uid": guards.SameUid, "root": guards.Root}[who]
				if reach := reachOf(got); said != reach {
					t.Errorf("%s: show says %v, the attacks came as far as %v", who, said, reach)
				}
				if n := strings.Count(strings.Join(got, " "), "CHANGED"); n > 0 && (who == "other uid" || backing == "memfd") {
					t.Errorf("%s changed weights in %d ways", who, n)
				}
				if !strings.Contains(words, attackWords[backing]) {
					t.Errorf("show says %q", words)
				}
			}
		})
	}
}

// capabilities are those that this process has in effect.
func capabilities(t *testing.T) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var caps uint64
		if n, _ := fmt.Sscanf(line, "CapEff: %x", &caps); n == 1 {
			return caps
		}
	}
	return 0
}

// reachOf sums up how an attacker fared.
func reachOf(got []string) zcstorev1.Reach {
	reach := zcstorev1.Reach_REACH_NEVER
	for k, name := range attackOrder {
		if got[k] != "CHANGED" {
			continue
		}
		if name != "by name" && name != "daemon's descriptors" {
			return zcstorev1.Reach_REACH_BY_DESCRIPTOR
		}
		reach = zcstorev1.Reach_REACH_BY_NAME
	}
	return reach
}

// attackedDaemon runs a daemon as a user of its own, hardened as zcstored is.
func attackedDaemon(t *testing.T, backing string) *place {
	t.Helper()
	p := &place{}
	p.socket, p.dir = testdaemon.PublicPlace(t)
	var env []string
	switch backing {
	case "memfd":
		env = []string{testdaemon.EnvBacking + "=" + shm.KindMemfd, "NOTIFY_SOCKET=", "FDSTORE="}
	case "plain shm":
	default:
		mount, readOnly := mounted(t, "size=64m,mode=0755")
		p.dir = filepath.Join(mount, "segments")
		if err := os.Mkdir(p.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		env = []string{testdaemon.EnvHandout + "=" + filepath.Join(readOnly, "segments")}
	}
	for path, mode := range map[string]os.FileMode{filepath.Dir(p.socket): 0o755, p.dir: 0o700} {
		if err := os.Chown(path, daemonUID, daemonUID); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := testdaemon.Command(p.socket, p.dir, append(env, testdaemon.EnvHarden+"=1")...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: daemonUID, Gid: daemonUID}
	p.daemon = testdaemon.StartCommand(t, cmd)
	p.c = testdaemon.Client(t, p.socket)
	return p
}

// mounted makes a tmpfs and a read-only bind mount of it, which go with the test.
func mounted(t testing.TB, options string) (mount, readOnly string) {
	t.Helper()
	base := testdaemon.PublicDir(t)
	mount, readOnly = filepath.Join(base, "m"), filepath.Join(base, "ro")
	for _, dir := range []string{mount, readOnly} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("zcstore-test", mount, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Skipf("cannot mount a tmpfs with %s: %v", options, err)
	}
	t.Cleanup(func() { unmount(t, mount) })
	if err := unix.Mount(mount, readOnly, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot bind a mount: %v", err)
	}
	t.Cleanup(func() { unmount(t, readOnly) })
	if err := unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return mount, readOnly
}

func unmount(t testing.TB, path string) {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Errorf("unmount: %v", err)
	}
}

// attack stores a model for every attack, has one process make them all, and looks what became of the bytes.
func attack(t *testing.T, p *place, who string, uid uint32) (got []string, guards *zcstorev1.Guarantee, words string) {
	t.Helper()
	o := probeOrder{Attacks: attackOrder, Dir: p.dir, Daemon: p.daemon.PID()}
	var files []*os.File
	var whole [][]byte
	for k := range attackOrder {
		ref := fmt.Sprintf("target-%d-%d", uid, k)
		put(t, p, ref, &Target{nn.NewLinear(64, 64, nn.Seed(uint64(uid)*100+uint64(k)))})
		v, err := p.c.Show(ctx, ref)
		if err != nil {
			t.Fatal(err)
		}
		guards, words = v.Segments[0].Guards, v.Segments[0].Guarantee
		f := segmentOf(t, p, ref)
		files = append(files, f)
		whole = append(whole, readAll(t, f))
		o.Names = append(o.Names, nameOf(t, p.dir, v.Segments[0].Inode))
	}
	said := send(t, o, files, uid)
	for k, name := range attackOrder {
		outcome := strings.NewReplacer("none of the segment", "none", "no name", "no-name").Replace(said[name])
		changed := !bytes.Equal(readAll(t, files[k]), whole[k])
		switch {
		case changed && outcome == "done":
			outcome = "CHANGED"
		case changed:
			t.Errorf("%s, %q: the bytes changed, although it ended in %s", who, name, outcome)
		case name == "ptrace" && outcome == "done":
			outcome = "allowed"
		case outcome == "done":
			t.Errorf("%s, %q: done, and the bytes are as before", who, name)
		}
		got = append(got, outcome)
	}
	return got, guards, words
}

// probe makes attacks on the daemon alone.
func probe(t *testing.T, p *place, uid uint32, names ...string) map[string]string {
	t.Helper()
	put(t, p, "probed", &Target{nn.NewLinear(64, 64, nn.Seed(7))})
	f := segmentOf(t, p, "probed")
	o := probeOrder{Attacks: names, Names: make([]string, len(names)), Dir: p.dir, Daemon: p.daemon.PID()}
	files := make([]*os.File, len(names))
	for i := range files {
		files[i] = f
	}
	return send(t, o, files, uid)
}

// send runs an attacker to its end.
func send(t *testing.T, o probeOrder, files []*os.File, uid uint32) map[string]string {
	t.Helper()
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envProbe+"="+string(order))
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("attacker with uid %d: %v, %s", uid, err, stderr.String())
	}
	said := map[string]string{}
	if err := json.Unmarshal(out, &said); err != nil {
		t.Fatal(err)
	}
	return said
}

// segmentOf takes a version's segment from the raw channel, as a client in any language would, for the length of the test.
func segmentOf(t *testing.T, p *place, ref string) *os.File {
	t.Helper()
	f, _ := leaseSegment(t, p, ref)
	return f
}

// leaseSegment is segmentOf with the connection that is the lease.
func leaseSegment(t *testing.T, p *place, ref string) (*os.File, *net.UnixConn) {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := fmt.Fprintf(c, "ZCR1 attach %s\n", ref); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, files, err := fdpass.RecvFDs(c, buf, 8)
	if err != nil || len(files) != 2 {
		t.Fatalf("attach: %d descriptors, %s, %v", len(files), buf[:n], err)
	}
	files[0].Close() // the table
	t.Cleanup(func() { files[1].Close() })
	return files[1], c
}

func readAll(t *testing.T, f *os.File) []byte {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// nameOf finds a file by its inode; "" when it has no name there.
func nameOf(t *testing.T, dir string, inode uint64) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Sys().(*syscall.Stat_t).Ino == inode {
			return e.Name()
		}
	}
	return ""
}
