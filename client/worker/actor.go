package worker

import (
	"context"
	"fmt"
	"sync"
)

// Actor is what lives in a worker. A pool makes one call at a time to each actor. Close is called once, after the
// last call, when the pool is closed in order.
//
// The ctx of a call ends when the caller's does. A call in a process that goes on regardless is killed with its
// process after [Options].Grace.
type Actor[In, Out any] interface {
	Call(ctx context.Context, in In) (Out, error)
	Close() error
}

// Func is an actor without state.
type Func[In, Out any] func(ctx context.Context, in In) (Out, error)

// Call is f.
func (f Func[In, Out]) Call(ctx context.Context, in In) (Out, error) { return f(ctx, in) }

// Close does nothing.
func (f Func[In, Out]) Close() error { return nil }

// Def is a kind of actor under a name that the program and its workers share. Immutable; safe for concurrent use.
type Def[Args, In, Out any] struct {
	name string
	open func(context.Context, Args) (Actor[In, Out], error)
}

// Name is the name it was defined under.
func (d *Def[Args, In, Out]) Name() string { return d.name }

// Define registers a kind of actor. Call it to initialise a package-level variable: a worker finds the actor by
// name before main goes past [Main]. open runs once in each worker, with the Args given to [Start].
// It panics when the name is empty or taken, which is a bug in the program.
func Define[Args, In, Out any](name string, open func(context.Context, Args) (Actor[In, Out], error)) *Def[Args, In, Out] {
	if name == "" || open == nil {
		panic("worker.Define: needs a name and a function")
	}
	d := &Def[Args, In, Out]{name: name, open: open}
	defs.mu.Lock()
	defer defs.mu.Unlock()
	if defs.byName[name] != nil {
		panic(fmt.Sprintf("worker.Define: %q is defined twice", name))
	}
	defs.byName[name] = d
	return d
}

// builder is a Def without its types: what a worker process makes of the bytes that arrive.
type builder interface {
	build(ctx context.Context, args []byte) (resident, error)
}

// resident is an actor without its types. call appends the encoded output to blank.
type resident struct {
	call  func(ctx context.Context, in, blank []byte) ([]byte, error)
	close func() error
}

var defs = struct {
	mu     sync.Mutex
	byName map[string]builder // guarded by mu
}{byName: map[string]builder{}}

func lookup(name string) builder {
	defs.mu.Lock()
	defer defs.mu.Unlock()
	return defs.byName[name]
}

// build is open for encoded args. Panics are the caller's to catch.
func (d *Def[Args, In, Out]) build(ctx context.Context, args []byte) (resident, error) {
	var a Args
	if err := wire.decode(args, &a); err != nil {
		return resident{}, fmt.Errorf("decode arguments of %q: %w", d.name, err)
	}
	actor, err := d.construct(ctx, a)
	if err != nil {
		return resident{}, err
	}
	call := func(ctx context.Context, b, blank []byte) ([]byte, error) {
		var in In
		if err := wire.decode(b, &in); err != nil {
			return nil, fmt.Errorf("decode input: %w", err)
		}
		out, err := actor.Call(ctx, in)
		if err != nil {
			return nil, err
		}
		b, err = wire.encode(blank, &out)
		if err != nil {
			return nil, fmt.Errorf("encode output: %w", err)
		}
		return b, nil
	}
	return resident{call: call, close: actor.Close}, nil
}

func (d *Def[Args, In, Out]) construct(ctx context.Context, a Args) (Actor[In, Out], error) {
	actor, err := d.open(ctx, a)
	if err == nil && actor == nil {
		err = fmt.Errorf("the constructor of %q returned no actor", d.name)
	}
	return actor, err
}

type indexKey struct{}

// Index is the number of the worker that a constructor or a call runs in, -1 outside of one.
func Index(ctx context.Context) int {
	if i, ok := ctx.Value(indexKey{}).(int); ok {
		return i
	}
	return -1
}

func withIndex(ctx context.Context, i int) context.Context {
	return context.WithValue(ctx, indexKey{}, i)
}
