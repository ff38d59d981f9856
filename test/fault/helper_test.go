package fault

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/store/storetest"
)

// The test binary is also the client processes that the tests kill, or that compute while the daemon is killed.
const (
	envHelper = "ZCSTORE_FAULT_HELPER"
	envSocket = "ZCSTORE_FAULT_SOCKET"
	envRef    = "ZCSTORE_FAULT_REF"
)

// helper does not return in a client process.
func helper() {
	mode := os.Getenv(envHelper)
	if mode == "" {
		return
	}
	var err error
	switch mode {
	case "hold":
		err = hold()
	case "compute":
		err = compute()
	default:
		err = fmt.Errorf("no helper %q", mode)
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hold attaches and keeps it until its standard input ends.
func hold() error {
	c, err := client.Dial(context.Background(), client.Options{Socket: os.Getenv(envSocket)})
	if err != nil {
		return err
	}
	if _, err := c.Attach(context.Background(), os.Getenv(envRef)); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// compute attaches and hashes every tensor again and again until its standard input ends. Then it says how often.
func compute() error {
	c, err := client.Dial(context.Background(), client.Options{Socket: os.Getenv(envSocket)})
	if err != nil {
		return err
	}
	defer c.Close()
	h, err := storetest.Remote{C: c}.Attach(os.Getenv(envRef))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	end := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(end) }()
	for n := 0; ; n++ {
		if bad := h.Broken(); bad != "" {
			return fmt.Errorf("tensor %s changed", bad)
		}
		select {
		case <-end:
			fmt.Println("rounds", n)
			return nil
		case <-time.After(time.Millisecond): // the machine is the daemon's, too
		}
	}
}

// process is a client process.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// spawn starts a client process and waits until it is ready.
func spawn(mode, socket, ref string) (*process, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envHelper+"="+mode, envSocket+"="+socket, envRef+"="+ref, "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if line, err := p.out.ReadString('\n'); line != "ready\n" {
		p.kill()
		return nil, fmt.Errorf("client process: %q, %v", line, err)
	}
	return p, nil
}

// kill ends it with SIGKILL. It has died when kill returns.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// end closes its standard input, and gives its last word.
func (p *process) end(t testing.TB) string {
	t.Helper()
	p.in.Close()
	line, _ := p.out.ReadString('\n')
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("client process: %v, %s", err, line)
	}
	return strings.TrimSpace(line)
}
