package region_test

import (
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/region"
)

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }

// cut is three pages of a file, of which the last two are gone.
func cut(t *testing.T) []byte {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(3 * 4096); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFaultOfAKnownMapping(t *testing.T) {
	b := cut(t)
	r := region.Register(b, nil)
	defer r.Remove()
	sum := 0
	err := region.Guard(func() error {
		for _, v := range b {
			sum += int(v)
		}
		return nil
	})
	var f *region.Fault
	if !errors.As(err, &f) || f.Offset != 4096 || f.Size != 3*4096 {
		t.Fatalf("got %v", err)
	}
	if !errors.Is(err, zcerr.Fault) || zcerr.KindOf(err) != zcerr.Fault || zcerr.HintOf(err) == "" || errors.Is(err, zcerr.Corrupt) {
		t.Errorf("kind %v, hint %q", zcerr.KindOf(err), zcerr.HintOf(err))
	}
	if w := zcerr.Wrap("sync", "m:v1", err); !errors.Is(w, zcerr.Fault) {
		t.Errorf("wrapped: %v", w)
	}
	err = region.Guard(func() error { copy(make([]byte, len(b)), b); return nil }) // memmove is assembly
	if !errors.Is(err, zcerr.Fault) {
		t.Errorf("memmove: %v", err)
	}
	want := errors.New("own")
	if err := region.Guard(func() error { return want }); err != want {
		t.Errorf("an error of its own became %v", err)
	}
}

// A fault outside of known mappings, and every other panic, must stay what it is.
func TestOtherPanicsStayLoud(t *testing.T) {
	b := cut(t)
	near := region.Register(b[:4096:4096], nil) // ends where the lost pages begin
	defer near.Remove()
	for name, f := range map[string]func() error{
		"a fault elsewhere": func() error { _ = strings.Count(string(b), "x"); return nil },
		"nil":               func() error { var p *[4]int; p[2]++; return nil },
		"index":             func() error { i := len(b); b[i%len(b)+i]++; return nil },
		"panic":             func() error { panic("mine") },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			t.Errorf("returned %v", region.Guard(f))
		})
	}
}

func TestGateOf(t *testing.T) {
	m, err := unix.Mmap(-1, 0, 200, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON) // the Go stack, and what is on it, moves
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	a, b := m[:100:100], m[100:]
	ga, gb := region.NewGate(), region.NewGate()
	ra, rb := region.Register(a, ga), region.Register(b, gb)
	if region.GateOf(a) != ga || region.GateOf(a[99:]) != ga || region.GateOf(b[50:60]) != gb || region.GateOf(make([]byte, 1)) != nil || region.GateOf(nil) != nil {
		t.Error("wrong gate")
	}
	ra.Remove()
	if region.GateOf(a) != nil || region.GateOf(b) != gb {
		t.Error("wrong gate after Remove")
	}
	rb.Remove()
}

// Close waits for every reader, and whoever comes later is refused.
func TestGate(t *testing.T) {
	for range 20 {
		g := region.NewGate()
		var inside, refused atomic.Int64
		var open atomic.Bool
		open.Store(true)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					if err := g.Enter(); err != nil {
						if !errors.Is(err, region.ErrClosed) || !errors.Is(err, zcerr.Canceled) {
							t.Errorf("refused with %v", err)
						}
						refused.Add(1)
						return
					}
					inside.Add(1)
					if !open.Load() {
						t.Error("inside after Close returned")
					}
					inside.Add(-1)
					g.Leave()
				}
			})
		}
		time.Sleep(50 * time.Microsecond)
		for range 3 { // any number may close
			wg.Go(func() {
				g.Close()
				open.Store(false)
				if n := inside.Load(); n != 0 {
					t.Errorf("%d inside after Close", n)
				}
			})
		}
		wg.Wait()
		if refused.Load() != 8 || !g.Closed() {
			t.Errorf("%d refused", refused.Load())
		}
	}
	g := region.NewGate()
	if err := g.Enter(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { g.Close(); close(done) }()
	for !g.Closed() {
		time.Sleep(time.Microsecond)
	}
	if err := g.Enter(); err == nil {
		t.Error("entered while closing")
	}
	select {
	case <-done:
		t.Error("Close did not wait")
	case <-time.After(5 * time.Millisecond):
	}
	g.Leave()
	<-done
}
