package gpu

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/zcstore/zcstore/models/pack"
)

// Backend makes devices. It is registered by the package that has it, which a program imports to have it.
type Backend interface {
	Name() string
	Open(Options) (Device, error)
}

// Options are for all backends.
type Options struct {
	Threads int // 0: as many as the process may use
	// PackPrivately, where it is not 0, makes Import pack weights that are multiplied into a copy of this process's own in
	// that form, where the backend knows how. It takes the memory of one more copy in every process, which is what the store
	// is there to avoid: it is for measuring what a form gains and loses. Such a weight says so in its Mode.
	PackPrivately pack.Form
	// Watch, if not nil, is told of each op how long it took, by backends whose ops have run when the call returns. It is for
	// profiles, and called from the goroutine that has the stream.
	Watch func(Op, time.Duration)
}

// Op is an op for Options.Watch.
type Op struct {
	Name string
	N, K int // of the weights, where it is a product
}

var (
	mu       sync.Mutex
	backends = map[string]Backend{} // guarded by mu
)

// Register makes a backend known. It is called from init functions; a name registered twice is a bug and panics.
func Register(b Backend) {
	mu.Lock()
	defer mu.Unlock()
	if _, dup := backends[b.Name()]; dup {
		panic("gpu: backend " + b.Name() + " registered twice")
	}
	backends[b.Name()] = b
}

// Backends lists the names, sorted.
func Backends() []string {
	mu.Lock()
	defer mu.Unlock()
	names := make([]string, 0, len(backends))
	for n := range backends {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Open opens a device of the named backend.
func Open(name string, o Options) (Device, error) {
	mu.Lock()
	b := backends[name]
	mu.Unlock()
	if b == nil {
		return nil, fmt.Errorf("no backend %q in this program (it has: %s)", name, strings.Join(Backends(), " "))
	}
	return b.Open(o)
}
