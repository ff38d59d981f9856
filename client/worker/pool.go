package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// Pool is a number of workers with the same actor. It owns its processes and pipes until Close, which must be called.
// Safe for concurrent use: calls beyond the number of workers wait for a free one, first come first served, and the
// worker that has been idle longest is next.
type Pool[In, Out any] struct {
	o     Options // immutable
	open  func(ctx context.Context, index int) (conn[In, Out], error)
	slots []*slot[In, Out]
	fork  *forker // nil for goroutines

	free    chan *slot[In, Out] // the slots that nobody uses; whoever takes one owns it until it is put back
	each    chan struct{}       // one token: a single Each gathers slots at a time
	closing chan struct{}

	closeOnce sync.Once
	closeErr  error // set by closeOnce
}

// slot is the place of a worker in a pool; the worker in it changes when it dies.
type slot[In, Out any] struct {
	index int

	mu   sync.Mutex
	conn conn[In, Out] // guarded by mu for Workers and kill; written by the owner only
	info Info          // guarded by mu
}

// Info is the state of a worker.
type Info struct {
	Index    int
	PID      int           // the program's own in goroutine mode; 0 when the worker has died and no call needed it since
	Started  time.Time     // of the present process
	Ready    time.Duration // from Started until the actor was built
	Calls    int           // answered, with an error of the actor too
	Restarts int
}

// Start starts all workers of a pool at once and returns when every actor is built. ctx bounds the start only.
// On an error nothing is left running.
func Start[Args, In, Out any](ctx context.Context, d *Def[Args, In, Out], args Args, o Options) (*Pool[In, Out], error) {
	if d == nil {
		return nil, errors.New("worker.Start: no actor (Def is nil)")
	}
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("worker.Start: %w", err)
	}
	o = o.withDefaults()
	p := &Pool[In, Out]{
		o:       o,
		free:    make(chan *slot[In, Out], o.Workers),
		each:    make(chan struct{}, 1),
		closing: make(chan struct{}),
	}
	p.each <- struct{}{}
	var err error
	if o.Mode == Goroutines {
		p.open = func(ctx context.Context, index int) (conn[In, Out], error) {
			return openLocal(ctx, d, index, args, o) // the nil in it goes nowhere on an error
		}
	} else if p.fork, p.open, err = processes(d, args, o); err != nil {
		return nil, fmt.Errorf("worker.Start: %w", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, o.Workers)
	for i := range o.Workers {
		s := &slot[In, Out]{index: i, info: Info{Index: i}}
		p.slots = append(p.slots, s)
		go func() { errs <- p.revive(ctx, s) }()
	}
	var first error
	for range o.Workers {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel() // the others need not go on
		}
	}
	for _, s := range p.slots {
		p.put(s, nil)
	}
	if first != nil {
		return nil, errors.Join(first, p.Close())
	}
	return p, nil
}

// processes is how a pool opens worker processes, or why it cannot.
func processes[Args, In, Out any](d *Def[Args, In, Out], args Args, o Options) (*forker, func(context.Context, int) (conn[In, Out], error), error) {
	switch {
	case inWorker.Load():
		return nil, nil, errors.New("this process is a worker, and a worker starts no worker processes; " +
			"start them from the program, or use Mode: worker.Goroutines here")
	case !mainCalled.Load():
		return nil, nil, errors.New("the program did not call worker.Main(): it must stand first in main (or TestMain), " +
			"since the workers are the same program run again")
	}
	encoded, err := wire.encode(nil, &args)
	if err != nil {
		return nil, nil, fmt.Errorf("encode arguments of %q: %w", d.name, err)
	}
	fork, err := newForker()
	if err != nil {
		return nil, nil, err
	}
	stderr := &shared{w: o.Stderr}
	if o.Stderr == nil {
		stderr.w = os.Stderr
	}
	var stdout *shared // nil: the descriptor itself
	if o.Stdout != nil {
		stdout = &shared{w: o.Stdout}
	}
	return fork, func(ctx context.Context, index int) (conn[In, Out], error) {
		proc, err := launch(ctx, fork, o, stdout, stderr, setupMsg{Name: d.name, Index: index, Args: encoded})
		if err != nil {
			if proc != nil {
				return nil, &Error{Worker: index, PID: proc.pid(), Op: "start", Err: err}
			}
			return nil, err
		}
		return remote[In, Out]{proc, o.Grace}, nil
	}, nil
}

// Call runs a call on a free worker, waiting for one if need be. It returns at once when ctx ends.
// The error is an [*Error], or ctx's or ErrClosed when the call did not get a worker.
func (p *Pool[In, Out]) Call(ctx context.Context, in In) (Out, error) {
	out, _, err := p.CallBy(ctx, in)
	return out, err
}

// CallBy is Call, and says which worker ran the call, -1 when none did.
func (p *Pool[In, Out]) CallBy(ctx context.Context, in In) (out Out, by int, err error) {
	s, err := p.take(ctx)
	if err != nil {
		return out, -1, err
	}
	out, busy, err := p.run(ctx, s, in)
	p.put(s, busy)
	return out, s.index, err
}

// Each runs the same call once on every worker, to ask each for something of its own. The results are in the order
// of Info.Index; where a worker failed there is a zero value, and its error is in the joined error.
func (p *Pool[In, Out]) Each(ctx context.Context, in In) ([]Out, error) {
	outs := make([]Out, len(p.slots))
	errs := make([]error, len(p.slots))
	select { // two that gather slots would wait for each other
	case <-p.each:
		defer func() { p.each <- struct{}{} }()
	case <-ctx.Done():
		return outs, ctx.Err()
	case <-p.closing:
		return outs, ErrClosed
	}
	var wg sync.WaitGroup
	var held []func() // nothing goes back before all have been taken, or it would be taken twice
	var err error
	for range p.slots {
		s, e := p.take(ctx)
		if e != nil {
			err = e
			break
		}
		ran := make(chan (<-chan struct{}), 1)
		wg.Go(func() {
			out, busy, err := p.run(ctx, s, in)
			outs[s.index], errs[s.index] = out, err
			ran <- busy
		})
		held = append(held, func() { p.put(s, <-ran) })
	}
	wg.Wait()
	for _, put := range held {
		put()
	}
	return outs, errors.Join(append(errs, err)...)
}

// Workers is the state of every worker, in the order of Info.Index.
func (p *Pool[In, Out]) Workers() []Info {
	infos := make([]Info, len(p.slots))
	for i, s := range p.slots {
		s.mu.Lock()
		infos[i] = s.info
		if s.conn == nil || !s.conn.alive() {
			infos[i].PID = 0
		}
		s.mu.Unlock()
	}
	return infos
}

// Close ends the pool: new calls are refused, calls under way have Grace to finish, actors are closed, processes are
// waited for and killed if they take longer than Grace. It leaves no process, descriptor or goroutine, except
// for a goroutine actor that does not return, which the error then names. Further calls return the same error.
func (p *Pool[In, Out]) Close() error {
	p.closeOnce.Do(func() {
		close(p.closing)
		p.closeErr = p.shut()
	})
	return p.closeErr
}

func (p *Pool[In, Out]) shut() error {
	force := time.AfterFunc(p.o.Grace, func() {
		for _, s := range p.slots {
			s.kill()
		}
	})
	defer force.Stop()
	giveUp := time.After(p.o.Grace + 2*lastWait)
	left := slices.Clone(p.slots)
	errs := make(chan error, len(left))
	for range p.slots {
		select {
		case s := <-p.free:
			left = slices.DeleteFunc(left, func(o *slot[In, Out]) bool { return o == s })
			go func() { errs <- s.close(p.o.Grace) }()
			continue
		case <-giveUp:
		}
		break
	}
	var all []error
	for range len(p.slots) - len(left) {
		all = append(all, <-errs)
	}
	for _, s := range left {
		all = append(all, &Error{Worker: s.index, PID: p.Workers()[s.index].PID, Op: "close",
			Err: fmt.Errorf("its call does not return, %v after the pool was closed", p.o.Grace+2*lastWait)})
	}
	if p.fork != nil && len(left) == 0 {
		p.fork.stop()
	}
	return errors.Join(all...)
}

// take waits for a free slot.
func (p *Pool[In, Out]) take(ctx context.Context) (*slot[In, Out], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.isClosing() {
		return nil, ErrClosed
	}
	select {
	case s := <-p.free:
		if p.isClosing() {
			p.free <- s
			return nil, ErrClosed
		}
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.closing:
		return nil, ErrClosed
	}
}

// put gives a slot back, when busy is closed if it is not nil.
func (p *Pool[In, Out]) put(s *slot[In, Out], busy <-chan struct{}) {
	if busy == nil {
		p.free <- s // has room for every slot
		return
	}
	go func() {
		<-busy
		p.free <- s
	}()
}

func (p *Pool[In, Out]) isClosing() bool {
	select {
	case <-p.closing:
		return true
	default:
		return false
	}
}

// run makes a call on a slot that is owned. A worker that is dead is started again, on the same slot: another
// worker may be dead as well without being known to be, a new one is not.
func (p *Pool[In, Out]) run(ctx context.Context, s *slot[In, Out], in In) (out Out, busy <-chan struct{}, err error) {
	var died error
	for try := 0; ; try++ {
		if s.conn == nil || !s.conn.alive() {
			err = p.revive(ctx, s)
		} else {
			err = nil
		}
		if err == nil {
			out, busy, err = s.conn.call(ctx, in)
			s.called(busy, err)
			if err != nil {
				err = &Error{Worker: s.index, PID: s.conn.pid(), Op: "call", Err: err}
			}
		} else if died != nil {
			err = fmt.Errorf("%w (started again because of: %w)", err, died)
		}
		var exit *Exit
		switch {
		case !errors.As(err, &exit):
			return out, busy, err
		case p.isClosing():
			return out, busy, fmt.Errorf("%w: %w", ErrClosed, err)
		case try >= p.o.Retries || ctx.Err() != nil:
			return out, busy, err
		}
		died = err
	}
}

// revive puts a new worker in a slot that is owned.
func (p *Pool[In, Out]) revive(ctx context.Context, s *slot[In, Out]) error {
	if s.conn != nil {
		s.conn.close(0) // it is dead: only releases
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-p.closing:
			cancel(ErrClosed)
		case <-stop:
		}
	}()
	started := time.Now()
	c, err := p.open(ctx, s.index)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.info.Started.IsZero() {
		s.info.Restarts++
	}
	s.info.Started, s.info.Ready, s.info.PID = started, time.Since(started), 0
	s.conn = nil
	if err != nil {
		if e := (*Error)(nil); !errors.As(err, &e) {
			err = &Error{Worker: s.index, Op: "start", Err: err}
		}
		return err
	}
	s.conn, s.info.PID = c, c.pid()
	return nil
}

// called counts a call that the actor answered.
func (s *slot[In, Out]) called(busy <-chan struct{}, err error) {
	var exit *Exit
	if busy != nil || errors.As(err, &exit) {
		return
	}
	s.mu.Lock()
	s.info.Calls++
	s.mu.Unlock()
}

func (s *slot[In, Out]) kill() {
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		c.kill()
	}
}

// close ends the worker of a slot that is owned.
func (s *slot[In, Out]) close(grace time.Duration) error {
	s.mu.Lock()
	c := s.conn
	s.conn = nil
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := c.close(grace); err != nil {
		return &Error{Worker: s.index, PID: c.pid(), Op: "close", Err: err}
	}
	return nil
}
