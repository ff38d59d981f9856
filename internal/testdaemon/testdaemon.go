// Package testdaemon runs a daemon for tests: inside the test's process, or as a process of its own that can be killed.
package testdaemon

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/limits"
	"github.com/zcstore/zcstore/internal/server"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Place is where a test's daemon lives: a socket with a short path, and a segment directory of its own. Both go with the test.
func Place(t testing.TB) (socket, dir string) {
	t.Helper()
	return place(t, tempDir(t, os.TempDir()))
}

// PublicPlace is Place for tests in which other users play: their processes can reach the socket's directory.
func PublicPlace(t testing.TB) (socket, dir string) {
	t.Helper()
	return place(t, PublicDir(t))
}

func place(t testing.TB, base string) (socket, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("zcstore-test-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(base, "s"), dir
}

// PublicDir is a directory with a short name, 0755, that every user can reach: the one for temporary files may be this user's
// alone. It goes with the test.
func PublicDir(t testing.TB) string {
	t.Helper()
	for _, in := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if everybodyPasses(in) {
			dir := tempDir(t, in)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	t.Skip("no directory for temporary files that other users can reach")
	return ""
}

// everybodyPasses tells whether every user may go through a directory and all above it.
func everybodyPasses(dir string) bool {
	for ; ; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err != nil || st.Mode()&0o001 == 0 {
			return false
		}
		if dir == "/" || dir == "." {
			return dir == "/"
		}
	}
}

func tempDir(t testing.TB, in string) string {
	t.Helper()
	dir, err := os.MkdirTemp(in, "zc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Start runs a daemon in this process and gives its socket and a function that ends it in order.
func Start(t testing.TB, socket, dir string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- daemon.Run(ctx, daemon.Config{Socket: socket, Dir: dir, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("daemon: %v", err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("daemon: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// Client dials a socket for the length of the test.
func Client(t testing.TB, socket string) *client.Client {
	t.Helper()
	c, err := client.Dial(context.Background(), client.Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const (
	envSocket = "ZCSTORE_TESTDAEMON_SOCKET"
	envDir    = "ZCSTORE_TESTDAEMON_DIR"

	// For the environment of StartProcess and Command.
	EnvBacking = "ZCSTORE_TESTDAEMON_BACKING" // shm or memfd
	EnvHandout = "ZCSTORE_TESTDAEMON_HANDOUT" // --handout-dir
	EnvConfig  = "ZCSTORE_TESTDAEMON_CONFIG"  // Config.Env
	EnvData    = "ZCSTORE_TESTDAEMON_DATA"    // --data
	EnvHarden  = "ZCSTORE_TESTDAEMON_HARDEN"  // 1: as zcstored does, no process of the same uid may trace it
)

// Main makes the test binary a daemon when Process started it. It stands in TestMain, after worker.Main.
func Main() {
	socket, dir := os.Getenv(envSocket), os.Getenv(envDir)
	if socket == "" {
		return
	}
	if os.Getenv(EnvHarden) == "1" {
		if err := daemon.Harden(); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
	}
	var more Config
	if s := os.Getenv(EnvConfig); s != "" {
		if err := json.Unmarshal([]byte(s), &more); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
	}
	control(socket)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := daemon.Run(ctx, daemon.Config{Limits: more.Limits, Access: more.Access, Socket: socket, Dir: dir, Backing: os.Getenv(EnvBacking), Data: os.Getenv(EnvData), HandoutDir: os.Getenv(EnvHandout), Log: os.Stderr, LogLevel: "warn", Ready: func() { fmt.Println("ready") }})
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "daemon:", err)
	if zcerr.KindOf(err) == zcerr.Conflict {
		os.Exit(3) // as zcstored does
	}
	os.Exit(1)
}

// Config is more of a daemon's configuration, as the value of EnvConfig.
type Config struct {
	Limits limits.Limits
	Access server.Access
}

// Env is c for the environment of StartProcess.
func (c Config) Env() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // it is plain data
	}
	return EnvConfig + "=" + string(b)
}

// Process runs a daemon as a process of its own, which Kill ends with SIGKILL.
type Process struct {
	cmd  *exec.Cmd
	once sync.Once
}

// Command is the test binary as a daemon, not started. It says "ready" on its standard output once it serves.
func Command(socket, dir string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envSocket+"="+socket, envDir+"="+dir)
	cmd.Env = append(cmd.Env, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// StartProcess starts the test binary as a daemon and waits until it serves.
func StartProcess(t testing.TB, socket, dir string, env ...string) *Process {
	t.Helper()
	return StartCommand(t, Command(socket, dir, env...))
}

// StartCommand starts what Command made, as changed by the test, and waits until it serves.
func StartCommand(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	var log strings.Builder
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Process{cmd: cmd}
	t.Cleanup(p.Kill)
	line := make(chan string, 1)
	go func() { s, _ := bufio.NewReader(out).ReadString('\n'); line <- s }()
	select {
	case s := <-line:
		if s != "ready\n" {
			p.Kill()
			t.Fatalf("the daemon did not start: %s", log.String())
		}
	case <-time.After(20 * time.Second):
		p.Kill()
		t.Fatalf("the daemon was not ready in 20 s: %s", log.String())
	}
	return p
}

// Wait waits until the daemon ended by itself, and reaps it.
func (p *Process) Wait() { p.once.Do(func() { _ = p.cmd.Wait() }) }

// PID is the daemon's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the daemon with SIGKILL and reaps it.
func (p *Process) Kill() {
	p.once.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}
