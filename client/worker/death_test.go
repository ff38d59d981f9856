package worker

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestKilledInCall(t *testing.T) {
	p := start(t, probeArgs{}, Options{Workers: 2})
	file := filepath.Join(t.TempDir(), "mark")
	type result struct {
		out probeOut
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := p.Call(t.Context(), probeIn{Op: "block once", File: file})
		done <- result{out, err}
	}()
	pid := readPID(t, file)
	syscall.Kill(pid, syscall.SIGKILL)
	r := <-done
	if r.err != nil || r.out.PID == pid {
		t.Errorf("%+v, %v; killed was pid %d", r.out, r.err, pid)
	}
	restarts := 0
	for _, w := range p.Workers() {
		restarts += w.Restarts
	}
	if restarts != 1 {
		t.Errorf("%d restarts, want 1", restarts)
	}
}

func TestKilledWithoutRetries(t *testing.T) {
	p := start(t, probeArgs{}, Options{Workers: 2, Retries: -1})
	file := filepath.Join(t.TempDir(), "mark")
	done := make(chan error, 1)
	go func() {
		_, err := p.Call(t.Context(), probeIn{Op: "block once", File: file})
		done <- err
	}()
	pid := readPID(t, file)
	syscall.Kill(pid, syscall.SIGKILL)
	err := <-done
	var e *Error
	var exit *Exit
	if !errors.As(err, &e) || e.PID != pid || e.Op != "call" || !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
		t.Errorf("error %v, want one with pid %d and SIGKILL", err, pid)
	}
	if out, err := p.Call(t.Context(), probeIn{Op: "pid"}); err != nil || out.PID == pid {
		t.Errorf("next call: %+v, %v", out, err)
	}
	if _, err := p.Each(t.Context(), probeIn{Op: "pid"}); err != nil { // the dead one too
		t.Error(err)
	}
}

func TestAllKilled(t *testing.T) {
	p := start(t, probeArgs{}, Options{Workers: 3})
	for round := 1; round <= 2; round++ {
		for _, w := range p.Workers() {
			syscall.Kill(w.PID, syscall.SIGKILL)
		}
		var wg sync.WaitGroup
		for range 6 { // without waiting until the deaths are known
			wg.Go(func() {
				if _, err := p.Call(t.Context(), probeIn{Op: "pid"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, err := p.Each(t.Context(), probeIn{Op: "pid"}); err != nil {
			t.Error(err)
		}
		for _, w := range p.Workers() {
			if w.Restarts != round || w.PID == 0 {
				t.Errorf("round %d: %+v", round, w)
			}
		}
	}
}

func TestDiesEveryTime(t *testing.T) {
	for _, tt := range []struct {
		op   string
		code int
		text []string
	}{
		{"exit", 3, []string{"exit status 3", "\tlast words"}},
		{"crash", 2, []string{"exit status 2", "\tpanic: loose goroutine", "probe"}},
	} {
		t.Run(tt.op, func(t *testing.T) {
			p := start(t, probeArgs{}, Options{Workers: 2, Retries: 2, Stderr: new(bytes.Buffer)})
			_, err := p.Call(t.Context(), probeIn{Op: tt.op})
			var exit *Exit
			if !errors.As(err, &exit) || exit.Code != tt.code || exit.Signal != 0 {
				t.Fatalf("error %v, want exit status %d", err, tt.code)
			}
			for _, s := range tt.text {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not in %v", s, err)
				}
			}
			if w := p.Workers()[0]; w.Restarts != 2 || w.PID != 0 {
				t.Errorf("%+v, want two restarts and nothing running", w)
			}
		})
	}
}
