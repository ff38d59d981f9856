package batch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	worker.Main()
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // a race build sleeps a second at exit, in every worker
	os.Exit(testleak.Run(m))
}

// encdec stands for the encoder and decoder of the original: 128 floats in, one number out.
type encdec struct {
	scale float32
	dir   string
}

type row struct {
	ID  int
	Vec worker.Floats
}

type rowOut struct {
	ID, PID int
	Sum     float32
}

type args struct {
	Scale float32
	Dir   string // where marks are made
}

var def = worker.Define("test.encdec", func(ctx context.Context, a args) (worker.Actor[[]row, []rowOut], error) {
	if a.Scale == 0 {
		return nil, errors.New("Scale is 0")
	}
	return &encdec{a.Scale, a.Dir}, nil
})

func (e *encdec) Close() error { return nil }

// The IDs of rows that misbehave.
const (
	bad     = -1
	lost    = -2
	blocked = -3 // until the context ends; marks that it was reached
	deadly  = -4 // ends the process the first time
)

func (e *encdec) Call(ctx context.Context, rows []row) ([]rowOut, error) {
	out := make([]rowOut, 0, len(rows))
	for _, r := range rows {
		switch r.ID {
		case bad:
			return nil, errors.New("bad row")
		case lost:
			continue
		case blocked:
			os.WriteFile(filepath.Join(e.dir, "blocked"), nil, 0o600)
			<-ctx.Done()
			return nil, ctx.Err()
		case deadly:
			if f, err := os.OpenFile(filepath.Join(e.dir, "died"), os.O_CREATE|os.O_EXCL, 0o600); err == nil {
				f.Close()
				os.Exit(5)
			}
		}
		o := rowOut{ID: r.ID, PID: os.Getpid()}
		for _, v := range r.Vec {
			o.Sum += v * e.scale
		}
		out = append(out, o)
	}
	return out, nil
}

func dataset(n int) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{ID: i, Vec: make(worker.Floats, 128)}
		for j := range rows[i].Vec {
			rows[i].Vec[j] = float32(i + j)
		}
	}
	return rows
}

func checkRows(t *testing.T, rows []row, outs []rowOut, scale float32) {
	t.Helper()
	if len(outs) != len(rows) {
		t.Fatalf("%d results for %d rows", len(outs), len(rows))
	}
	for i, o := range outs {
		want := rowOut{ID: i, PID: o.PID}
		for _, v := range rows[i].Vec {
			want.Sum += v * scale
		}
		if o != want {
			t.Fatalf("row %d: got %+v, want %+v", i, o, want)
		}
	}
}

// clean checks, when the test is done, that no goroutine of ours and no descriptor is left.
func clean(t *testing.T) {
	t.Helper()
	fds := func() int {
		l, _ := os.ReadDir("/proc/self/fd")
		return len(l)
	}
	before := fds()
	t.Cleanup(func() {
		left := ""
		if !wait(func() bool {
			left = ""
			if n := fds(); n > before {
				left = fmt.Sprintf("%d descriptors, %d before; ", n, before)
			}
			buf := make([]byte, 1<<20)
			for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "zcstore/client/") && !strings.Contains(g, "testing.tRunner(") && !strings.Contains(g, "testing.(*M).Run") {
					left += g + "\n"
				}
			}
			return left == ""
		}) {
			t.Errorf("left behind: %s", left)
		}
	})
}

// wait polls until f is true, for ten seconds at most.
func wait(f func() bool) bool {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

func eachMode(t *testing.T, f func(t *testing.T, m worker.Mode)) {
	for _, m := range []worker.Mode{worker.Processes, worker.Goroutines} {
		t.Run(m.String(), func(t *testing.T) {
			clean(t)
			f(t, m)
		})
	}
}
