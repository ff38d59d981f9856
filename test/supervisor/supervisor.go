// Package supervisor is the stand-in for systemd in tests of the memfd backing.
package supervisor

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/testdaemon"
)

// Supervisor does what systemd does for a service with FileDescriptorStoreMax=: it keeps the descriptors that the service
// sends, in the order of its messages, and passes them to the next process of the service.
type Supervisor struct {
	t     testing.TB
	conn  *net.UnixConn
	path  string
	max   int
	slow  time.Duration // before each message is handled
	ended chan struct{}

	mu    sync.Mutex
	names []string   // guarded by mu
	files []*os.File // guarded by mu
}

// New makes one that goes with the test. It keeps up to max descriptors, and takes its time for each message.
func New(t testing.TB, max int, slow time.Duration) *Supervisor {
	t.Helper()
	base, err := os.MkdirTemp("", "zc")
	if err != nil {
		t.Fatal(err)
	}
	s := &Supervisor{t: t, path: filepath.Join(base, "notify"), max: max, slow: slow, ended: make(chan struct{})}
	if s.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	go s.serve()
	t.Cleanup(func() {
		s.conn.Close()
		<-s.ended
		for _, f := range s.files {
			f.Close()
		}
		os.RemoveAll(base)
	})
	return s
}

func (s *Supervisor) serve() {
	defer close(s.ended)
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*8))
	for {
		n, oobn, _, _, err := s.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		var files []*os.File
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		for _, m := range msgs {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "kept"))
			}
		}
		if err != nil {
			s.t.Errorf("supervisor: %v", err)
		}
		s.message(string(buf[:n]), files)
	}
}

func (s *Supervisor) message(text string, files []*os.File) {
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	fields := map[string]string{}
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		fields[k] = v
	}
	name := fields["FDNAME"]
	switch {
	case fields["FDSTORE"] == "1" && len(files) == 1 && len(s.files) < s.max:
		s.names, s.files = append(s.names, name), append(s.files, files[0])
		return
	case fields["FDSTOREREMOVE"] == "1":
		for i := len(s.names) - 1; i >= 0; i-- {
			if s.names[i] == name {
				s.files[i].Close()
				s.names, s.files = append(s.names[:i], s.names[i+1:]...), append(s.files[:i], s.files[i+1:]...)
			}
		}
	}
	for _, f := range files {
		f.Close()
	}
}

// Kept lists the names that are in store.
func (s *Supervisor) Kept() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.names...)
}

// Add puts a descriptor into the store as if the service had.
func (s *Supervisor) Add(name string, f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names, s.files = append(s.names, name), append(s.files, f)
}

// flush returns when every message that was sent before is handled: systemd, too, reads what a process has said before it
// takes note of its death.
func (s *Supervisor) flush() {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: s.path}, 0); err != nil {
		s.t.Fatal(err)
	}
	w.Close()
	_, _ = r.Read(make([]byte, 1)) // until the other end is closed
}

// Start runs a daemon with the memfd backing, and with what is in store.
func (s *Supervisor) Start(socket, dir string, env ...string) *testdaemon.Process {
	s.t.Helper()
	s.flush()
	s.mu.Lock()
	cmd := testdaemon.Command(socket, dir, append(env, testdaemon.EnvBacking+"=memfd", "NOTIFY_SOCKET="+s.path, fmt.Sprintf("FDSTORE=%d", s.max),
		fmt.Sprintf("LISTEN_FDS=%d", len(s.files)), "LISTEN_FDNAMES="+strings.Join(s.names, ":"))...)
	for _, f := range s.files { // copies: the daemon may have one dropped while it is being started
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			s.mu.Unlock()
			s.t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), f.Name())
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	s.mu.Unlock()
	// Only the process that a variable names may take the descriptors, and its id is known to itself alone.
	inner := cmd.Path
	if exe, err := os.Executable(); err == nil {
		inner = exe
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		s.t.Skip("no sh")
	}
	cmd.Path, cmd.Args = sh, []string{"sh", "-c", `LISTEN_PID=$$ exec "$0"`, inner}
	return testdaemon.StartCommand(s.t, cmd)
}
