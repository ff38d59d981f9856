package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/proto/zcerr"
)

func TestLockSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	release, err := lockSocket(socket)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(socket + ".lock"); err != nil || st.Mode() != 0o600 {
		t.Errorf("the lock has mode %v, %v", st.Mode(), err)
	}
	if _, err := lockSocket(socket); zcerr.KindOf(err) != zcerr.Conflict || !strings.Contains(err.Error(), "(pid ") || zcerr.HintOf(err) == "" {
		t.Errorf("a second daemon: %v (%s)", err, zcerr.HintOf(err))
	}
	release()
	if _, err := os.Lstat(socket + ".lock"); !os.IsNotExist(err) {
		t.Errorf("the lock's file stays: %v", err)
	}
	again, err := lockSocket(socket)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// Case 63, for the file beside the socket: what somebody else has put there is neither followed nor waited for.
func TestCase63PlantedSocketLock(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	for name, plant := range map[string]func(path string) error{
		"a link":      func(p string) error { return os.Symlink(victim, p) },
		"a fifo":      func(p string) error { return unix.Mkfifo(p, 0o666) },
		"a directory": func(p string) error { return os.Mkdir(p, 0o777) },
		"a file of somebody else": func(p string) error {
			if os.Geteuid() != 0 {
				return os.Mkdir(p, 0o777) // only root can plant as somebody else
			}
			if err := os.WriteFile(p, nil, 0o666); err != nil {
				return err
			}
			return os.Chown(p, 65534, 65534)
		},
	} {
		if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		lock := filepath.Join(dir, "s.lock")
		if err := plant(lock); err != nil {
			t.Fatal(err)
		}
		if release, err := lockSocket(filepath.Join(dir, "s")); err == nil {
			release()
			t.Errorf("%s was taken for the lock", name)
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
			t.Errorf("%s: the victim holds %q, %v", name, b, err)
		}
		if err := os.RemoveAll(lock); err != nil {
			t.Fatal(err)
		}
	}
}
