package fdstore

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manager is a socket that nobody reads.
func manager(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zc")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); os.RemoveAll(dir) })
	return path
}

func TestOpen(t *testing.T) {
	socket := manager(t)
	for _, c := range []struct {
		socket, max  string
		store, fails bool
	}{
		{"", "", false, false}, {socket, "", false, false}, {"", "8", false, false}, {socket, "0", false, false},
		{socket, "8", true, false}, {socket, "many", false, true}, {socket, "-1", false, true}, {socket + "x", "8", false, true},
	} {
		t.Setenv(EnvSocket, c.socket)
		t.Setenv(EnvMax, c.max)
		s, err := Open(nil)
		if (s != nil) != c.store || (err != nil) != c.fails {
			t.Errorf("%s=%q %s=%q: %v, %v", EnvSocket, c.socket, EnvMax, c.max, s, err)
		}
		if s != nil {
			s.Close()
		}
	}
}

// The manager drops what is too much without a word, so nothing of the kind is sent.
func TestLimitIsCountedHere(t *testing.T) {
	t.Setenv(EnvSocket, manager(t))
	t.Setenv(EnvMax, "3")
	s, err := Open([]string{"kept"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, name := range []string{"a", "b"} {
		if err := s.Keep(name, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Keep("c", f); err == nil || s.Room() != 0 {
		t.Errorf("a fourth of three: %v, room for %d", err, s.Room())
	}
	for _, name := range []string{"kept", "unknown"} {
		if err := s.Drop(name); err != nil {
			t.Error(err)
		}
	}
	if err := s.Keep("a", f); err == nil {
		t.Error("a name was taken twice: the manager would keep both, and nobody knows which")
	}
	if s.Room() != 1 {
		t.Errorf("room for %d", s.Room())
	}
	for _, bad := range []string{"", "a:b", "a\nFDSTORE=1", "ü", strings.Repeat("x", 256)} {
		if err := s.Keep(bad, f); err == nil {
			t.Errorf("the name %q was taken", bad)
		}
	}
}
