package procmem

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSharedAndPrivatePages(t *testing.T) {
	const size = 4 << 20
	f, err := os.CreateTemp("/dev/shm", "zcstore-test-procmem-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	shared, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(shared)
	private, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(private)
	for i := 0; i < size; i += 4096 {
		shared[i], private[i] = 1, 2
	}
	maps, err := Mappings(os.Getpid(), st.Ino)
	if err != nil || len(maps) != 2 {
		t.Fatalf("mappings %+v, %v", maps, err)
	}
	for _, m := range maps {
		copied := m.Perms == "rw-p"
		if m.Size != size || m.RSS != size || (copied && m.Anonymous != size) || (!copied && (m.Perms != "rw-s" || m.Anonymous != 0)) {
			t.Errorf("mapping %+v", m)
		}
	}
	if u, err := Of(os.Getpid()); err != nil || u.RSS < 2*size || u.Private < size || u.PSS > u.RSS || u.PSS < u.Private {
		t.Errorf("usage %+v, %v", u, err)
	}
}
