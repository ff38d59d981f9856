package worker

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startParent runs the test binary as another program with two workers, in a process group of its own.
func startParent(t *testing.T) (cmd *exec.Cmd, next func() string, pids []int) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envRole+"=parent")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	scan := lines(out)
	next = func() string {
		scan.Scan()
		return scan.Text()
	}
	for range 2 {
		var pid int
		if l := next(); l == "" {
			t.Fatal("the program ended")
		} else if _, err := fmt.Sscan(l, &pid); err != nil {
			t.Fatalf("the program says %q", l)
		}
		pids = append(pids, pid)
	}
	return cmd, next, pids
}

func TestParentKilled(t *testing.T) {
	cmd, _, pids := startParent(t)
	for _, pid := range pids {
		if gone(pid) {
			t.Fatalf("worker %d is not there", pid)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range pids {
		if !wait(func() bool { return gone(pid) }) {
			t.Errorf("worker %d outlives its parent", pid)
		}
	}
}

// A stopped worker cannot see its pipe close; the kernel ends it.
func TestParentKilledWhileStopped(t *testing.T) {
	cmd, _, pids := startParent(t)
	syscall.Kill(pids[0], syscall.SIGSTOP)
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range pids {
		if !wait(func() bool { return gone(pid) }) {
			t.Errorf("worker %d outlives its parent", pid)
		}
	}
}

func TestInterruptReachesParentOnly(t *testing.T) {
	cmd, next, pids := startParent(t)
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) // as the terminal does: to the whole group
	if got := next(); got != "closed" {
		t.Errorf("after SIGINT the program says %q, want closed", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("worker %d is left", pid)
		}
	}
}

func TestWithoutMain(t *testing.T) {
	t.Run("program", func(t *testing.T) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envRole+"=forgetful")
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "the program did not call worker.Main()") {
			t.Errorf("%q, %v", out, err)
		}
	})
	for _, tt := range []struct {
		role, text string
		timeout    time.Duration
	}{
		{"silent", "no hello within 200ms: the program did not call worker.Main()", 200 * time.Millisecond},
		{"short", "main (or TestMain) must begin with worker.Main(): the process ended with exit status 4; its stderr says:\n\tusage: short", 0},
		{"noisy", "it did not call worker.Main() first", 0},
		{"impostor", "the hello does not have this worker's token", 0},
	} {
		t.Run(tt.role, func(t *testing.T) {
			files := openFiles()
			_, err := Start(t.Context(), probes, probeArgs{}, Options{
				Workers: 2, Env: []string{envRole + "=" + tt.role}, HelloTimeout: tt.timeout, Stderr: new(bytes.Buffer)})
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %q in it", err, tt.text)
			}
			nothingLeft(t, files)
		})
	}
	t.Run("cat", func(t *testing.T) {
		files := openFiles()
		_, err := Start(t.Context(), probes, probeArgs{}, Options{exe: "/bin/cat", Stderr: new(bytes.Buffer)})
		if err == nil || !strings.Contains(err.Error(), "must begin with worker.Main()") {
			t.Errorf("error %v", err)
		}
		nothingLeft(t, files)
	})
	t.Run("no such program", func(t *testing.T) {
		files := openFiles()
		_, err := Start(t.Context(), probes, probeArgs{}, Options{exe: "/nonexistent"})
		if err == nil || !strings.Contains(err.Error(), "run the program again") {
			t.Errorf("error %v", err)
		}
		nothingLeft(t, files)
	})
}

// A token without pipes is not a worker, and must not look like one that serves.
func TestTokenWithoutPipes(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envToken+"=x")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "is no pipe") {
		t.Errorf("%q, %v", out, err)
	}
}
