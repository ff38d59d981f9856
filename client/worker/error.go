package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/zcstore/zcstore/shm/region"
)

// ErrClosed is the answer to calls on a pool that is closed or being closed.
var ErrClosed = errors.New("the pool is closed")

// KindPanic is the ErrorKind of an actor's panic. The text has the first lines of the stack.
const KindPanic = "panic"

// Error is any failure of a worker: what its actor returned (Op "call"), or a start or an end that went wrong
// ("start", "close").
type Error struct {
	Worker int // its number in the pool
	PID    int // its process, the program's own in goroutine mode, 0 when there was none
	Op     string
	Err    error
}

func (e *Error) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("worker %d: %s: %v", e.Worker, e.Op, e.Err)
	}
	return fmt.Sprintf("worker %d (pid %d): %s: %v", e.Worker, e.PID, e.Op, e.Err)
}

// Unwrap is Err.
func (e *Error) Unwrap() error { return e.Err }

// Exit is the end of a worker process that should have lived.
type Exit struct {
	Code   int            // exit status, -1 when a signal ended it
	Signal syscall.Signal // 0 when it exited by itself
	Stderr string         // the end of its stderr, or the start of the panic it ended with; may be empty
}

func (e *Exit) Error() string {
	s := fmt.Sprintf("the process ended with exit status %d", e.Code)
	if e.Signal != 0 {
		s = fmt.Sprintf("the process was ended by signal %d (%v)", int(e.Signal), e.Signal)
	}
	if e.Stderr != "" {
		s += "; its stderr says:\n\t" + strings.ReplaceAll(e.Stderr, "\n", "\n\t")
	}
	return s
}

// kinder is how the kind of an error crosses a process: an error has it, and so has the sentinel it is compared with.
type kinder interface{ ErrorKind() string }

// failed is an actor's error as it travels.
type failed struct {
	Kind, Text string
}

func (f *failed) Error() string     { return f.Text }
func (f *failed) ErrorKind() string { return f.Kind }

// Is matches an error of the same kind.
func (f *failed) Is(target error) bool {
	return f.Kind != "" && f.Kind == kindOf(target, false)
}

// kindOf is the kind of err itself or, when deep, of the first error under it that has one.
func kindOf(err error, deep bool) string {
	k, ok := err.(kinder)
	if !ok && deep {
		ok = errors.As(err, &k)
	}
	switch {
	case ok:
		return k.ErrorKind()
	case err == context.Canceled, deep && errors.Is(err, context.Canceled):
		return "context.Canceled"
	case err == context.DeadlineExceeded, deep && errors.Is(err, context.DeadlineExceeded):
		return "context.DeadlineExceeded"
	}
	return ""
}

func toFailed(err error) *failed { return &failed{Kind: kindOf(err, true), Text: err.Error()} }

// guarded runs code of an actor in a goroutine of its own. One result always arrives: a panic and runtime.Goexit are
// errors. A read of weights whose file was cut is one of kind zcerr.Fault; a fault elsewhere in memory, which the runtime
// would not have survived, still ends the process.
func guarded(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the actor ended its goroutine (runtime.Goexit)")
		region.On()
		defer func() {
			switch v := recover(); {
			case v == nil:
			case region.Try(v) != nil:
				err = region.Try(v)
			case region.Elsewhere(v):
				panic(v)
			default:
				err = &failed{Kind: KindPanic, Text: fmt.Sprintf("panic: %v\n%s", v, firstFrames(string(debug.Stack())))}
			}
			done <- err
		}()
		err = f()
	}()
	return done
}

// firstFrames cuts a stack to the frames just above the panic.
func firstFrames(stack string) string {
	const frames = 6
	lines := strings.Split(stack, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "panic(") && i+2 < len(lines) {
			lines = lines[i+2:]
			break
		}
	}
	if len(lines) > 2*frames {
		lines = lines[:2*frames]
	}
	return strings.TrimRight(strings.Join(lines, "\n"), "\n")
}
