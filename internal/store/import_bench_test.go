package store

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/models/manifest"
)

// cpuTime is what this process has used of all cores: on a machine with other work it says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkImport is the daemon's part of a put of 256 MiB in 64 tensors from a file in the page cache: how long each step takes.
func BenchmarkImport(b *testing.B) {
	const tensors, size = 64, 4 << 20
	path := filepath.Join(b.TempDir(), "weights")
	if err := os.WriteFile(path, make([]byte, tensors*size), 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var rows []row
	var at []RowAt
	for i := range tensors {
		rows = append(rows, row{name: fmt.Sprintf("t%03d", i), size: size})
		at = append(at, RowAt{Row: i, Offset: uint64(i * size)})
	}
	d := draft(rows[:1]...)
	for _, r := range rows[1:] {
		t := d.Tensors[0]
		t.Names = []string{r.name}
		d.Tensors = append(d.Tensors, t)
		p := d.Root.Params[0]
		p.Name, p.Tensor = r.name, len(d.Tensors)-1
		d.Root.Params = append(d.Root.Params, p)
	}
	v, err := d.SealWith(make([]manifest.Digest, tensors))
	if err != nil {
		b.Fatal(err)
	}
	dir := os.Getenv("ZCSTORE_BENCH_DIR")
	if dir == "" {
		dir = testPath(b)
	}
	s := open(b, dir)
	steps := map[string]time.Duration{}
	step := func(name string, f func() error) {
		begin, cpu := time.Now(), cpuTime(b)
		if err := f(); err != nil {
			b.Fatal(err)
		}
		steps[name] += time.Since(begin)
		steps[name+"-cpu"] += cpuTime(b) - cpu
	}
	b.SetBytes(tensors * size)
	for b.Loop() {
		var p *Put
		step("begin", func() (err error) {
			p, err = s.Begin(PutSpec{Ref: "m", Manifest: v.Encoded, Pending: v.Pending})
			return err
		})
		step("import", func() error {
			return p.Import(context.Background(), f, tensors*size, at, time.Minute, func() {}, func(int) {})
		})
		p.Abort()
		// What any program would do that wants the bytes and their SHA-256.
		step("read+sha256", func() error {
			var wg sync.WaitGroup
			next := make(chan RowAt)
			for range runtime.GOMAXPROCS(0) {
				wg.Go(func() {
					for r := range next {
						copied := make([]byte, size)
						_, _ = f.ReadAt(copied, int64(r.Offset))
						sha256.Sum256(copied)
					}
				})
			}
			for _, r := range at {
				next <- r
			}
			close(next)
			wg.Wait()
			return nil
		})
	}
	for name, took := range steps {
		b.ReportMetric(float64(took.Microseconds())/1e3/float64(b.N), name+"-ms")
	}
}
