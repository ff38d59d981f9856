// Package region knows which memory of this process is a mapping that can go away, and in which two ways.
//
// By its owner: a [Gate] lets readers in and makes whoever closes the mapping wait for them. By somebody else: a file that is
// cut under its mapping makes the next read of a lost page a SIGBUS. [On] and [FaultOf] turn that into a [Fault], an error, on
// goroutines that ask for it; a fault anywhere else in memory is a bug of the program and stays a panic.
package region

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
)

// Region is one mapping that is known.
type Region struct {
	from, to uintptr
	gate     *Gate
}

var (
	known atomic.Pointer[[]*Region] // by address; replaced whole, so that a reader needs no lock
	mu    sync.Mutex                // of whoever replaces it
)

// Register makes a mapping known, until Remove. gate may be nil: then nobody waits for its readers.
func Register(b []byte, gate *Gate) *Region {
	from := addressOf(b)
	r := &Region{from: from, to: from + uintptr(len(b)), gate: gate}
	mu.Lock()
	defer mu.Unlock()
	var all []*Region
	if p := known.Load(); p != nil {
		all = *p
	}
	i, _ := slices.BinarySearchFunc(all, from, func(r *Region, a uintptr) int { return compare(r.from, a) })
	next := slices.Insert(slices.Clone(all), i, r)
	known.Store(&next)
	return r
}

// Remove forgets the mapping. It comes before the unmap: the addresses may be somebody else's right after that.
func (r *Region) Remove() {
	mu.Lock()
	defer mu.Unlock()
	all := *known.Load()
	next := make([]*Region, 0, len(all))
	for _, o := range all {
		if o != r {
			next = append(next, o)
		}
	}
	known.Store(&next)
}

func compare(a, b uintptr) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func find(at uintptr) *Region {
	p := known.Load()
	if p == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(*p, at, func(r *Region, a uintptr) int { return compare(r.from, a) })
	if !ok {
		i--
	}
	if i < 0 || at >= (*p)[i].to {
		return nil
	}
	return (*p)[i]
}

// GateOf is the gate of the mapping that b lies in, or nil when it lies in none, or in one without a gate.
func GateOf(b []byte) *Gate {
	if len(b) == 0 {
		return nil
	}
	if r := find(addressOf(b)); r != nil {
		return r.gate
	}
	return nil
}

// Fault is the error of a read from a mapping whose file was cut. Its kind is zcerr.Fault.
type Fault struct {
	Offset, Size uint64 // the byte in the mapping that could not be read, and how many the mapping has
}

func (f *Fault) Error() string {
	return fmt.Sprintf("a shared segment was cut under its mapping: byte %d of %d cannot be read any more", f.Offset, f.Size)
}

// ErrorKind is the kind in the words of proto/zcerr.
func (*Fault) ErrorKind() string { return kindFault }

// ErrorHint says what to do.
func (*Fault) ErrorHint() string {
	return "somebody with the daemon's rights cut it; close the model and put it again, then attach (zcctl verify names what is damaged)"
}

// Is makes errors.Is(err, zcerr.Fault) work without knowing that package.
func (*Fault) Is(target error) bool { return isKind(target, kindFault) }

const kindFault = "fault"

func isKind(target error, name string) bool {
	k, ok := target.(interface{ ErrorKind() string })
	return ok && k.ErrorKind() == name
}

// On makes faults of this goroutine panics that can be recovered, and gives the setting there was, which the caller restores
// with debug.SetPanicOnFault. It holds for this goroutine alone.
func On() (before bool) { return debug.SetPanicOnFault(true) }

// FaultOf is for a deferred function: it takes what recover gave and returns the fault of a known mapping, or panics again
// with everything else, a fault elsewhere included.
func FaultOf(recovered any) *Fault {
	if f, ok := recovered.(*Fault); ok {
		return f
	}
	if f := asFault(recovered); f != nil {
		return f
	}
	panic(recovered)
}

func asFault(recovered any) *Fault {
	e, ok := recovered.(interface{ Addr() uintptr }) // what the runtime panics with after On
	if !ok {
		return nil
	}
	at := e.Addr()
	r := find(at)
	if r == nil {
		return nil
	}
	return &Fault{Offset: uint64(at - r.from), Size: uint64(r.to - r.from)}
}

// Guard calls f and gives a fault of a known mapping as its error. Other panics go on. It covers this goroutine, not those
// that f starts.
func Guard(f func() error) (err error) {
	defer Caught(On(), &err)
	return f()
}

// Caught is deferred with On as its first argument: it restores the setting, and makes a fault the error.
//
//	defer region.Caught(region.On(), &err)
//
// The mapping must still be known when it runs: a deferred Close of it belongs before this, so that it comes after.
func Caught(before bool, err *error) {
	debug.SetPanicOnFault(before)
	if p := recover(); p != nil {
		*err = FaultOf(p)
	}
}

// Elsewhere reports whether a recovered value is a fault at an address that no known mapping has: the program reads memory that
// is not there, and without On the runtime would have ended it.
func Elsewhere(recovered any) bool {
	_, ok := recovered.(interface{ Addr() uintptr })
	return ok && asFault(recovered) == nil
}

// Try is Caught for whoever handles other panics itself: it gives the fault that a recovered value is, or nil.
func Try(recovered any) *Fault {
	if f, ok := recovered.(*Fault); ok {
		return f
	}
	return asFault(recovered)
}
