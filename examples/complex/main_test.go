package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
)

// asProgram makes the test binary run main, as the example itself would.
const asProgram = "ZCSTORE_EXAMPLE_MAIN"

func TestMain(m *testing.M) {
	worker.Main()
	testdaemon.Main()
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0") // a race build sleeps a second at the end of every worker
	os.Exit(testleak.Run(m))
}

// program runs the example as a process of its own.
func program(t *testing.T, socket string) (stdout, stderr string, exit int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asProgram+"=1", "ZCSTORE_SOCKET="+socket)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // its exit status says it
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestExample(t *testing.T) {
	socket, dir := testdaemon.Place(t)
	testdaemon.StartProcess(t, socket, dir)
	for range 2 { // the second run finds the same bytes stored
		out, errs, exit := program(t, socket)
		if exit != 0 || errs != "" {
			t.Fatalf("exit %d: %s%s", exit, out, errs)
		}
		for _, want := range []string{"Stored complex:v1: 28 tensors, 152824 bytes", "Copied into each worker: Labels, Options.Normalize, Options.Note, Options.Scale, Options.Top; skipped: nothing",
			"Processed 64 samples\n", "shape of topic: [10]\n", "shape of tone: [5]\n", "shape of tag: [17]\n", "Largest difference from PyTorch: "} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in\n%s", want, out)
			}
		}
	}
	st, err := testdaemon.Client(t, socket).Status(t.Context())
	if err != nil || st.Leases != 0 || st.Versions != 1 {
		t.Errorf("left in the store: %v, %v", st, err)
	}
}

func TestExampleWithoutDaemon(t *testing.T) {
	socket, _ := testdaemon.Place(t)
	_, errs, exit := program(t, socket)
	if exit != 5 || !strings.Contains(errs, "no daemon answers on "+socket) || !strings.Contains(errs, "zcstored --dev --socket "+socket) {
		t.Errorf("exit %d: %s", exit, errs)
	}
}
