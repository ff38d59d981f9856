package worker

import (
	"os/exec"
	"runtime"
	"syscall"
)

// forker starts processes from one thread. The kernel can end a child when its parent dies (Pdeathsig), which also
// takes a worker that is stopped and so does not see its pipe close. But for the kernel the parent is the thread that
// forked: were that one to end before the pool, so would the workers. Hence a thread that lives as long as
// the pool, with a goroutine locked to it.
type forker struct {
	jobs chan forkJob
	done chan struct{}
}

type forkJob struct {
	cmd *exec.Cmd
	err chan error
}

func newForker() (*forker, error) {
	f := &forker{jobs: make(chan forkJob), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for j := range f.jobs {
			j.err <- j.cmd.Start()
		}
	}()
	return f, nil
}

// start is cmd.Start on the forker's thread.
func (f *forker) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	j := forkJob{cmd, make(chan error, 1)}
	f.jobs <- j
	return <-j.err
}

// stop ends the forker. No start may be under way or follow.
func (f *forker) stop() {
	close(f.jobs)
	<-f.done
}
