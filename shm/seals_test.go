package shm

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckSeals(t *testing.T) {
	fd, err := unix.MemfdCreate("test", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "memfd")
	defer f.Close()
	if err := CheckSeals(f, 0); err != nil {
		t.Errorf("nothing is promised: %v", err)
	}
	if CheckSeals(f, AllSeals) == nil {
		t.Error("an unsealed memfd passed")
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	if CheckSeals(f, AllSeals) == nil {
		t.Error("a memfd that can be cut passed")
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, AllSeals); err != nil {
		t.Fatal(err)
	}
	if err := CheckSeals(f, AllSeals); err != nil {
		t.Error(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if CheckSeals(r, AllSeals) == nil {
		t.Error("a pipe passed")
	}
}
