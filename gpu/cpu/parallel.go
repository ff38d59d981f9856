package cpu

import (
	"sync"
	"sync/atomic"

	"github.com/zcstore/zcstore/shm/region"
)

// scratch is what one goroutine of an op works in. It is reused from op to op.
type scratch struct {
	sums, pack, bias []float32
	stage, whole     []float32 // rows that become panels: widened, completed
	rows             []float32 // rows of x, moved apart
	seenK, seenV     []float32 // keys and values that are not hidden
	scores, inv      []float32

	// The arguments of kernels, here because what is called through a table would put them on the heap each time.
	tile  tile
	turn  turn
	widen widen
	block block
	norm  norm
}

// forget drops the pointers to memory that is not ours.
func (s *scratch) forget() {
	s.tile, s.turn, s.widen, s.block, s.norm = tile{}, turn{}, widen{}, block{}, norm{}
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// parallel calls f for 0 <= i < n, each once, on up to the device's number of threads. work is about how many
// multiplications there are in all: little work stays on the calling goroutine. The error is a fault of the weights, after
// which some of the calls are not made.
func (d *Device) parallel(n, work int, f func(i int, s *scratch)) error {
	const worth = 1 << 16 // some 10 us, several times what starting a goroutine costs
	threads := min(d.threads, n, work/worth+1)
	if threads <= 1 {
		var err error
		func() {
			defer region.Caught(region.On(), &err)
			s := scratches.Get().(*scratch)
			defer scratches.Put(s)
			for i := range n {
				f(i, s)
			}
		}()
		return err
	}
	var next atomic.Int64
	var fault atomic.Pointer[error]
	run := func() {
		var err error
		defer func() {
			if err != nil {
				fault.CompareAndSwap(nil, &err)
				next.Store(int64(n)) // the others need not go on
			}
		}()
		defer region.Caught(region.On(), &err)
		s := scratches.Get().(*scratch)
		defer scratches.Put(s)
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i, s)
		}
	}
	var wg sync.WaitGroup
	for range threads - 1 {
		wg.Go(run)
	}
	run()
	wg.Wait()
	if err := fault.Load(); err != nil {
		return *err
	}
	return nil
}
