package peercred

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

const envDial = "ZCSTORE_PEERCRED_DIAL"

// dialer is a child process: it connects twice and waits.
func dialer() {
	path := os.Getenv(envDial)
	if path == "" {
		return
	}
	for range 2 {
		if _, err := net.Dial("unix", path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func TestIdentify(t *testing.T) {
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	ln, err := net.ListenUnix("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	two := func() [2]Cred {
		t.Helper()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envDial+"="+addr.Name)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var got [2]Cred
		for i := range got {
			c, err := ln.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got[i], err = Identify(c); err != nil || got[i].Process == 0 || int(got[i].PID) != cmd.Process.Pid {
				t.Errorf("%+v, %v", got[i], err)
			}
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		return got
	}
	a, b := two(), two()
	if a[0] != a[1] || b[0] != b[1] {
		t.Errorf("one process, two answers: %+v, %+v", a, b)
	}
	if a[0].Process == b[0].Process {
		t.Errorf("two processes, one answer: %+v, %+v", a[0], b[0])
	}
}

// Where the kernel has no inode for each process, it is the start time.
func TestStartTime(t *testing.T) {
	own := startTime(int32(os.Getpid()))
	if own == 0 || own != startTime(int32(os.Getpid())) {
		t.Errorf("own start time %d", own)
	}
	if startTime(-1) != 0 {
		t.Error("a process that is not there has a start time")
	}
}

func TestGroups(t *testing.T) {
	client, _ := pair(t)
	got, err := Groups(client)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	var have []int
	for _, g := range got {
		have = append(have, int(g))
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("groups %v, want %v", have, want)
	}
}
