package main

import (
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const daemonHelp = `daemon serves a store in this process, as zcstored does. It is for zcctl's own use (demo, tests):
one program to carry, and nothing left behind with --ephemeral. SIGINT and SIGTERM end it in order.`

const daemonExample = `  zcctl daemon --socket /tmp/s.sock --ephemeral --log /tmp/s.log`

func daemonCmd(a *app) *cobra.Command {
	var dir, backing, logFile string
	var ephemeral bool
	cmd := &cobra.Command{
		Use: "daemon", Short: "Serve a store in this process", Hidden: true,
		Long: daemonHelp, Example: daemonExample, Args: args(false),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			var log io.Writer
			switch logFile {
			case "":
			case "-":
				log = a.stderr
			default:
				f, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
				if err != nil {
					return zcerr.New(zcerr.Invalid, "--log: %w", err)
				}
				defer f.Close()
				log = f
			}
			if err := daemon.Harden(); err != nil {
				return err
			}
			return daemon.Run(cmd.Context(), daemon.Config{Socket: a.socket, Dir: dir, Backing: backing, Ephemeral: ephemeral, Log: log})
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "directory of segments (default: one of /dev/shm that belongs to the socket)")
	f.StringVar(&backing, "backing", "", "shm or memfd (default: shm)")
	f.BoolVar(&ephemeral, "ephemeral", false, "remove the segments at the end")
	f.StringVar(&logFile, "log", "", "write log lines to this file; - is standard error")
	return cmd
}
