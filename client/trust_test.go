package client

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTrustServer(t *testing.T) {
	const other = 54321
	base := t.TempDir() // below /tmp, where everybody may make a directory
	socket := filepath.Join(base, "s")
	for _, uid := range []uint32{0, uint32(os.Geteuid())} {
		if err := TrustServer(socket, uid); err != nil {
			t.Error(err)
		}
	}
	if err := TrustServer(socket, other); err == nil || !strings.Contains(err.Error(), "54321") {
		t.Errorf("a stranger: %v", err)
	}
	t.Setenv(EnvServerUID, "54321")
	if err := TrustServer(socket, other); err != nil {
		t.Errorf("named by the environment: %v", err)
	}
	t.Setenv(EnvServerUID, "no such user")
	if err := TrustServer(socket, other); err == nil || !strings.Contains(err.Error(), EnvServerUID) {
		t.Errorf("a name that is none: %v", err)
	}
}

func TestDirectoryThatRootMade(t *testing.T) {
	if owner, ok := grantedByRoot("/usr/lib"); !ok || owner != 0 {
		t.Errorf("/usr/lib: %d, %v", owner, ok)
	}
	for _, dir := range []string{t.TempDir(), "/tmp", "/no/such/directory"} {
		if _, ok := grantedByRoot(dir); ok {
			t.Errorf("%s counts as made by root", dir)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("the case of a service's own directory needs root to make one")
	}
	dir, err := os.MkdirTemp("/run", "zcstore-test-")
	if err != nil {
		t.Skipf("no directory in /run: %v", err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, 54321, -1); err != nil {
		t.Fatal(err)
	}
	if err := TrustServer(filepath.Join(dir, "s"), 54321); err != nil {
		t.Errorf("the owner of a directory that root made: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if TrustServer(filepath.Join(dir, "s"), 54321) == nil {
		t.Error("a directory that everybody may write to")
	}
}
