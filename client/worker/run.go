package worker

import (
	"context"
	"errors"
	"fmt"
)

// Run is a single call in a worker of its own: it is started, the actor is built, called once and closed.
// o.Workers must be 0 or 1.
func Run[Args, In, Out any](ctx context.Context, d *Def[Args, In, Out], args Args, in In, o Options) (out Out, err error) {
	if o.Workers > 1 {
		return out, fmt.Errorf("worker.Run: Workers is %d, want 1", o.Workers)
	}
	p, err := Start(ctx, d, args, o)
	if err != nil {
		return out, err
	}
	out, err = p.Call(ctx, in)
	return out, errors.Join(err, p.Close())
}
