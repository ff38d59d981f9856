// Package failpoint lets tests stop the daemon's work at any of its steps: every operation that touches the kernel, and every
// step of a commit, has a name and passes here. A test gives an error to a step, or ends the process at it; in production
// nobody listens, and a step costs one atomic load.
//
// Package shm, which imports nothing of this module, has the same steps of its own; Set listens to both.
package failpoint

import (
	"sync"
	"sync/atomic"

	"github.com/zcstore/zcstore/shm"
)

var hook atomic.Pointer[func(step string) error]

// Set has f called at every step of the process until restore is called. f may be called from many goroutines at once. The
// error that it gives becomes the step's, which is then not done; shm.ErrShort makes a read or a write end halfway.
func Set(f func(step string) error) (restore func()) {
	hook.Store(&f)
	shm.SetHook(f)
	return func() {
		hook.Store(nil)
		shm.SetHook(nil)
	}
}

// Step stands before something that can fail: its error is to be treated as that thing's own.
func Step(name string) error {
	if f := hook.Load(); f != nil {
		return (*f)(name)
	}
	return nil
}

// Reached stands where nothing can fail any more but the process can still end.
func Reached(name string) { _ = Step(name) }

// Nth is a listener that counts steps and acts on one of them.
type Nth struct {
	n    int64 // which one, from 1; 0: none, only listen
	act  func(step string) error
	seen atomic.Int64
	mu   sync.Mutex
	log  []string
}

// At makes a listener that calls act at the n-th step and lets all others pass. With n = 0 it only listens.
func At(n int, act func(step string) error) *Nth { return &Nth{n: int64(n), act: act} }

// Listen is what Set takes.
func (c *Nth) Listen(step string) error {
	at := c.seen.Add(1)
	c.mu.Lock()
	c.log = append(c.log, step)
	c.mu.Unlock()
	if at == c.n {
		return c.act(step)
	}
	return nil
}

// Hit reports that the n-th step came.
func (c *Nth) Hit() bool { return c.n > 0 && c.seen.Load() >= c.n }

// Steps are the names seen so far, in order.
func (c *Nth) Steps() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.log...)
}
