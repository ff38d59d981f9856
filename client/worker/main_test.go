package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/testleak"
)

// envRole makes the test binary play another program than a worker of this one.
const envRole = "ZCSTORE_TEST_ROLE"

func TestMain(m *testing.M) {
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // a race build sleeps a second at exit, in every worker
	switch os.Getenv(envRole) {
	case "forgetful": // a program without Main
		_, err := Start(context.Background(), probes, probeArgs{}, Options{})
		fmt.Println(err)
		os.Exit(0)
	case "silent": // a worker that never comes to Main
		io.Copy(io.Discard, os.NewFile(fdRequests, "requests"))
		os.Exit(1)
	case "short": // a program that does its work and ends instead of calling Main
		fmt.Fprintln(os.Stderr, "usage: short")
		os.Exit(4)
	case "noisy":
		os.NewFile(fdAnswers, "answers").WriteString("this is a log line on an inherited descriptor\n")
		io.Copy(io.Discard, os.NewFile(fdRequests, "requests"))
		os.Exit(1)
	case "impostor":
		newLink(nil, os.NewFile(fdAnswers, "answers")).send(hello, 0, append(blank(0), "another token"...))
		io.Copy(io.Discard, os.NewFile(fdRequests, "requests"))
		os.Exit(1)
	}
	Main()
	if os.Getenv(envRole) == "parent" {
		parent()
	}
	code := testleak.Run(m)
	if left := leftovers(); code == 0 && left != "" {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = 1
	}
	os.Exit(code)
}

// parent is a program with two workers that prints their pids, and closes them in order after a SIGINT.
func parent() {
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, syscall.SIGINT)
	os.Unsetenv(envRole)
	fatal := func(err error) {
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	p, err := Start(ctx, probes, probeArgs{}, Options{Workers: 2})
	fatal(err)
	for _, w := range p.Workers() {
		fmt.Println(w.PID)
	}
	<-interrupts
	outs, err := p.Each(ctx, probeIn{Op: "pid"})
	fatal(err)
	for i, w := range p.Workers() {
		if outs[i].PID != w.PID || w.Restarts != 0 {
			fatal(fmt.Errorf("worker %d was pid %d, answered as %d, %d restarts", i, w.PID, outs[i].PID, w.Restarts))
		}
	}
	fatal(p.Close())
	fmt.Println("closed")
	os.Exit(0)
}

// leftovers says what children, descriptors and goroutines there are beyond those of an idle test binary.
func leftovers() (s string) {
	wait(func() bool {
		s = ""
		if c := children(); len(c) > 0 {
			s += fmt.Sprintf("children %v; ", c)
		}
		buf := make([]byte, 1<<20)
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "client/worker.") && !strings.Contains(g, "testing.tRunner(") && !strings.Contains(g, "testing.(*M).Run") && !strings.Contains(g, "worker.TestMain(") {
				s += g + "\n"
			}
		}
		return s == ""
	})
	return s
}

// children lists the pids whose parent is this process, zombies too.
func children() (pids []string) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(b), ") ")
		if fields := strings.Fields(rest); ok && len(fields) > 1 && fields[1] == fmt.Sprint(os.Getpid()) {
			pids = append(pids, strings.Split(f, "/")[2])
		}
	}
	return pids
}

func openFiles() int {
	fds, _ := os.ReadDir("/proc/self/fd")
	return len(fds)
}

// wait polls until f is true, for ten seconds at most.
func wait(f func() bool) bool {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "Z") // its new parent may take its time
}

// The actor of the tests.

type probeArgs struct{ Constructor string }

type probeIn struct {
	Op   string
	File string
	Vec  []float32
}

type probeOut struct {
	PID, Index int
	Text       string
	Vec        Floats
}

// marker is an error whose kind crosses processes.
type marker string

func (m marker) Error() string     { return "marker " + string(m) }
func (m marker) ErrorKind() string { return "test." + string(m) }

var probes = Define("test.probe", func(ctx context.Context, a probeArgs) (Actor[probeIn, probeOut], error) {
	switch a.Constructor {
	case "error":
		return nil, fmt.Errorf("no model: %w", marker("absent"))
	case "panic":
		panic("constructor on fire")
	case "exit":
		fmt.Fprintln(os.Stderr, "leaving from the constructor")
		os.Exit(7)
	case "nil":
		return nil, nil
	case "hang":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &probe{index: Index(ctx), closing: a.Constructor}, nil
})

type probe struct {
	index   int
	closing string
}

func (p *probe) Close() error {
	switch p.closing {
	case "close error":
		return errors.New("cannot let go")
	case "close hang":
		select {}
	}
	return nil
}

func (p *probe) Call(ctx context.Context, in probeIn) (probeOut, error) {
	out := probeOut{PID: os.Getpid(), Index: p.index, Vec: in.Vec}
	mark := func() (first bool) {
		f, err := os.OpenFile(in.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return false
		}
		fmt.Fprintf(f, "%d\n", os.Getpid())
		return f.Close() == nil
	}
	switch in.Op {
	case "block": // until canceled
		mark()
		<-ctx.Done()
		return out, ctx.Err()
	case "block once": // the first that comes here; others answer
		if mark() {
			<-ctx.Done()
			return out, ctx.Err()
		}
	case "deaf": // does not hear a cancel
		mark()
		select {}
	case "exit":
		fmt.Fprintln(os.Stderr, "last words")
		os.Exit(3)
	case "crash":
		go func() { panic("loose goroutine") }()
		select {}
	case "panic":
		panic("call on fire")
	case "goexit":
		runtime.Goexit()
	case "error":
		return out, fmt.Errorf("wrapped: %w", marker("found"))
	case "print":
		fmt.Println("on stdout")
		fmt.Fprintln(os.Stderr, "on stderr")
	case "env":
		out.Text = strings.Join(os.Environ(), "\n")
	case "spawn":
		_, err := Start(ctx, probes, probeArgs{}, Options{})
		return out, err
	case "spawn goroutines":
		o, err := Run(ctx, probes, probeArgs{}, probeIn{Op: "pid"}, Options{Mode: Goroutines})
		out.Text = fmt.Sprint(o.PID)
		return out, err
	}
	return out, nil
}

// start starts a pool and, when the test is done, closes it and checks that nothing is left.
func start(t *testing.T, a probeArgs, o Options) *Pool[probeIn, probeOut] {
	t.Helper()
	files := openFiles()
	p, err := Start(t.Context(), probes, a, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		nothingLeft(t, files)
	})
	return p
}

func nothingLeft(t *testing.T, files int) {
	t.Helper()
	if c := children(); len(c) > 0 {
		t.Errorf("children left: %v", c)
	}
	// A canceled context's goroutine may still be on its way out.
	if !wait(func() bool { return openFiles() <= files }) {
		t.Errorf("%d descriptors open, %d before", openFiles(), files)
	}
	if s := leftovers(); s != "" {
		t.Errorf("left behind: %s", s)
	}
}

// readPID waits for the file that an actor's mark makes.
func readPID(t *testing.T, file string) (pid int) {
	t.Helper()
	if !wait(func() bool {
		b, _ := os.ReadFile(file)
		n, _ := fmt.Sscanf(string(b), "%d\n", &pid)
		return n == 1 && strings.HasSuffix(string(b), "\n")
	}) {
		t.Fatalf("no call came to %s", file)
	}
	return pid
}

func lines(r io.Reader) *bufio.Scanner { return bufio.NewScanner(r) }
