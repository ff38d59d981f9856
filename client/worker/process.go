package worker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// lastWait bounds every wait for something that follows at once: that a killed process is gone, or that one whose
// pipe closed has ended.
const lastWait = 2 * time.Second

// process is a worker process seen from the program. It owns the pipes and the child, and reaps it; drop releases
// the rest. One goroutine at a time uses it, except for kill and alive.
type process struct {
	cmd  *exec.Cmd
	link *link
	w, r *os.File // the program's ends of the pipes
	tail *tail
	num  uint32 // of the last request

	exited chan struct{} // closed when the child is reaped
	exit   *Exit         // set before exited is closed
}

// launch runs the program again and returns when it serves the actor. On an error nothing is left of it.
func launch(ctx context.Context, f *forker, o Options, out, stderr *shared, setupOf setupMsg) (p *process, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.StartTimeout,
		fmt.Errorf("not ready within %v (StartTimeout)", o.StartTimeout))
	defer cancel()
	token := rand.Text()
	p, err = spawn(f, o, out, stderr, setupOf, token)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.kill()
			p.drop()
		}
	}()
	stop := context.AfterFunc(ctx, p.kill) // which also ends the reads and writes below
	defer stop()

	helloCtx, cancelHello := context.WithTimeoutCause(ctx, o.HelloTimeout, fmt.Errorf(
		"no hello within %v: the program did not call worker.Main(), or not as the first thing in main (or TestMain)", o.HelloTimeout))
	defer cancelHello()
	stopHello := context.AfterFunc(helloCtx, p.kill)
	reply, err := p.link.recv()
	switch {
	case !stopHello(): // the kill has been called
		return p, context.Cause(helloCtx)
	case errors.Is(err, errFrame):
		return p, fmt.Errorf("the program wrote something else than a hello to its pipe: it did not call worker.Main() first: %w", err)
	case err != nil:
		return p, fmt.Errorf("the program ended before its hello: main (or TestMain) must begin with worker.Main(): %w", p.lost(err))
	case reply.verb != hello || string(reply.body) != token:
		return p, errors.New("the hello does not have this worker's token: something else answers on its pipe")
	}

	msg, err := wire.encode(blank(512), &setupOf)
	if err != nil {
		return p, fmt.Errorf("encode setup: %w", err)
	}
	if err = p.link.send(setup, 0, msg); err == nil {
		reply, err = p.link.recv()
	}
	switch {
	case !stop():
		return p, context.Cause(ctx)
	case err != nil:
		return p, p.lost(err)
	case reply.verb == failure:
		return p, readFailed(reply)
	case reply.verb != ready:
		return p, fmt.Errorf("%v instead of ready", reply.verb)
	}
	return p, nil
}

// spawn starts the child and the goroutine that reaps it.
func spawn(f *forker, o Options, out, stderr *shared, s setupMsg, token string) (*process, error) {
	reqR, reqW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	ansR, ansW, err := os.Pipe()
	if err != nil {
		reqR.Close()
		reqW.Close()
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	p := &process{
		cmd: &exec.Cmd{
			Path:       o.exe,
			Args:       []string{filepath.Base(os.Args[0]), fmt.Sprintf("[worker %d %s]", s.Index, s.Name)}, // for ps
			Env:        append(append(os.Environ(), o.Env...), envToken+"="+token),
			ExtraFiles: []*os.File{reqR, ansW}, // fdRequests, fdAnswers
			Stdout:     os.Stdout,
			WaitDelay:  lastWait / 2, // when something else holds its stderr open
		},
		link:   newLink(ansR, reqW),
		w:      reqW,
		r:      ansR,
		tail:   &tail{to: stderr},
		exited: make(chan struct{}),
	}
	if out != nil {
		p.cmd.Stdout = out
	}
	p.cmd.Stderr = p.tail
	err = f.start(p.cmd)
	reqR.Close()
	ansW.Close()
	if err != nil {
		reqW.Close()
		ansR.Close()
		return nil, fmt.Errorf("run the program again: %w", err)
	}
	go p.reap()
	return p, nil
}

func (p *process) reap() {
	p.cmd.Wait() // the error repeats the state
	p.exit = &Exit{Code: -1, Stderr: p.tail.String()}
	if st := p.cmd.ProcessState; st != nil {
		p.exit.Code = st.ExitCode()
		if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			p.exit.Signal = ws.Signal()
		}
	}
	// What it wrote before its end can still be read; beyond that no read may wait for a stranger holding the pipe.
	p.w.Close()
	p.r.SetReadDeadline(time.Now().Add(lastWait / 2))
	close(p.exited)
}

// call sends a request and waits for its reply. When ctx ends first it returns at once, with a channel that is
// closed when the process is free again or dead.
func (p *process) call(ctx context.Context, msg []byte, grace time.Duration) (reply frame, busy <-chan struct{}, err error) {
	if len(msg)-headBytes > maxBody {
		return frame{}, nil, fmt.Errorf("an input of %d bytes is over the limit of %d", len(msg)-headBytes, maxBody)
	}
	if err := ctx.Err(); err != nil {
		return frame{}, nil, err
	}
	p.num++
	num := p.num
	type result struct {
		frame
		err error
	}
	done := make(chan result, 1)
	go func() {
		err := p.link.send(request, num, msg)
		var f frame
		if err == nil {
			f, err = p.link.recv()
		}
		if err == nil && (f.num != num || f.verb != answer && f.verb != failure) {
			err = fmt.Errorf("%w: %v %d in reply to request %d", errFrame, f.verb, f.num, num)
		}
		if err != nil {
			err = p.lost(err)
		}
		done <- result{f, err}
	}()
	select {
	case r := <-done:
		return r.frame, nil, r.err
	case <-ctx.Done():
	}
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		t := time.AfterFunc(grace, p.kill) // frees the send too
		defer t.Stop()
		p.link.send(cancel, num, nil)
		<-done
	}()
	return frame{}, idle, ctx.Err()
}

// lost makes the error of a process whose pipe failed with cause. The process is dead afterwards.
func (p *process) lost(cause error) error {
	select {
	case <-p.exited:
	case <-time.After(lastWait): // it closed the pipe and lives
		if !p.killAndWait() {
			return fmt.Errorf("%w; the process does not end", cause)
		}
	}
	for _, plain := range []error{io.EOF, syscall.EPIPE, os.ErrClosed, os.ErrDeadlineExceeded, io.ErrUnexpectedEOF} {
		if errors.Is(cause, plain) {
			return p.exit
		}
	}
	return fmt.Errorf("%w; %w", cause, p.exit)
}

// close ends an idle process in order, or by force after grace, and releases everything. The error is that of the
// actor's Close, or says that force was used.
func (p *process) close(grace time.Duration) error {
	defer p.drop()
	if !p.alive() {
		return nil
	}
	var forced atomic.Bool
	t := time.AfterFunc(grace, func() { forced.Store(true); p.kill() })
	defer t.Stop()
	err := p.link.send(bye, 0, nil)
	var reply frame
	if err == nil {
		reply, err = p.link.recv()
	}
	select {
	case <-p.exited:
	case <-time.After(grace + lastWait): // the timer killed it, and even that had no effect
		return fmt.Errorf("the process does not end, %v after it was killed", lastWait)
	}
	switch {
	case err != nil:
		if forced.Load() {
			return fmt.Errorf("it did not close in %v and was killed", grace)
		}
		return p.lost(err)
	case reply.verb == failure:
		return readFailed(reply)
	}
	return nil
}

func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) kill() { p.cmd.Process.Kill() } // an error means that it has ended

func (p *process) killAndWait() bool {
	p.kill()
	select {
	case <-p.exited:
		return true
	case <-time.After(lastWait):
		return false
	}
}

// drop kills the process if it lives and releases the pipes.
func (p *process) drop() {
	p.killAndWait()
	p.w.Close()
	p.r.Close()
}

func readFailed(f frame) error {
	e := new(failed)
	if err := wire.decode(f.body, e); err != nil {
		return fmt.Errorf("decode an error: %w", err)
	}
	return e
}
