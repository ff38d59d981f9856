package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// gate is a function that runs only when it is let, and notes what it was given.
type gate struct {
	mu   sync.Mutex
	runs [][]int
	came chan struct{}
	go_  chan error
	ctx  context.Context
}

func newGate() (*gate, *Group[int, string]) {
	w := &gate{came: make(chan struct{}, 100), go_: make(chan error)}
	return w, &Group[int, string]{Most: 10, Size: func(i int) int { return i % 100 }, Run: w.run}
}

func (w *gate) run(ctx context.Context, items []int) ([]string, error) {
	w.mu.Lock()
	w.runs = append(w.runs, slices.Clone(items))
	w.ctx = ctx
	w.mu.Unlock()
	w.came <- struct{}{}
	if err := <-w.go_; err != nil {
		return nil, err
	}
	var out []string
	for _, i := range items {
		out = append(out, fmt.Sprint(i))
	}
	return out, nil
}

// waiting blocks until that many calls have items left.
func waiting(t *testing.T, g *Group[int, string], n int) {
	t.Helper()
	for range 2000 {
		g.mu.Lock()
		got := len(g.calls)
		g.mu.Unlock()
		if got == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("there are never %d calls", n)
}

type result struct {
	out []string
	err error
}

func start(g *Group[int, string], ctx context.Context, items ...int) chan result {
	c := make(chan result, 1)
	go func() {
		out, err := g.Do(ctx, items)
		c <- result{out, err}
	}()
	return c
}

func (r result) check(t *testing.T, want ...string) {
	t.Helper()
	if r.err != nil || !slices.Equal(r.out, want) {
		t.Errorf("got %v, %v, want %v", r.out, r.err, want)
	}
}

func TestCallsThatWaitAreJoined(t *testing.T) {
	w, g := newGate()
	ctx := context.Background()
	a := start(g, ctx, 1)
	<-w.came
	b := start(g, ctx, 2, 3)
	waiting(t, g, 2)
	c := start(g, ctx, 4)
	waiting(t, g, 3)
	w.go_ <- nil
	(<-a).check(t, "1")
	<-w.came
	w.go_ <- nil
	(<-b).check(t, "2", "3")
	(<-c).check(t, "4")
	if want := [][]int{{1}, {2, 3, 4}}; !slices.EqualFunc(w.runs, want, slices.Equal) {
		t.Errorf("runs of %v, want %v", w.runs, want)
	}
}

func TestManyItemsLeaveRoomForFew(t *testing.T) {
	w, g := newGate()
	ctx := context.Background()
	long := start(g, ctx, 3, 103, 203, 303, 403, 503, 50) // 3 each, and one that is more than a run
	<-w.came
	short := start(g, ctx, 2)
	waiting(t, g, 2)
	for range 4 {
		w.go_ <- nil
	}
	(<-short).check(t, "2")
	(<-long).check(t, "3", "103", "203", "303", "403", "503", "50")
	if want := [][]int{{3, 103, 203}, {303, 403, 2}, {503}, {50}}; !slices.EqualFunc(w.runs, want, slices.Equal) {
		t.Errorf("runs of %v, want %v", w.runs, want)
	}
}

func TestACallerGivesUp(t *testing.T) {
	w, g := newGate()
	ctx, cancel := context.WithCancel(context.Background())
	other, stop := context.WithCancel(context.Background())
	defer stop()
	a := start(g, context.Background(), 1)
	<-w.came
	b, c := start(g, ctx, 2), start(g, other, 3)
	waiting(t, g, 3)
	w.go_ <- nil
	<-a
	<-w.came
	cancel()
	if r := <-b; !errors.Is(r.err, context.Canceled) || r.out != nil {
		t.Errorf("%v, %v", r.out, r.err)
	}
	if w.ctx.Err() != nil {
		t.Error("the run of another ends too")
	}
	stop()
	if r := <-c; !errors.Is(r.err, context.Canceled) {
		t.Errorf("%v", r.err)
	}
	select {
	case <-w.ctx.Done():
	case <-time.After(10 * time.Second):
		t.Error("a run for nobody goes on")
	}
	w.go_ <- w.ctx.Err()
	for range 2 { // and each of the two alone, in vain
		<-w.came
		w.go_ <- context.Canceled
	}
	if _, err := g.Do(ctx, []int{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestAnErrorIsItsOwnersAlone(t *testing.T) {
	bad := errors.New("bad item")
	hold := make(chan struct{})
	g := &Group[int, string]{Most: 10, Size: func(int) int { return 1 }}
	g.Run = func(_ context.Context, items []int) ([]string, error) {
		<-hold
		if slices.Contains(items, 13) {
			return nil, bad
		}
		return make([]string, len(items)), nil
	}
	ctx := context.Background()
	first := start(g, ctx, 0)
	waiting(t, g, 1)
	a, b := start(g, ctx, 13), start(g, ctx, 14)
	waiting(t, g, 3)
	close(hold)
	<-first
	if r := <-a; !errors.Is(r.err, bad) {
		t.Errorf("%v", r.err)
	}
	if r := <-b; r.err != nil {
		t.Errorf("another's error: %v", r.err)
	}
}

func TestManyCallers(t *testing.T) {
	g := &Group[int, int]{Most: 50, Size: func(i int) int { return 1 + i%7 }}
	runs := 0 // one at a time, or the race detector says so
	g.Run = func(_ context.Context, items []int) ([]int, error) {
		runs++
		out, size := make([]int, len(items)), 0
		for i, x := range items {
			out[i] = 2 * x
			size += g.Size(x)
		}
		if size > g.Most {
			t.Errorf("a run of %d", size)
		}
		return out, nil
	}
	var wg sync.WaitGroup
	for caller := range 40 {
		wg.Go(func() {
			for n := range 30 {
				items := make([]int, 1+(caller+n)%20)
				for i := range items {
					items[i] = caller*1000 + n*30 + i
				}
				out, err := g.Do(context.Background(), items)
				if err != nil {
					t.Error(err)
				}
				for i := range out {
					if out[i] != 2*items[i] {
						t.Errorf("item %d got %d", items[i], out[i])
					}
				}
			}
		})
	}
	wg.Wait()
	if runs == 0 {
		t.Error("nothing ran")
	}
	if out, err := g.Do(context.Background(), nil); out != nil || err != nil {
		t.Error(out, err)
	}
}
