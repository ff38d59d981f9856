package cpu

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zcstore/zcstore/shm/region"
)

// task is an op in pieces. do is called for each piece once, by any goroutine.
type task interface {
	do(piece int, s *scratch)
}

// job is one run of a task on several goroutines. A queue has one and uses it again and again.
type job struct {
	t       task
	pieces  int64
	next    atomic.Int64  // piece to take
	helpers atomic.Int64  // workers that took the job and are not done with it
	waiting atomic.Bool   // the caller, for the last helper
	done    chan struct{} // of one element: look at helpers again
	fault   atomic.Pointer[error]
	asked   []*worker
	own     scratch // of the caller
}

// work does pieces in s until there are none. A fault of the weights is kept, and the pieces that are left are not done.
func (j *job) work(s *scratch) {
	var err error
	defer func() {
		if err != nil {
			fault := err // err itself stays on the stack
			j.fault.CompareAndSwap(nil, &fault)
			j.next.Store(j.pieces)
		}
	}()
	defer region.Caught(region.On(), &err)
	for i := j.next.Add(1) - 1; i < j.pieces; i = j.next.Add(1) - 1 {
		j.t.do(int(i), s)
	}
}

// spin is how long a worker, and whoever waits for one, looks for work before it parks: longer than a model takes from
// one op to the next, far shorter than anybody notices.
const spin = 20 * time.Microsecond

// idle is how long a parked worker stays.
const idle = 100 * time.Millisecond

// spinUntil looks at a condition for a while, and reports whether it came true.
func spinUntil(ok func() bool) bool {
	for start := time.Now(); ; {
		for range 64 {
			if ok() {
				return true
			}
		}
		if time.Since(start) > spin {
			return false
		}
	}
}

// workers are the goroutines that help with a device's ops. They are started as they are needed, look for the next job for
// some microseconds after one, then park, and end when nothing comes for a tenth of a second or the device is closed.
type workers struct {
	limit int  // immutable; the caller of run works too
	spins bool // immutable; false where there is one processor, on which waiting keeps others from working

	mu     sync.Mutex
	free   []*worker // guarded by mu
	count  int       // guarded by mu; of all that run
	closed bool      // guarded by mu
}

type worker struct {
	ws   *workers
	job  atomic.Pointer[job]
	wake chan struct{} // of one element: there may be a job
	s    scratch
}

// run does the pieces of a task on this goroutine and on as many workers as are free, at most threads in all. The error is
// a fault of the weights.
func (ws *workers) run(j *job, t task, pieces, threads int) error {
	j.t, j.pieces = t, int64(pieces)
	j.next.Store(0)
	j.waiting.Store(false)
	if threads > 1 {
		ws.ask(j, threads-1)
	}
	j.work(&j.own)
	for i, w := range j.asked { // who has not taken the job yet need not
		if w.job.CompareAndSwap(j, nil) {
			j.helpers.Add(-1)
			ws.release(w)
		}
		j.asked[i] = nil
	}
	j.asked = j.asked[:0]
	finished := func() bool { return j.helpers.Load() == 0 }
	for !finished() && !(ws.spins && spinUntil(finished)) {
		j.waiting.Store(true)
		if !finished() {
			<-j.done
		}
	}
	j.t = nil
	if err := j.fault.Swap(nil); err != nil {
		return *err
	}
	return nil
}

// ask gives the job to up to n workers, and starts those that are missing.
func (ws *workers) ask(j *job, n int) {
	ws.mu.Lock()
	for ; n > 0 && !ws.closed; n-- {
		var w *worker
		switch last := len(ws.free) - 1; {
		case last >= 0:
			w = ws.free[last]
			ws.free[last] = nil
			ws.free = ws.free[:last]
		case ws.count < ws.limit:
			ws.count++
			w = &worker{ws: ws, wake: make(chan struct{}, 1)}
			go w.loop()
		default:
			ws.mu.Unlock()
			return // all are busy: the caller works alone
		}
		j.helpers.Add(1)
		j.asked = append(j.asked, w)
		w.job.Store(j)
		w.signal()
	}
	ws.mu.Unlock()
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // it has not looked at the last one yet
	}
}

// close ends the workers that are free; the others end when they are.
func (ws *workers) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.closed = true
	for _, w := range ws.free {
		w.signal()
	}
}

// release makes a worker free for the next job.
func (ws *workers) release(w *worker) {
	ws.mu.Lock()
	ws.free = append(ws.free, w)
	if ws.closed {
		w.signal()
	}
	ws.mu.Unlock()
}

// end takes a worker that is free out of the list, for good. False when it is not free: a job is on its way to it.
func (ws *workers) end(w *worker) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	i := slices.Index(ws.free, w)
	if i < 0 {
		return false
	}
	ws.free = slices.Delete(ws.free, i, i+1)
	ws.count--
	return true
}

func (ws *workers) isClosed() bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.closed
}

// loop takes jobs until none comes for a while.
func (w *worker) loop() {
	timer := time.NewTimer(idle)
	defer timer.Stop()
	there := func() bool { return w.job.Load() != nil }
	for {
		if j := w.job.Swap(nil); j != nil {
			j.work(&w.s)
			w.ws.release(w) // before the caller goes on: it will ask again soon
			if j.helpers.Add(-1) == 0 && j.waiting.Load() {
				select {
				case j.done <- struct{}{}:
				default: // it will look anyway
				}
			}
			if w.ws.spins && spinUntil(there) {
				continue
			}
		}
		timer.Reset(idle)
		late := false
		select {
		case <-w.wake:
		case <-timer.C:
			late = true
		}
		if (late || w.ws.isClosed()) && w.ws.end(w) {
			return
		}
	}
}
