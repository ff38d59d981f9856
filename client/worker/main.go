package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
)

// The hand-over from the program to the worker: environment variables, removed by Main, and two descriptors.
const (
	envToken = "ZCSTORE_WORKER_TOKEN"

	fdRequests = 3
	fdAnswers  = 4
)

var (
	mainCalled atomic.Bool // Main ran, so that a worker of this program will find it
	inWorker   atomic.Bool // this process is a worker
)

// Main makes the process a worker if it was started as one: it then serves its parent and ends, and never returns.
// Otherwise it returns at once. It must stand first in main, and in TestMain of tests that start workers, before
// flags are parsed or anything is opened.
func Main() {
	mainCalled.Store(true)
	token := os.Getenv(envToken)
	if token == "" {
		return
	}
	os.Unsetenv(envToken)
	inWorker.Store(true)
	os.Exit(serve(token))
}

// setupMsg is the body of a setup frame.
type setupMsg struct {
	Name  string
	Index int
	Args  []byte
}

// serve is the life of a worker process. The result is its exit status.
func serve(token string) int {
	for _, fd := range []int{fdRequests, fdAnswers} {
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
			fmt.Fprintf(os.Stderr, "%s is set, but descriptor %d is no pipe: not started by worker.Start\n", envToken, fd)
			return 2
		}
		syscall.CloseOnExec(fd) // what an actor runs must not hold the pipes open
	}
	// Received and dropped, not ignored: ignored signals would stay ignored in what an actor runs.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)

	s := &server{
		link: newLink(os.NewFile(fdRequests, "requests"), os.NewFile(fdAnswers, "answers")),
		work: make(chan job),
	}
	if err := s.link.send(hello, 0, append(blank(len(token)), token...)); err != nil {
		return 1
	}
	go s.read()
	return s.run()
}

// server is a worker process at work: read takes frames from the pipe, so that it sees a cancel and the end of the
// parent in the middle of a call; run does what they ask, one after the other.
type server struct {
	link *link
	work chan job

	mu      sync.Mutex
	num     uint32             // guarded by mu; the request under way
	abandon context.CancelFunc // guarded by mu; ends its context
}

type job struct {
	frame
	ctx  context.Context
	done context.CancelFunc
}

func (s *server) read() {
	for {
		f, err := s.link.recv()
		if err != nil { // the parent has gone; nobody waits for an answer
			if !errors.Is(err, io.EOF) {
				fmt.Fprintf(os.Stderr, "worker: read from the parent: %v\n", err)
			}
			os.Exit(1)
		}
		if f.verb == cancel {
			s.mu.Lock()
			if f.num == s.num && s.abandon != nil {
				s.abandon()
			}
			s.mu.Unlock()
			continue
		}
		ctx, done := context.WithCancel(context.Background())
		s.mu.Lock()
		s.num, s.abandon = f.num, done
		s.mu.Unlock()
		s.work <- job{f, ctx, done}
	}
}

func (s *server) run() int {
	var actor resident
	index := -1
	for j := range s.work {
		var v verb
		var msg []byte
		ended := false
		err := <-guarded(func() (err error) {
			switch j.verb {
			case setup:
				var m setupMsg
				if err := wire.decode(j.body, &m); err != nil {
					return fmt.Errorf("decode setup: %w", err)
				}
				d := lookup(m.Name)
				if d == nil {
					return fmt.Errorf("the worker knows no actor %q: worker.Define must run before worker.Main, at package level", m.Name)
				}
				index, v = m.Index, ready
				actor, err = d.build(withIndex(j.ctx, index), m.Args)
				return err
			case request:
				v = answer
				if actor.call == nil {
					return fmt.Errorf("request before setup")
				}
				msg, err = actor.call(withIndex(j.ctx, index), j.body, blank(512))
				return err
			case bye:
				v, ended = closed, true
				if actor.close == nil {
					return nil
				}
				return actor.close()
			}
			return fmt.Errorf("unexpected %v", j.verb)
		})
		j.done()
		if len(msg)-headBytes > maxBody {
			err = fmt.Errorf("an output of %d bytes is over the limit of %d", len(msg)-headBytes, maxBody)
		}
		if err != nil {
			v = failure
			if msg, err = wire.encode(blank(512), toFailed(err)); err != nil {
				return 1
			}
		}
		if err := s.link.send(v, j.num, msg); err != nil {
			return 1
		}
		if ended {
			return 0
		}
	}
	return 0
}
