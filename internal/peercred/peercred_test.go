package peercred

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (client, server *net.UnixConn) {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	ln, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.DialUnix("unix", nil, addr); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestOf(t *testing.T) {
	client, server := pair(t)
	want := Cred{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), PID: int32(os.Getpid())}
	for name, c := range map[string]*net.UnixConn{"client": client, "server": server} {
		if got, err := Of(c); err != nil || got != want {
			t.Errorf("peer of the %s: got %v, %v; want %v", name, got, err, want)
		}
	}
	client.Close()
	if got, err := Of(server); err != nil || got != want {
		t.Errorf("after the peer closed: got %v, %v; want %v", got, err, want)
	}
	if _, err := Of(client); err == nil {
		t.Error("a closed connection has credentials")
	}
}

func TestPIDFD(t *testing.T) {
	client, server := pair(t)
	fd, err := PIDFD(server)
	if err != nil {
		t.Fatal(err)
	}
	if fd < 0 {
		t.Skip("no SO_PEERPIDFD on this kernel (Linux 6.5 has it)")
	}
	defer unix.Close(fd)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("pidfd flags %#x, %v; want close-on-exec", flags, err)
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		t.Errorf("signal 0 by the pidfd: %v", err)
	}
	client.Close()
	server.Close()
	if fd, err := PIDFD(server); err == nil || fd != -1 {
		t.Errorf("on a closed connection: got %d, %v; want -1 and an error", fd, err)
	}
}
