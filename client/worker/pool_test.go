package worker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var modes = []Mode{Processes, Goroutines}

func eachMode(t *testing.T, f func(t *testing.T, m Mode)) {
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) { f(t, m) })
	}
}

func TestCallsAndInfo(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		p := start(t, probeArgs{}, Options{Workers: 3, Mode: m})
		by := make([]int, 3)
		for range 6 {
			out, w, err := p.CallBy(t.Context(), probeIn{Op: "pid"})
			if err != nil {
				t.Fatal(err)
			}
			info := p.Workers()[w]
			if out.Index != w || out.PID != info.PID || (m == Processes) != (out.PID != os.Getpid()) {
				t.Errorf("answer of %+v, worker is %+v", out, info)
			}
			by[w]++
		}
		if want := []int{2, 2, 2}; !slices.Equal(by, want) {
			t.Errorf("calls by worker %v, want %v", by, want)
		}
		for i, w := range p.Workers() {
			if w.Index != i || w.Calls != 2 || w.Restarts != 0 || w.Ready <= 0 || w.Started.IsZero() {
				t.Errorf("worker %d: %+v", i, w)
			}
		}
	})
}

func TestEach(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		p := start(t, probeArgs{}, Options{Workers: 3, Mode: m})
		var wg sync.WaitGroup
		for range 4 { // side by side, and with calls in between
			wg.Go(func() {
				outs, err := p.Each(t.Context(), probeIn{Op: "pid"})
				if err != nil || len(outs) != 3 {
					t.Errorf("%v, %v", outs, err)
					return
				}
				for i, o := range outs {
					if o.Index != i {
						t.Errorf("result %d is of worker %d", i, o.Index)
					}
				}
			})
			wg.Go(func() {
				if _, err := p.Call(t.Context(), probeIn{Op: "pid"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func TestLargePayload(t *testing.T) {
	p := start(t, probeArgs{}, Options{})
	vec := make([]float32, 1e6)
	for i := range vec {
		vec[i] = float32(i) * 0.5
	}
	out, err := p.Call(t.Context(), probeIn{Op: "pid", Vec: vec})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal([]float32(out.Vec), vec) {
		t.Error("the floats changed on the way")
	}
}

func TestActorErrors(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		p := start(t, probeArgs{}, Options{Mode: m})
		pid := p.Workers()[0].PID
		for _, tt := range []struct {
			op   string
			is   error
			text []string
		}{
			{"error", marker("found"), []string{"worker 0 (pid ", "): call: wrapped: marker found"}},
			{"panic", nil, []string{"panic: call on fire", "(*probe).Call", "main_test.go:"}},
			{"goexit", nil, []string{"runtime.Goexit"}},
		} {
			_, err := p.Call(t.Context(), probeIn{Op: tt.op})
			var e *Error
			if !errors.As(err, &e) || e.Worker != 0 || e.PID != pid || e.Op != "call" {
				t.Errorf("%s: %v is no error of the worker", tt.op, err)
				continue
			}
			for _, s := range tt.text {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%s: %q is not in %v", tt.op, s, err)
				}
			}
			if tt.is != nil && !errors.Is(err, tt.is) || errors.Is(err, marker("other")) {
				t.Errorf("%s: %v is of the wrong kind", tt.op, err)
			}
		}
		if w := p.Workers()[0]; w.PID != pid || w.Restarts != 0 || w.Calls != 3 {
			t.Errorf("the worker did not live on: %+v", w)
		}
	})
}

func TestStartFails(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		for _, tt := range []struct {
			constructor string
			is          error
			text        string
		}{
			{"error", marker("absent"), "start: no model: marker absent"},
			{"panic", nil, "panic: constructor on fire"},
			{"nil", nil, `the constructor of "test.probe" returned no actor`},
			{"hang", nil, "not ready within 1s (StartTimeout)"},
			{"exit", nil, "exit status 7; its stderr says:\n\tleaving from the constructor"},
		} {
			if tt.constructor == "exit" && m == Goroutines {
				continue
			}
			t.Run(tt.constructor, func(t *testing.T) {
				o := Options{Workers: 2, Mode: m, Stderr: new(bytes.Buffer)}
				if tt.constructor == "hang" {
					o.StartTimeout = time.Second
				}
				files := openFiles()
				_, err := Start(t.Context(), probes, probeArgs{tt.constructor}, o)
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("error %v, want %q in it", err, tt.text)
				}
				if e := (*Error)(nil); !errors.As(err, &e) || e.Op != "start" {
					t.Errorf("%v is no error of a start", err)
				}
				if tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%v is not %v", err, tt.is)
				}
				nothingLeft(t, files)
			})
		}
	})
}

func TestCancelStart(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		files := openFiles()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := Start(ctx, probes, probeArgs{"hang"}, Options{Workers: 2, Mode: m})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		nothingLeft(t, files)
	})
}

func TestCancelCall(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		p := start(t, probeArgs{}, Options{Mode: m})
		pid := p.Workers()[0].PID
		file := filepath.Join(t.TempDir(), "mark")
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 1)
		go func() {
			_, err := p.Call(ctx, probeIn{Op: "block", File: file})
			errs <- err
		}()
		readPID(t, file)
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		// The actor heard of it, so the worker is the same.
		if out, err := p.Call(t.Context(), probeIn{Op: "pid"}); err != nil || out.PID != pid {
			t.Errorf("next call: %+v, %v; want pid %d", out, err, pid)
		}
	})
}

func TestCancelDeafCall(t *testing.T) {
	p := start(t, probeArgs{}, Options{Grace: 100 * time.Millisecond})
	pid := p.Workers()[0].PID
	file := filepath.Join(t.TempDir(), "mark")
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() {
		_, err := p.Call(ctx, probeIn{Op: "deaf", File: file})
		errs <- err
	}()
	readPID(t, file)
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	out, err := p.Call(t.Context(), probeIn{Op: "pid"}) // waits for the kill
	if err != nil || out.PID == pid || !gone(pid) {
		t.Errorf("next call: %+v, %v; the deaf one was pid %d", out, err, pid)
	}
	if w := p.Workers()[0]; w.Restarts != 1 {
		t.Errorf("%+v, want 1 restart", w)
	}
}

func TestCancelWhileWaiting(t *testing.T) {
	p := start(t, probeArgs{}, Options{Mode: Goroutines})
	file := filepath.Join(t.TempDir(), "mark")
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 1)
	go func() {
		_, err := p.Call(ctx, probeIn{Op: "block", File: file})
		errs <- err
	}()
	readPID(t, file)
	short, done := context.WithTimeout(t.Context(), time.Millisecond)
	defer done()
	if _, err := p.Call(short, probeIn{Op: "pid"}); err != context.DeadlineExceeded {
		t.Errorf("error %v", err)
	}
	cancel()
	<-errs
}

func TestCloseWhileCalling(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		for _, op := range []string{"block", "deaf"} {
			if op == "deaf" && m == Goroutines {
				continue // nothing ends it
			}
			t.Run(op, func(t *testing.T) {
				files := openFiles()
				p, err := Start(t.Context(), probes, probeArgs{}, Options{Workers: 2, Mode: m, Grace: 100 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(t.TempDir(), "mark")
				errs := make(chan error, 1)
				go func() {
					_, err := p.Call(context.Background(), probeIn{Op: op, File: file})
					errs <- err
				}()
				readPID(t, file)
				p.Close()
				if err := <-errs; !errors.Is(err, ErrClosed) && !errors.Is(err, context.Canceled) {
					t.Errorf("error %v", err)
				}
				if _, err := p.Call(t.Context(), probeIn{}); err != ErrClosed {
					t.Errorf("call after Close: %v", err)
				}
				nothingLeft(t, files)
			})
		}
	})
}

func TestCloseErrors(t *testing.T) {
	for _, tt := range []struct {
		args string
		text string
	}{
		{"close error", "close: cannot let go"},
		{"close hang", "it did not close in 100ms and was killed"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			files := openFiles()
			o := Options{}
			if tt.args == "close hang" {
				o.Grace = 100 * time.Millisecond
			}
			p, err := Start(t.Context(), probes, probeArgs{tt.args}, o)
			if err != nil {
				t.Fatal(err)
			}
			err = p.Close()
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %q in it", err, tt.text)
			}
			if again := p.Close(); again != err {
				t.Errorf("second Close: %v", again)
			}
			nothingLeft(t, files)
		})
	}
}

func TestRun(t *testing.T) {
	eachMode(t, func(t *testing.T, m Mode) {
		files := openFiles()
		out, err := Run(t.Context(), probes, probeArgs{}, probeIn{Op: "pid"}, Options{Mode: m})
		if err != nil || (out.PID == os.Getpid()) != (m == Goroutines) {
			t.Errorf("%+v, %v", out, err)
		}
		nothingLeft(t, files)
	})
}

func TestOutputAndEnvironment(t *testing.T) {
	var stdout, stderr bytes.Buffer
	p := start(t, probeArgs{}, Options{Stdout: &stdout, Stderr: &stderr, Env: []string{"ZC_TEST_X=1"}})
	if _, err := p.Call(t.Context(), probeIn{Op: "print"}); err != nil {
		t.Fatal(err)
	}
	out, err := p.Call(t.Context(), probeIn{Op: "env"})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.Text, "ZC_TEST_X=1") || strings.Contains(out.Text, envToken) {
		t.Errorf("environment of the worker:\n%s", out.Text)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if stdout.String() != "on stdout\n" || stderr.String() != "on stderr\n" {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}
}

func TestSpawnInWorker(t *testing.T) {
	p := start(t, probeArgs{}, Options{})
	_, err := p.Call(t.Context(), probeIn{Op: "spawn"})
	if err == nil || !strings.Contains(err.Error(), "a worker starts no worker processes") {
		t.Errorf("error %v", err)
	}
	if out, err := p.Call(t.Context(), probeIn{Op: "spawn goroutines"}); err != nil {
		t.Errorf("goroutines in a worker: %+v, %v", out, err)
	}
}

func TestValidate(t *testing.T) {
	err := Options{Workers: -1, Mode: 9, StartTimeout: -1, Env: []string{"=x"}}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, s := range []string{"Workers is -1", "mode(9)", "StartTimeout is -1ns", `"=x"`} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q is not in %v", s, err)
		}
	}
	if err := (Options{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	if _, err := Start(t.Context(), probes, probeArgs{}, Options{Workers: -1}); err == nil {
		t.Error("Start took Workers -1")
	}
}
