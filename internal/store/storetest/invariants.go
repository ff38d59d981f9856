package storetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// Accounts compares a store at rest with its directory: what it says is used is what the kernel has allocated, there is a file
// for every segment and table that it counts, and none that nobody can name. It gives what is wrong, or nil.
func Accounts(s Store) error {
	st, err := s.Status()
	if err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if st.OpenPuts == 0 && st.Reserved != 0 {
		return fmt.Errorf("no put is open, and %d bytes are reserved", st.Reserved)
	}
	if st.Backing == shm.KindMemfd { // there is no directory; what has a name is ours, the catalog and nothing else besides
		if catalog := uint64(1 << 20); st.OpenPuts != 0 || st.Overhead > catalog {
			return fmt.Errorf("%d puts are still open, %d bytes are in files of no version", st.OpenPuts, st.Overhead)
		}
		return nil
	}
	files, blocks, strays, err := usage(st.Directory)
	if err != nil {
		return err
	}
	made := 0
	for _, f := range st.Forms {
		made += f.Versions
	}
	// A version that is not served keeps its table, when it has one, until it is put again or removed.
	if blocks != st.Used && st.Damaged == 0 || files < st.Segments+st.Versions-st.Cold+made || files > st.Segments+st.Versions-st.Cold+made+st.Damaged {
		return fmt.Errorf("status says %d bytes in %d segments and %d tables (%d damaged) and %d of forms; the directory holds %d bytes in %d files",
			st.Used, st.Segments, st.Versions-st.Cold, st.Damaged, made, blocks, files)
	}
	if st.OpenPuts != 0 {
		return fmt.Errorf("%d puts are still open", st.OpenPuts)
	}
	if len(strays) > 0 {
		return fmt.Errorf("stray files: %q", strays)
	}
	return nil
}

func usage(dir string) (files int, blocks uint64, strays []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, nil, err
	}
	for _, e := range entries {
		name := e.Name()
		switch {
		case strings.HasPrefix(name, "t-"), strings.HasPrefix(name, "f-"), strings.HasPrefix(name, "s-"):
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(dir, name), &st); err != nil {
				return 0, 0, nil, err
			}
			files++
			blocks += uint64(st.Blocks) * 512
		case name == "lock", name == "catalog":
		default:
			strays = append(strays, name)
		}
	}
	return files, blocks, strays, nil
}

// Settled waits for Accounts to hold: what a client left is freed when the daemon has seen it go, and that takes a moment.
func Settled(t testing.TB, s Store) {
	t.Helper()
	if err := settle(func() error { return Accounts(s) }); err != nil {
		t.Error(err)
	}
}

func settle(check func() error) error {
	var err error
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		if err = check(); err == nil {
			return nil
		}
	}
	return err
}

// Daemon is a daemon under test, as a process or in this one, with what it has acknowledged. After each fault, Invariants
// holds it to all that a fault must not change.
type Daemon struct {
	Socket string
	// Both are nil when it runs in this process; testdaemon.Process and testdaemon.Goroutines have them for another.
	PID        func() int
	Goroutines func() int

	mu    sync.Mutex
	acked map[string]manifest.Digest // name:tag

	fds, goroutines int // at rest; 0 before Rest
	turn            uint64
}

// Ack notes that name:tag was acknowledged to point at a digest.
func (d *Daemon) Ack(ref string, digest manifest.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.acked == nil {
		d.acked = map[string]manifest.Digest{}
	}
	d.acked[ref] = digest
}

// Forget notes that name:tag was removed.
func (d *Daemon) Forget(ref string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.acked, ref)
}

// Rest takes the baseline of descriptors and goroutines: call it when no client but the test's own is connected.
func (d *Daemon) Rest(t testing.TB) {
	t.Helper()
	last, same := -1, 0
	for begin := time.Now(); same < 20 && time.Since(begin) < 5*time.Second; time.Sleep(time.Millisecond) { // until the number stays
		if n := d.countFDs(); n == last {
			same++
		} else {
			last, same = n, 0
		}
	}
	d.fds, d.goroutines = last, d.countGoroutines()
}

func (d *Daemon) countFDs() int {
	pid := os.Getpid()
	if d.PID != nil {
		pid = d.PID()
	}
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	n := 0
	for _, e := range entries {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, e.Name())); err == nil && !strings.HasSuffix(target, "/fd") {
			n++
		}
	}
	return n
}

func (d *Daemon) countGoroutines() int {
	if d.Goroutines != nil {
		return d.Goroutines()
	}
	return runtime.NumGoroutine()
}

// Invariants fails the test unless, by a client of its own: the daemon answers; its totals are the kernel's and no file is
// stray; its descriptors and goroutines are back at what Rest saw; every acknowledged version is there, with every byte as its
// digest says; and a put and a get of another client work.
func (d *Daemon) Invariants(t testing.TB) {
	t.Helper()
	if err := d.invariants(); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}

func (d *Daemon) invariants() error {
	if err := d.withClient(func(s Store) error {
		if err := settle(func() error { return Accounts(s) }); err != nil {
			return err
		}
		if err := d.checkAcked(s); err != nil {
			return err
		}
		return d.works(s)
	}); err != nil {
		return err
	}
	if d.fds == 0 {
		return nil
	}
	return settle(func() error {
		if n := d.countFDs(); n > d.fds {
			return fmt.Errorf("the daemon has %d descriptors, %d at rest", n, d.fds)
		}
		if n := d.countGoroutines(); n > d.goroutines {
			return fmt.Errorf("%d goroutines, %d at rest", n, d.goroutines)
		}
		return nil
	})
}

func (d *Daemon) withClient(f func(Store) error) error {
	c, err := client.Dial(context.Background(), client.Options{Socket: d.Socket})
	if err != nil {
		return err
	}
	defer c.Close()
	return f(Remote{c})
}

func (d *Daemon) checkAcked(s Store) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ref, digest := range d.acked {
		h, err := s.Attach(ref)
		if err != nil {
			return fmt.Errorf("acknowledged %s: %w", ref, err)
		}
		bad := h.Broken()
		h.Release()
		if h.Digest != digest || bad != "" {
			return fmt.Errorf("acknowledged %s as %v: it is %v now, damaged tensor %q", ref, digest, h.Digest, bad)
		}
	}
	return nil
}

// works has another client put and get.
func (d *Daemon) works(s Store) error {
	d.turn++
	const name = "bystander"
	row := Row{"x", 70_000, 1<<40 + d.turn}
	if _, err := s.Put(name, false, Draft(row)); err != nil {
		return fmt.Errorf("another client's put: %w", err)
	}
	h, err := s.Attach(name)
	if err != nil {
		return fmt.Errorf("another client's get: %w", err)
	}
	bad := h.Broken()
	same := string(h.Tensors["x"]) == string(row.Bytes())
	h.Release()
	if bad != "" || !same {
		return fmt.Errorf("another client got other bytes than it put")
	}
	if _, err := s.Remove(name, true); err != nil && zcerr.KindOf(err) != zcerr.NotFound {
		return fmt.Errorf("another client's rm: %w", err)
	}
	return nil
}
