package shm

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/testrace"
)

const envCore = "ZCSTORE_TEST_CORE"

// coreMain is the process that dies. It maps descriptor 3, as the SDK and the daemon do or as a careless program would, and
// aborts. It never copies what it maps.
func coreMain() {
	mode := os.Getenv(envCore)
	if mode == "" {
		return
	}
	if err := dumpCore(mode); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

func dumpCore(mode string) error {
	// Every kind of memory, whatever this machine's default is.
	if err := os.WriteFile("/proc/self/coredump_filter", []byte("0xff"), 0); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}); err != nil {
		return err
	}
	f := os.NewFile(3, "segment")
	u, err := UsageOf(f)
	if err != nil {
		return err
	}
	if mode == "careless" {
		b, err := unix.Mmap(3, 0, int(u.Size), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		if err := unix.Madvise(b, unix.MADV_POPULATE_READ); err != nil {
			return err
		}
	} else {
		m, err := Map(f, int(u.Size))
		if err != nil {
			return err
		}
		if err := m.Populate(); err != nil {
			return err
		}
	}
	return unix.Kill(os.Getpid(), unix.SIGABRT)
}

// Case 44: a process that dies on a segment leaves none of it in its core file.
func TestCase44CoreDumps(t *testing.T) {
	if testrace.Enabled {
		t.Skip("the race detector's own memory makes core files of gigabytes")
	}
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		t.Fatal(err)
	}
	if p := strings.TrimSpace(string(pattern)); p == "" || strings.ContainsAny(p, "|/") {
		t.Skipf("core files go to %q here, not to the directory of the process", p)
	}
	if _, err := os.Stat("/proc/self/coredump_filter"); err != nil {
		t.Skip("this kernel writes no core files")
	}
	marker := make([]byte, 32)
	rand.Read(marker)
	data := bytes.Repeat(marker, 2*PageSize/len(marker))
	d := testDir(t)
	m, _ := NewMemfd(nil, nil)
	defer m.Close()
	fill(t, d, "linked", data)
	fill(t, d, "unlinked", data)
	fill(t, m, "memfd", data)
	for _, name := range []string{"linked", "unlinked", "memfd"} {
		var b Backing = d
		if name == "memfd" {
			b = m
		}
		f, err := b.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if name == "unlinked" {
			if err := d.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		// What shows that the search finds what is there.
		if n := countInCore(t, f, "careless", marker); n == 0 {
			t.Errorf("%s: a core of a process that maps it plainly has no marker: this test sees nothing", name)
		}
		if n := countInCore(t, f, "careful", marker); n != 0 {
			t.Errorf("%s: the core has the marker %d times", name, n)
		}
	}
}

func countInCore(t *testing.T, segment *os.File, mode string, marker []byte) int {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), envCore+"="+mode, "GOTRACEBACK=crash")
	cmd.ExtraFiles = []*os.File{segment}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	if st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != unix.SIGABRT {
		t.Fatalf("the process did not abort: %v, %.300s", err, stderr.String())
	} else if !st.CoreDump() {
		t.Skip("no core file was written here (RLIMIT_CORE, or the kernel's settings)")
	}
	cores, err := filepath.Glob(filepath.Join(dir, "core*"))
	if err != nil || len(cores) != 1 {
		t.Fatalf("core files %v, %v", cores, err)
	}
	f, err := os.Open(cores[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := count(f, marker)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// count counts a string in a stream.
func count(r io.Reader, what []byte) (int, error) {
	br := bufio.NewReaderSize(r, 1<<20)
	buf := make([]byte, 0, 2<<20)
	n := 0
	for {
		m, err := br.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+m]
		for {
			i := bytes.Index(buf, what)
			if i < 0 {
				break
			}
			n++
			buf = buf[i+len(what):]
		}
		if keep := len(what) - 1; len(buf) > keep {
			buf = buf[len(buf)-keep:]
		}
		buf = append(make([]byte, 0, 2<<20), buf...)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Wherever core files go on a machine: every mapping is marked as not to be dumped.
func TestMappingsAreMarkedForNoDump(t *testing.T) {
	d := testDir(t)
	fill(t, d, "s-1", make([]byte, 3*PageSize))
	f, err := d.Open("s-1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := Map(f, 3*PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, ours, found := strings.Cut(string(smaps), " "+strconv.FormatUint(m.Inode(), 10)+" ")
	if !found {
		t.Fatal("the mapping is not in smaps")
	}
	_, flags, _ := strings.Cut(ours, "VmFlags:")
	flags, _, _ = strings.Cut(flags, "\n")
	if !strings.Contains(flags, " dd") {
		t.Errorf("flags%s, without dd", flags)
	}
}
