package worker

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// Mode says what a worker is.
type Mode uint8

const (
	Processes  Mode = iota // the program run again: a crash takes one worker, not the program
	Goroutines             // in the program itself: nothing is copied, nothing is isolated
)

func (m Mode) String() string {
	switch m {
	case Processes:
		return "processes"
	case Goroutines:
		return "goroutines"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Options are the options of a pool. The zero value is one worker process.
type Options struct {
	Workers int  // 0 is 1
	Mode    Mode // Processes

	// Retries is how often a call is repeated when the worker died in it: 0 is once, negative is never.
	// Errors of the actor are not retried.
	Retries int

	// StartTimeout bounds a worker's start, with the actor's constructor in it; 0 is two minutes.
	// HelloTimeout bounds the part before [Main]; 0 is ten seconds. It never goes beyond StartTimeout.
	StartTimeout time.Duration
	HelloTimeout time.Duration

	// Grace is how long a call goes on after it is canceled, and how long Close waits for calls and for
	// workers to end, before the process is killed; 0 is five seconds.
	Grace time.Duration

	// For processes only.
	Env    []string  // "NAME=value", added to the program's environment; "GOMAXPROCS=1" keeps workers to a core each
	Stdout io.Writer // nil is the program's
	Stderr io.Writer // nil is the program's

	exe string // what to run; tests put other programs here
}

// Validate reports everything that is wrong with the options, nil if nothing is.
func (o Options) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Workers < 0 {
		bad("Workers is %d, want at least 1 (or 0 for 1)", o.Workers)
	}
	if o.Mode > Goroutines {
		bad("Mode is %v, want Processes or Goroutines", o.Mode)
	}
	for _, d := range []struct {
		name string
		v    time.Duration
	}{{"StartTimeout", o.StartTimeout}, {"HelloTimeout", o.HelloTimeout}, {"Grace", o.Grace}} {
		if d.v < 0 {
			bad("%s is %v, want a positive duration (or 0 for the default)", d.name, d.v)
		}
	}
	for _, e := range o.Env {
		if i := strings.IndexByte(e, '='); i < 1 || strings.IndexByte(e, 0) >= 0 {
			bad("Env has %q, want NAME=value", e)
		}
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.Workers == 0 {
		o.Workers = 1
	}
	switch {
	case o.Retries == 0:
		o.Retries = 1
	case o.Retries < 0:
		o.Retries = 0
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 2 * time.Minute
	}
	if o.HelloTimeout == 0 {
		o.HelloTimeout = 10 * time.Second
	}
	o.HelloTimeout = min(o.HelloTimeout, o.StartTimeout)
	if o.Grace == 0 {
		o.Grace = 5 * time.Second
	}
	if o.exe == "" {
		o.exe = "/proc/self/exe"
	}
	return o
}
