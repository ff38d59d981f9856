// Command zcstored keeps model weights in shared memory and hands out read-only descriptors of them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const usage = `zcstored keeps model weights in shared memory, once per machine, and hands read-only descriptors to workers.

  zcstored --dev                  in a terminal: says what it does and what to type next
  zcstored [flags]                as a service: JSON lines on standard error (deploy/zcstored.service)

Exit: 0 ended in order, 1 failed, 2 wrong usage, 3 another daemon has the socket or the segments.

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(exitCode(run(ctx, os.Args[1:], os.Stdout, os.Stderr), os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parse(args, stdout, stderr)
	if err != nil {
		return err
	}
	if err := daemon.Harden(); err != nil {
		return err
	}
	return daemon.Run(ctx, cfg)
}

func parse(args []string, stdout, stderr io.Writer) (daemon.Config, error) {
	cfg := daemon.Config{Out: stdout, Log: stderr}
	fs := flag.NewFlagSet("zcstored", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	fs.BoolVar(&cfg.Dev, "dev", false, "talk to a person: print what is served and the next command; log warnings only")
	fs.StringVar(&cfg.Socket, "socket", socketpath.Default(), "path of the Unix socket ($"+socketpath.Env+")")
	fs.StringVar(&cfg.Dir, "dir", "", "directory of segments, on a tmpfs (default: one of /dev/shm that belongs to the socket)")
	fs.StringVar(&cfg.HandoutDir, "handout-dir", "", "read-only bind mount of --dir: descriptors opened through it cannot be reopened for writing, not even by root")
	fs.StringVar(&cfg.Backing, "backing", "shm", "shm: files of a tmpfs directory; memfd: sealed memory that not even root can change, kept through restarts by systemd")
	fs.StringVar(&cfg.Data, "data", "", "directory on a disk: every version is also kept there, as an OCI image layout, and survives a reboot (default: memory only)")
	maxBytes := fs.String("max-bytes", "", "budget for stored weights, as in 4GiB (default: what the tmpfs has)")
	cfg.Limits.Flags(fs)
	fs.Func("allow-uid", "user who may use the daemon, by number, beside root, its own user and the socket's group (repeatable)", appendID(&cfg.Access.UIDs))
	fs.Func("allow-gid", "group whose members may use it, by number (repeatable)", appendID(&cfg.Access.GIDs))
	fs.StringVar(&cfg.LogFormat, "log-format", "", "json or text (default json, with --dev text)")
	fs.StringVar(&cfg.LogLevel, "log-level", "", "debug, info, warn or error (default info, with --dev warn)")
	version := fs.Bool("version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return cfg, err
		}
		return cfg, errUsage // already printed
	}
	if *version {
		fmt.Fprintln(stdout, "zcstored", daemon.Version())
		return cfg, flag.ErrHelp
	}
	if fs.NArg() > 0 {
		return cfg, zcerr.New(zcerr.Invalid, "zcstored takes no arguments, got %q", fs.Arg(0)).WithHint("zcstored --help")
	}
	if *maxBytes != "" {
		n, err := units.ParseBytes(*maxBytes)
		if err != nil {
			return cfg, zcerr.New(zcerr.Invalid, "--max-bytes: %w", err)
		}
		cfg.MaxBytes = n
	}
	if cfg.Dev && cfg.LogFormat == "" {
		cfg.LogFormat = "text"
	}
	if cfg.Dev && cfg.LogLevel == "" {
		cfg.LogLevel = "warn"
	}
	return cfg, nil
}

// appendID takes a number from a flag that may be repeated.
func appendID(to *[]uint32) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return errors.New("wants a number: see id -u, id -g")
		}
		*to = append(*to, uint32(n))
		return nil
	}
}

var errUsage = errors.New("usage")

// exitCode prints an error with its hint, and gives the daemon's own few exit codes.
func exitCode(err error, stderr io.Writer) int {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	fmt.Fprintln(stderr, "zcstored:", err)
	if hint := zcerr.HintOf(err); hint != "" {
		fmt.Fprintln(stderr, "  "+hint)
	}
	switch zcerr.KindOf(err) {
	case zcerr.Invalid:
		return 2
	case zcerr.Conflict:
		return 3
	}
	return 1
}
