package cpu

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counted counts how often each piece is done.
type counted struct{ n [300]atomic.Int32 }

func (c *counted) do(piece int, _ *scratch) {
	c.n[piece].Add(1)
	if piece%37 == 0 {
		time.Sleep(10 * time.Microsecond) // some pieces take longer
	}
}

// Every piece is done once before run returns, whoever else uses the workers, whether these spin, are parked, or have ended.
func TestWorkers(t *testing.T) {
	for _, spins := range []bool{true, false} {
		ws := &workers{limit: 3, spins: spins}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				j := &job{done: make(chan struct{}, 1)}
				for round := range 300 {
					c := &counted{}
					pieces := 1 + round%len(c.n)
					if err := ws.run(j, c, pieces, 1+round%5); err != nil {
						t.Error(err)
					}
					for i := range c.n {
						if got := int(c.n[i].Load()); got != boolInt(i < pieces) {
							t.Errorf("round %d: piece %d of %d was done %d times", round, i, pieces, got)
							return
						}
					}
					if round%100 == 50 {
						time.Sleep(3 * spin) // they park
					}
				}
			})
		}
		wg.Wait()
		ended := func() bool {
			ws.mu.Lock()
			defer ws.mu.Unlock()
			return ws.count == 0
		}
		if ended() {
			t.Error("no worker was started")
		}
		if spins {
			ws.close()
		} // else they end because nothing comes
		for deadline := time.Now().Add(10 * time.Second); !ended(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("workers stay")
			}
		}
	}
}

// The workers help: two pieces that wait for each other are done at the same time.
func TestWorkersWorkTogether(t *testing.T) {
	ws := &workers{limit: 1, spins: true}
	defer ws.close()
	j := &job{done: make(chan struct{}, 1)}
	var meet sync.WaitGroup
	meet.Add(2)
	err := ws.run(j, each(func(int, *scratch) { meet.Done(); meet.Wait() }), 2, 2)
	if err != nil {
		t.Fatal(err)
	}
}

func TestWorkersAllocateNothing(t *testing.T) {
	ws := &workers{limit: 2, spins: true}
	defer ws.close()
	j, c := &job{done: make(chan struct{}, 1)}, &counted{}
	if got := testing.AllocsPerRun(200, func() { _ = ws.run(j, c, 50, 3) }); got > 0.5 {
		t.Errorf("%v allocations", got)
	}
}
