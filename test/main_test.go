// Package e2e is the whole product at once: a daemon that is a process, workers that are processes, and pipelines whose
// answers PyTorch gave. Nothing here looks inside; what a test needs to know, it asks the SDK or the kernel.
package e2e

import (
	"context"
	"os"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	worker.Main()
	testdaemon.Main()
	probeMain()
	// A race build sleeps a second at the end of every worker; and a race in a worker has to end it, or nobody hears of it.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0 halt_on_error=1")
	os.Exit(testleak.Run(m))
}

var ctx = context.Background()

// place is a daemon as a process, and where it lives.
type place struct {
	socket, dir string
	daemon      *testdaemon.Process
	c           *client.Client
}

func start(t testing.TB) *place {
	t.Helper()
	p := &place{}
	p.socket, p.dir = testdaemon.Place(t)
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
	p.c = testdaemon.Client(t, p.socket)
	return p
}

// pool starts workers, and closes them with the test.
func pool[Args, In, Out any](t testing.TB, d *worker.Def[Args, In, Out], args Args, n int) *worker.Pool[In, Out] {
	t.Helper()
	p, err := worker.Start(ctx, d, args, worker.Options{Workers: n})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}
