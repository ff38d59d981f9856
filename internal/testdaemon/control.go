package testdaemon

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/internal/failpoint"
)

// EnvControl, set to 1 for StartProcess, lets the test speak to the daemon's process beside its socket: Control.
const EnvControl = "ZCSTORE_TESTDAEMON_CONTROL"

// EnvKillAt, set to N, has the daemon's process end itself with SIGKILL at its N-th step (internal/failpoint), counted from
// its start.
const EnvKillAt = "ZCSTORE_TESTDAEMON_KILL_AT"

func controlPath(socket string) string { return socket + "ctl" }

// control is what Main does for the two above, before the daemon runs.
func control(socket string) {
	if n, err := strconv.Atoi(os.Getenv(EnvKillAt)); err == nil {
		failpoint.Set(failpoint.At(n, die).Listen)
	}
	if os.Getenv(EnvControl) != "1" {
		return
	}
	os.Remove(controlPath(socket))
	ln, err := net.Listen("unix", controlPath(socket))
	if err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
	go func() {
		var c controller
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			line, _ := bufio.NewReader(conn).ReadString('\n')
			fmt.Fprintln(conn, c.do(strings.Fields(line)))
			conn.Close()
		}
	}()
}

func die(string) error {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal is on its way
}

type controller struct {
	mu     sync.Mutex
	listen *failpoint.Nth
}

func (c *controller) do(words []string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(words) == 2 && words[0] == "kill":
		n, err := strconv.Atoi(words[1])
		if err != nil {
			return err.Error()
		}
		c.listen = failpoint.At(n, die)
		failpoint.Set(c.listen.Listen)
		return "ok"
	case len(words) == 1 && words[0] == "steps":
		if c.listen == nil {
			return ""
		}
		return strings.Join(c.listen.Steps(), " ")
	case len(words) == 1 && words[0] == "goroutines":
		return strconv.Itoa(runtime.NumGoroutine())
	}
	return "unknown command"
}

func ask(socket, command string) (string, error) {
	conn, err := net.Dial("unix", controlPath(socket))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func mustAsk(t testing.TB, socket, command string) string {
	t.Helper()
	s, err := ask(socket, command)
	if err != nil {
		t.Fatalf("daemon's control: %v", err)
	}
	return s
}

// KillAt has a daemon that was started with EnvControl end itself with SIGKILL at its n-th step from now on.
func KillAt(t testing.TB, socket string, n int) {
	t.Helper()
	if s := mustAsk(t, socket, fmt.Sprintf("kill %d", n)); s != "ok" {
		t.Fatalf("daemon's control: %s", s)
	}
}

// Steps are the names of the steps since KillAt.
func Steps(t testing.TB, socket string) []string {
	t.Helper()
	return strings.Fields(mustAsk(t, socket, "steps"))
}

// Goroutines is how many a daemon that was started with EnvControl has; 0 when it cannot be asked.
func Goroutines(socket string) int {
	s, err := ask(socket, "goroutines")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(s)
	return n
}
