package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm/tensor"
)

// writeBig writes a safetensors file of 200 tensors and 420 MB; written last, so it is in the page cache.
func writeBig(t testing.TB, path string) int64 {
	t.Helper()
	var all []safetensors.Named
	rng := rand.NewChaCha8([32]byte{1})
	for i := range 100 {
		for _, kind := range []struct {
			name  string
			shape tensor.Shape
		}{{"weight", tensor.Shape{1024, 1024}}, {"bias", tensor.Shape{1024}}} {
			n, err := tensor.SizeBytes(tensor.F32, kind.shape)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, n)
			_, _ = rng.Read(b)
			v, err := tensor.New(tensor.F32, kind.shape, b)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, safetensors.Named{Name: fmt.Sprintf("layers.%d.%s", i, kind.name), View: v})
		}
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := safetensors.Write(f, all, nil); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// putJob is one put of a file by a process of its own, as zcctl would make it.
type putJob struct{ Socket, Path string }

// putReport is how long it took, and how much memory the client had at most beyond what it had before.
type putReport struct {
	Took time.Duration
	Grew int
}

var putDef = worker.Define("e2e.put", func(context.Context, int) (worker.Actor[putJob, putReport], error) {
	return worker.Func[putJob, putReport](func(ctx context.Context, j putJob) (r putReport, err error) {
		grew := watchMemory(os.Getpid())
		defer func() { r.Grew = grew() }()
		begin := time.Now()
		im, err := hf.Open(j.Path)
		if err != nil {
			return r, err
		}
		defer im.Close()
		c, err := client.Dial(ctx, client.Options{Socket: j.Socket})
		if err != nil {
			return r, err
		}
		defer c.Close()
		if _, err := c.Put(ctx, "big", im.Draft, client.PutOptions{}); err != nil {
			return r, err
		}
		r.Took = time.Since(begin)
		return r, nil
	}), nil
})

// memoryOf reads a line of /proc/PID/status, in bytes.
func memoryOf(pid int, key string) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, _ := strings.Cut(s.Text(), ":"); k == key {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s is not in /proc/%d/status", key, pid)
}

// watchMemory samples a process's memory without shared pages, as the kernel has it in RssAnon and RssFile, until the result is
// called: the most it was beyond the first sample, in bytes.
func watchMemory(pid int) (grew func() int) {
	stop, done := make(chan struct{}), make(chan int)
	own := func() int {
		anon, _ := memoryOf(pid, "RssAnon")
		file, _ := memoryOf(pid, "RssFile")
		return anon + file
	}
	first := own()
	go func() {
		most := first
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, own())
			case <-stop:
				done <- max(most, own()) - first
				return
			}
		}
	}()
	return func() int { close(stop); return <-done }
}

// hugeMount mounts a tmpfs with huge=within_size for the benchmark, or skips with the reason.
func hugeMount(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("zcstore-test-%d-huge-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := unix.Mount("zcstore-bench", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "huge=within_size,size=2g,mode=0700"); err != nil {
		t.Skipf("a tmpfs with huge pages cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	segments := filepath.Join(dir, "segments")
	must2(t, os.Mkdir(segments, 0o700))
	return segments
}

func must2(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// onCores runs f for 0 to n-1 on all cores.
func onCores(n int, f func(i int) error) error {
	next := make(chan int)
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				errs <- f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// readFresh reads the tensors into anonymous memory that no one has touched, with or without huge pages, and takes their
// SHA-256, on all cores. The Go heap, which "read+sha256" uses, may give it pages that an earlier turn has faulted in; a put
// never has such pages.
func readFresh(f *os.File, h *safetensors.Header, huge bool) (err error) {
	at := make([]int64, len(h.Entries)+1)
	for i, e := range h.Entries {
		at[i+1] = at[i] + e.SizeBytes()
	}
	mem, err := unix.Mmap(-1, 0, int(at[len(h.Entries)]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(mem)) }()
	advice := unix.MADV_NOHUGEPAGE
	if huge {
		advice = unix.MADV_HUGEPAGE
	}
	if err := unix.Madvise(mem, advice); err != nil {
		return err
	}
	return onCores(len(h.Entries), func(i int) error {
		b := mem[at[i]:at[i+1]]
		if _, err := f.ReadAt(b, h.DataStart+h.Entries[i].Begin); err != nil {
			return err
		}
		sha256.Sum256(b)
		return nil
	})
}

// BenchmarkPutFile is a put of a 420 MB safetensors file in the page cache, from opening it in a client process until it is
// published and every byte has its SHA-256; against reading the same tensors into fresh memory of this process and hashing
// them, on all cores. And verify, SHA-256 and CRC32C, against the same checksum over a buffer that is warm in the cache.
func BenchmarkPutFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "model.safetensors")
	size := writeBig(b, path)
	for _, mount := range []string{"shm", "huge"} {
		b.Run(mount, func(b *testing.B) {
			socket, dir := testdaemon.Place(b)
			if mount == "huge" {
				dir = hugeMount(b)
			}
			daemon := testdaemon.StartProcess(b, socket, dir)
			b.Cleanup(daemon.Kill) // before the mount goes
			c := testdaemon.Client(b, socket)
			f, err := os.Open(path)
			must(b, err)
			defer f.Close()
			h, err := safetensors.Read(f, size)
			must(b, err)
			warm := make([]byte, 1<<20)
			var s samples
			grew := 0
			for b.Loop() {
				w, err := worker.Start(ctx, putDef, 0, worker.Options{}) // a fresh process: its memory is this put's alone
				must(b, err)
				daemonGrew := watchMemory(daemon.PID())
				r, err := w.Call(ctx, putJob{socket, path})
				must(b, err)
				must(b, w.Close())
				s.add("put", r.Took)
				grew = max(grew, r.Grew+daemonGrew())
				must(b, s.time("read+sha256", func() error {
					copies := make([][]byte, len(h.Entries))
					return onCores(len(copies), func(i int) error {
						e := h.Entries[i]
						copies[i] = make([]byte, e.SizeBytes())
						if _, err := io.ReadFull(io.NewSectionReader(f, h.DataStart+e.Begin, e.SizeBytes()), copies[i]); err != nil {
							return err
						}
						sha256.Sum256(copies[i])
						return nil
					})
				}))
				for _, huge := range []bool{false, true} {
					name := "fresh-4k"
					if huge {
						name = "fresh-thp"
					}
					must(b, s.time(name, func() error { return readFresh(f, h, huge) }))
				}
				must(b, s.time("verify", func() error { _, err := c.Verify(ctx, "big"); return err }))
				must(b, s.time("warm-sha256", func() error {
					return onCores(int(size>>20), func(int) error { sha256.Sum256(warm); return nil })
				}))
				must(b, s.time("verify-quick", func() error { _, err := c.VerifyQuick(ctx, "big"); return err }))
				must(b, s.time("warm-crc32c", func() error {
					t := crc32.MakeTable(crc32.Castagnoli)
					return onCores(int(size>>20), func(int) error { crc32.Checksum(warm, t); return nil })
				}))
				_, err = c.Remove(ctx, "big", true)
				must(b, err)
			}
			b.ReportMetric(0, "ns/op")
			for _, n := range s.names {
				b.ReportMetric(float64(s.median(n).Nanoseconds())/1e6, n+"-ms")
			}
			over := func(name, base string) float64 { return float64(s.median(base)) / float64(s.median(name)) }
			b.ReportMetric(float64(size)/1e6/s.median("put").Seconds(), "put-MB/s")
			b.ReportMetric(over("put", "read+sha256"), "put-x-read+sha256")
			b.ReportMetric(over("put", "fresh-4k"), "put-x-fresh-4k")
			b.ReportMetric(over("put", "fresh-thp"), "put-x-fresh-thp")
			b.ReportMetric(over("verify", "warm-sha256"), "verify-x-warm")
			b.ReportMetric(over("verify-quick", "warm-crc32c"), "quick-x-warm")
			b.ReportMetric(float64(grew)/(1<<20), "grew-MiB")
		})
	}
}
