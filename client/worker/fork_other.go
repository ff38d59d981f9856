//go:build !linux

package worker

import (
	"errors"
	"os/exec"
)

// forker is for Linux only so far: elsewhere workers are goroutines.
type forker struct{}

var errNoProcesses = errors.New("worker processes are supported on linux only; use Mode: worker.Goroutines")

func newForker() (*forker, error)           { return nil, errNoProcesses }
func (f *forker) start(cmd *exec.Cmd) error { return errNoProcesses }
func (f *forker) stop()                     {}
