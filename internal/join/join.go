// Package join runs the items of several callers together: what comes while a run is under way waits and goes into the next
// one. Who comes when nothing runs is run at once.
package join

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// Group joins calls of one function. The zero value with Run set is ready; safe for concurrent use.
type Group[I, O any] struct {
	// Run gives a result for each item, and what an item gets must not depend on the others. One run is under way at a time,
	// on a goroutine of the group, that ends when there is nothing to do. An error is that of all callers whose items are in it;
	// when there are several, each is first tried again alone, so that nobody gets another's. The context is done when those of
	// all of these callers are.
	Run func(context.Context, []I) ([]O, error)
	// Size is how much an item counts, and Most how much of that goes into one run, unless a single item is more.
	Size func(I) int
	Most int

	mu      sync.Mutex
	calls   []*call[I, O] // guarded by mu; those that have items left, in the order in which they came
	running bool          // guarded by mu
}

// call is a caller's items.
type call[I, O any] struct {
	ctx   context.Context
	items []I
	out   []O
	err   error
	done  chan struct{} // closed when out or err is there

	next int // guarded by the group's mu; item that comes into the next run
	left int // guarded by the group's mu; items that have no result
	over bool
}

// Do gives the result for each item. It returns when ctx is done, whatever is under way.
func (g *Group[I, O]) Do(ctx context.Context, items []I) ([]O, error) {
	if len(items) == 0 {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &call[I, O]{ctx: ctx, items: items, out: make([]O, len(items)), done: make(chan struct{}), left: len(items)}
	g.mu.Lock()
	g.calls = append(g.calls, c)
	if !g.running {
		g.running = true
		go g.serve()
	}
	g.mu.Unlock()
	select {
	case <-c.done:
	case <-ctx.Done():
		g.mu.Lock()
		defer g.mu.Unlock()
		if !c.over {
			g.end(c, ctx.Err())
		}
	}
	return c.out, c.err
}

// end finishes a call; g.mu is held.
func (g *Group[I, O]) end(c *call[I, O], err error) {
	if c.err = err; err != nil {
		c.out = nil
	}
	c.over = true
	close(c.done)
	if i := slices.Index(g.calls, c); i >= 0 {
		g.calls = slices.Delete(g.calls, i, i+1)
	}
}

// part is some items of a call, in one run.
type part[I, O any] struct {
	c        *call[I, O]
	from, to int
}

// serve runs until there is nothing to do.
func (g *Group[I, O]) serve() {
	for {
		parts := g.take()
		if len(parts) == 0 {
			return
		}
		g.run(parts)
	}
}

// take cuts the items of the next run. Each call gets an equal part of the room, and what some leave goes to the others in the
// order in which they came: so a few items need not wait for the end of a call with many.
func (g *Group[I, O]) take() []part[I, O] {
	g.mu.Lock()
	defer g.mu.Unlock()
	var parts []part[I, O]
	used := 0
	fill := func(c *call[I, O], room int) {
		from := c.next
		for c.next < len(c.items) {
			n := g.Size(c.items[c.next])
			if n > room && used > 0 {
				break
			}
			used, room = used+n, room-n
			c.next++
		}
		if c.next == from {
			return
		}
		if i := slices.IndexFunc(parts, func(p part[I, O]) bool { return p.c == c }); i >= 0 {
			parts[i].to = c.next
			return
		}
		parts = append(parts, part[I, O]{c, from, c.next})
	}
	for _, c := range g.calls {
		fill(c, g.Most/len(g.calls))
	}
	for _, c := range g.calls {
		fill(c, g.Most-used)
	}
	g.running = len(parts) > 0
	return parts
}

// run does one run, and when it fails for several callers, one for each of them.
func (g *Group[I, O]) run(parts []part[I, O]) {
	if len(parts) == 1 {
		p := parts[0]
		out, err := g.Run(p.c.ctx, p.c.items[p.from:p.to])
		g.give(p, out, err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var alive atomic.Int64
	alive.Store(int64(len(parts)))
	var items []I
	for _, p := range parts {
		items = append(items, p.c.items[p.from:p.to]...)
		stop := context.AfterFunc(p.c.ctx, func() {
			if alive.Add(-1) == 0 {
				cancel()
			}
		})
		defer stop()
	}
	out, err := g.Run(ctx, items)
	if err != nil {
		for _, p := range parts {
			g.run([]part[I, O]{p})
		}
		return
	}
	for _, p := range parts {
		n := p.to - p.from
		g.give(p, out[:n], nil)
		out = out[n:]
	}
}

// give hands results to a caller who still waits.
func (g *Group[I, O]) give(p part[I, O], out []O, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := p.c
	if c.over {
		return
	}
	if err != nil {
		g.end(c, err)
		return
	}
	copy(c.out[p.from:p.to], out)
	if c.left -= p.to - p.from; c.left == 0 {
		g.end(c, nil)
	}
}
