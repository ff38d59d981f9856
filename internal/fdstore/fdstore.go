// Package fdstore keeps descriptors with the service manager, which hands them to the next process of the same service:
// systemd's file descriptor store. go-systemd receives stored descriptors and cannot send any, so the sender is here.
//
// The manager answers nothing. It handles messages in order, drops what goes over its limit without a word, and closes a
// barrier's descriptor when it has come that far: so the limit is counted here, and Sync waits for the barrier.
package fdstore

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// The environment of a service whose manager keeps descriptors for it. systemd sets EnvMax from version 254 on; before, the
// unit has to say it: Environment=FDSTORE= with the number of FileDescriptorStoreMax=.
const (
	EnvSocket = "NOTIFY_SOCKET"
	EnvMax    = "FDSTORE"
)

// wait is how long the manager may take for a message. It is busy with every other service, too.
const wait = 10 * time.Second

// maxName is the longest name it takes.
const maxName = 255

// Store is the sending side. It is safe for concurrent use.
type Store struct {
	conn *net.UnixConn
	max  int

	mu   sync.Mutex
	have map[string]bool // guarded by mu; names that the manager has
}

// Open connects to the store that the environment names. Without one, or with room for none, both results are nil. names are
// those it has already.
func Open(names []string) (*Store, error) {
	path, limit := os.Getenv(EnvSocket), os.Getenv(EnvMax)
	if path == "" || limit == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(limit)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("%s=%q is no number of descriptors", EnvMax, limit)
	}
	if n == 0 {
		return nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("connect to the service manager: %w", err)
	}
	s := &Store{conn: conn, max: n, have: map[string]bool{}}
	for _, name := range names {
		s.have[name] = true
	}
	return s, nil
}

// Close ends the connection. What is stored stays stored.
func (s *Store) Close() error { return s.conn.Close() }

// Room is how many further descriptors it takes.
func (s *Store) Room() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.max - len(s.have)
}

// Keep sends a copy of f under a name. It has arrived when a later Sync returns.
func (s *Store) Keep(name string, f *os.File) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have[name] {
		return fmt.Errorf("a descriptor %q is stored already", name)
	}
	if len(s.have) >= s.max {
		return fmt.Errorf("the service manager keeps %d descriptors and no more", s.max)
	}
	// Regular files cannot be polled; the manager need not try.
	if err := s.send("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0", int(f.Fd())); err != nil {
		return err
	}
	s.have[name] = true
	return nil
}

// Drop has the manager close the descriptor of a name.
func (s *Store) Drop(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.have[name] {
		return nil
	}
	if err := s.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		return err
	}
	delete(s.have, name)
	return nil
}

// Sync returns when the manager has handled every message before.
func (s *Store) Sync() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a barrier: %w", err)
	}
	defer r.Close()
	err = s.send("BARRIER=1", int(w.Fd()))
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("the service manager did not answer within %v", wait)
		}
		p := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLHUP}}
		n, err := unix.Poll(p, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the service manager: %w", err)
		}
		if n == 1 {
			return nil
		}
	}
}

func (s *Store) send(message string, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	raw, err := s.conn.SyscallConn() // WriteMsgUnix refuses connected datagram sockets
	if err == nil {
		var sent error
		err = raw.Write(func(fd uintptr) bool {
			for {
				sent = unix.Sendmsg(int(fd), []byte(message), oob, nil, unix.MSG_NOSIGNAL)
				if !errors.Is(sent, unix.EINTR) {
					return !errors.Is(sent, unix.EAGAIN)
				}
			}
		})
		if err == nil {
			err = sent
		}
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

func checkName(name string) error {
	bad := func(r rune) bool { return r < ' ' || r > '~' || r == ':' }
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is no name for a stored descriptor", name)
	}
	return nil
}

// Received takes what the service manager passed to this process at its start, stored or for sockets, named by their
// File.Name, and clears the environment of it. The caller owns the files. Each is closed on exec, or it is an error: a
// descriptor of weights must not reach a child.
func Received() ([]*os.File, error) {
	files := activation.Files(true)
	for _, f := range files {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0) // go-systemd sets it and looks at no error
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			err = errors.New("is not closed on exec")
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("received descriptor %q: %w", f.Name(), err)
		}
	}
	return files, nil
}
