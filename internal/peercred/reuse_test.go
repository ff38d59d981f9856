package peercred

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A process that has the number and the user of one that has ended is another process.
func TestCase64ReusedProcessID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	// dial has a process connect and end, and gives who it was; ok is false when it has not the wanted number.
	dial := func(wanted int32) (who Cred, ok bool) {
		t.Helper()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envDial+"="+path)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		if wanted != 0 && cmd.Process.Pid != int(wanted) {
			return who, false
		}
		for n := 0; n < 2; { // it connects twice; connections of those before wait here, too
			c, err := ln.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := Identify(c); err == nil && int(got.PID) == cmd.Process.Pid {
				who = got
				n++
			}
			c.Close()
		}
		return who, true
	}
	first, _ := dial(0)
	for range 200 { // others start processes, too
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, first.PID-1), 0); err != nil {
			t.Skipf("the next process id cannot be chosen: %v", err)
		}
		again, ok := dial(first.PID)
		if !ok {
			continue
		}
		if again.UID != first.UID || again == first {
			t.Errorf("%+v, and after it %+v: they pass for one process", first, again)
		}
		return
	}
	t.Skip("its number did not come again")
}
