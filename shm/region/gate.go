package region

import (
	"sync"
	"sync/atomic"
)

// Gate is who reads memory that will be unmapped. Readers come in with Enter and go with Leave, which cost an atomic addition
// each; Close lets nobody in any more and waits for those inside. Use [NewGate].
type Gate struct {
	state atomic.Int64  // readers inside, and shut
	idle  chan struct{} // closed when the gate is shut and empty
	once  sync.Once
}

const shut = 1 << 62

// NewGate is an open gate.
func NewGate() *Gate { return &Gate{idle: make(chan struct{})} }

// ErrClosed says that a model was closed before this use of it. Its kind is zcerr.Canceled.
var ErrClosed error = closedError{}

type closedError struct{}

func (closedError) Error() string { return "the model is closed: its weights are no longer mapped" }

// ErrorKind is the kind in the words of proto/zcerr.
func (closedError) ErrorKind() string { return "canceled" }

// ErrorHint says what to do.
func (closedError) ErrorHint() string {
	return "attach it again, or close it after its last use (zcctl ps lists who holds what)"
}

// Is makes errors.Is(err, zcerr.Canceled) work without knowing that package.
func (closedError) Is(target error) bool { return target == ErrClosed || isKind(target, "canceled") }

// Enter lets a reader in until its Leave. After Close the error is ErrClosed. It never blocks, so a reader that is inside may
// enter again.
func (g *Gate) Enter() error {
	if g.state.Add(1)&shut != 0 {
		g.Leave()
		return ErrClosed
	}
	return nil
}

// Leave ends an Enter that was let in.
func (g *Gate) Leave() {
	if g.state.Add(-1) == shut {
		g.once.Do(func() { close(g.idle) })
	}
}

// Closed reports whether Close was called.
func (g *Gate) Closed() bool { return g.state.Load()&shut != 0 }

// Close shuts the gate and returns when nobody is inside. Any number of goroutines may call it; a reader that calls it while it
// is inside waits for itself, for ever.
func (g *Gate) Close() {
	g.Shut()
	<-g.idle
}

// Shut is Close without the waiting.
func (g *Gate) Shut() {
	for {
		s := g.state.Load()
		if s&shut != 0 {
			return
		}
		if g.state.CompareAndSwap(s, s|shut) {
			if s == 0 {
				g.once.Do(func() { close(g.idle) })
			}
			return
		}
	}
}
