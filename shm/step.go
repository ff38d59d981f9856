package shm

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Every operation of this package that can fail in the kernel passes a step with a name, so that tests can let the N-th of
// them fail, or end the process there. In production nobody listens, and a step costs one atomic load.
var hook atomic.Pointer[func(step string) error]

// ErrShort, given by a step's listener, makes a write end halfway with io.ErrShortWrite and a read with io.ErrUnexpectedEOF:
// what a file system does that runs out of room or of file in the middle.
var ErrShort = errors.New("injected: short")

// SetHook has f called before every step, until the next SetHook; nil ends it. An error from f becomes the operation's, which
// is then not done. For tests: internal/failpoint is the way to it.
func SetHook(f func(step string) error) {
	if f == nil {
		hook.Store(nil)
		return
	}
	hook.Store(&f)
}

func step(name string) error {
	if f := hook.Load(); f != nil {
		return (*f)(name)
	}
	return nil
}

// call makes one system call under its step's name, again for as long as a signal interrupts it.
func call(name string, f func() error) error {
	for {
		err := step(name)
		if err == nil {
			err = f()
		}
		var no unix.Errno
		switch {
		case err == nil || errors.Is(err, ErrShort):
			return err
		case errors.Is(err, unix.EINTR):
		case errors.As(err, &no): // without the path: it would reach clients, and which file it is, is nobody's business
			return fmt.Errorf("%s: %w", name, no)
		default:
			return err
		}
	}
}

// transfer is call for reads and writes of p, with short ending the ones that a test cuts.
func transfer(name string, p []byte, short error, f func([]byte) (int, error)) (n int, err error) {
	err = call(name, func() error { n, err = f(p); return err })
	if errors.Is(err, ErrShort) {
		if n, err = f(p[:len(p)/2]); err == nil {
			err = short
		}
	}
	return n, err
}

func writeStep(p []byte, f func([]byte) (int, error)) (int, error) {
	return transfer("write", p, io.ErrShortWrite, f)
}

func readStep(p []byte, f func([]byte) (int, error)) (int, error) {
	return transfer("read", p, io.ErrUnexpectedEOF, f)
}
