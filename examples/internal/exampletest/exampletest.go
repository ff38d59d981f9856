// Package exampletest runs an example as a user would, as a program of its own beside a daemon, and looks at what it says.
package exampletest

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

// Main is TestMain of an example.
func Main(m *testing.M, main func()) {
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

// Says runs the example twice (the second time the same bytes are stored already): it must succeed, say each of these texts
// and nothing on standard error, and leave no lease and one version.
func Says(t *testing.T, texts ...string) {
	socket, dir := testdaemon.Place(t)
	testdaemon.StartProcess(t, socket, dir)
	for range 2 {
		out, errs, exit := program(t, socket)
		if exit != 0 || errs != "" {
			t.Fatalf("exit %d: %s%s", exit, out, errs)
		}
		for _, want := range texts {
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

// WithoutDaemon runs the example where nobody answers: it must say which socket it tried, how to start a daemon, and exit 5.
func WithoutDaemon(t *testing.T) {
	socket, _ := testdaemon.Place(t)
	_, errs, exit := program(t, socket)
	if exit != 5 || !strings.Contains(errs, "no daemon answers on "+socket) || !strings.Contains(errs, "zcstored --dev --socket "+socket) {
		t.Errorf("exit %d: %s", exit, errs)
	}
}
