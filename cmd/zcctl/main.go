// Command zcctl stores models in a zcstore daemon and says what it holds, who uses it and what is wrong.
//
// Data goes to standard output, talk (progress, notes, errors) to standard error. Every command takes -o json.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/zcstore/zcstore/client/worker"
)

func main() {
	worker.Main() // zcctl starts itself again as its worker processes
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process: the exit code of one command line. It ends with 130 when ctx ended first.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{stdout: stdout, stderr: stderr}
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var said *saidError
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		return a.report(interrupted(err))
	case errors.As(err, &said):
		return said.exit
	case !a.started: // of cobra: flags and arguments
		err = usage(cmd, err)
		if wantsJSON(args) { // flags behind a wrong one were not read
			a.output = "json"
		}
	}
	return a.report(err)
}
