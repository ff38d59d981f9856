package worker

import (
	"context"
	"fmt"
	"os"
	"time"
)

// conn is one live worker of either mode. One goroutine at a time uses it, except for kill and alive.
type conn[In, Out any] interface {
	// call returns at once when ctx ends; busy, if not nil, is then closed when the worker can be used again.
	call(ctx context.Context, in In) (out Out, busy <-chan struct{}, err error)
	close(grace time.Duration) error // in order if it can be; releases everything
	kill()                           // makes a call under way end
	alive() bool
	pid() int
}

// remote is an actor in a process.
type remote[In, Out any] struct {
	*process
	grace time.Duration
}

func (r remote[In, Out]) call(ctx context.Context, in In) (out Out, busy <-chan struct{}, err error) {
	msg, err := wire.encode(blank(512), &in)
	if err != nil {
		return out, nil, fmt.Errorf("encode input: %w", err)
	}
	reply, busy, err := r.process.call(ctx, msg, r.grace)
	if err != nil {
		return out, busy, err
	}
	if reply.verb == failure {
		return out, nil, readFailed(reply)
	}
	if err := wire.decode(reply.body, &out); err != nil {
		return out, nil, fmt.Errorf("decode output: %w", err)
	}
	return out, nil, nil
}

// local is an actor in the program itself.
type local[In, Out any] struct {
	index  int
	actor  Actor[In, Out]
	killed context.Context // ends at kill: a life, not a call's
	end    context.CancelFunc
}

var errKilled = fmt.Errorf("%w, and the call had not returned in time", ErrClosed)

func openLocal[Args, In, Out any](ctx context.Context, d *Def[Args, In, Out], index int, args Args, o Options) (*local[In, Out], error) {
	l := &local[In, Out]{index: index}
	l.killed, l.end = context.WithCancel(context.Background())
	ctx, cancel := context.WithTimeoutCause(withIndex(ctx, index), o.StartTimeout,
		fmt.Errorf("not ready within %v (StartTimeout)", o.StartTimeout))
	done := guarded(func() (err error) {
		l.actor, err = d.construct(ctx, args)
		return err
	})
	select {
	case err := <-done:
		cancel()
		if err != nil {
			l.end()
			return nil, err
		}
		return l, nil
	case <-ctx.Done():
	}
	// Nothing stops a goroutine. If the constructor returns after all, what it made is closed.
	go func() {
		defer cancel()
		if <-done == nil {
			<-guarded(l.actor.Close)
		}
	}()
	l.end()
	return nil, context.Cause(ctx)
}

func (l *local[In, Out]) call(ctx context.Context, in In) (out Out, busy <-chan struct{}, err error) {
	if err := ctx.Err(); err != nil {
		return out, nil, err
	}
	inner, cancel := context.WithCancel(withIndex(ctx, l.index))
	unhook := context.AfterFunc(l.killed, cancel)
	var res Out
	done := guarded(func() (err error) {
		res, err = l.actor.Call(inner, in)
		return err
	})
	select {
	case err := <-done:
		unhook()
		cancel()
		if err != nil {
			return out, nil, err
		}
		return res, nil, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-l.killed.Done():
		err = errKilled
	}
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		<-done
		unhook()
		cancel()
	}()
	return out, idle, err
}

func (l *local[In, Out]) close(grace time.Duration) error {
	defer l.end()
	select {
	case err := <-guarded(l.actor.Close):
		return err
	case <-time.After(grace):
		return fmt.Errorf("its Close did not return in %v", grace)
	}
}

func (l *local[In, Out]) kill()       { l.end() }
func (l *local[In, Out]) alive() bool { return true }
func (l *local[In, Out]) pid() int    { return os.Getpid() }
