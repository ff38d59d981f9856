package batch

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/zcstore/zcstore/client/worker"
)

// Options say how to cut and who works. Size and Workers are required. MapPool and StreamPool read Size and InFlight
// only: the rest was settled when the pool was started.
type Options struct {
	Size    int // rows in a batch; the last may have fewer
	Workers int // Map starts no more than there are batches

	// InFlight is how many batches there may be per worker at a time, one in the worker and the others ready for
	// it; in Stream also the results that wait for an earlier batch. 0 is 2.
	InFlight int

	// As in worker.Options.
	Mode         worker.Mode
	Retries      int
	StartTimeout time.Duration
	Grace        time.Duration
	Env          []string
	Stdout       io.Writer
	Stderr       io.Writer
}

func (o Options) worker() worker.Options {
	return worker.Options{Workers: o.Workers, Mode: o.Mode, Retries: o.Retries, StartTimeout: o.StartTimeout,
		Grace: o.Grace, Env: o.Env, Stdout: o.Stdout, Stderr: o.Stderr}
}

// Validate reports everything that is wrong with the options, nil if nothing is.
func (o Options) Validate() error {
	errs := []error{o.validateCut()}
	if o.Workers < 1 {
		errs = append(errs, fmt.Errorf("option Workers is %d, want at least 1", o.Workers))
	}
	w := o.worker()
	w.Workers = 1 // judged above
	return errors.Join(append(errs, w.Validate())...)
}

// validateCut is the part of Validate that does not concern the pool.
func (o Options) validateCut() error {
	var errs []error
	if o.Size < 1 {
		errs = append(errs, fmt.Errorf("option Size is %d, want at least 1 row in a batch", o.Size))
	}
	if o.InFlight < 0 {
		errs = append(errs, fmt.Errorf("InFlight is %d, want at least 1 (or 0 for 2)", o.InFlight))
	}
	return errors.Join(errs...)
}

// limit is the number of batches in flight for a number of workers.
func (o Options) limit(workers int) int {
	if o.InFlight == 0 {
		return 2 * workers
	}
	return o.InFlight * workers
}
