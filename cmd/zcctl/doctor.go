package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"

	"github.com/zcstore/zcstore/proto/zcerr"
)

const doctorHelp = `doctor looks at this machine, and at the daemon when one answers: the socket and who may connect, shared
memory, limits, the kernel, the CPU. Each line is ok, warn or fail, with what to do about it. It changes
nothing: the file that it tries shared memory with is gone at the end. Exit 0, unless a check fails.`

const doctorExample = `  zcctl doctor
  zcctl doctor --socket /run/zcstore/zcstored.sock -o json`

// The levels of a check.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)

// check is one finding.
type check struct {
	Name    string `json:"name"`
	Level   string `json:"level"`
	Message string `json:"message"`
	Fix     string `json:"fix"` // empty when it is ok
}

type doctorJSON struct {
	Schema int     `json:"schema"`
	OK     bool    `json:"ok"` // no check failed
	Checks []check `json:"checks"`
}

func ok(name, format string, args ...any) check {
	return check{Name: name, Level: levelOK, Message: fmt.Sprintf(format, args...)}
}

func warn(name, fix, format string, args ...any) check {
	return check{Name: name, Level: levelWarn, Message: fmt.Sprintf(format, args...), Fix: fix}
}

func fail(name, fix, format string, args ...any) check {
	return check{Name: name, Level: levelFail, Message: fmt.Sprintf(format, args...), Fix: fix}
}

func doctorCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Look for what could go wrong here", GroupID: groupDaemon,
		Long: doctorHelp, Example: doctorExample, Args: args(false), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.within(cmd.Context(), quick)
			defer cancel()
			return a.printChecks(a.examine(ctx))
		},
	}
}

// examine makes every check.
func (a *app) examine(ctx context.Context) []check {
	st, checks := a.checkDaemon(ctx)
	dir := shmDir
	if st != nil {
		dir = st.Directory
		checks = append(checks, ok("guarantee", "%s", st.Guarantee), checkDurability(st), checkPages(st))
	}
	if st != nil && st.Backing == shm.KindMemfd { // not on any file system that we could look at
		dir = shmDir
		checks = append(checks, checkMemory(0, 0)...)
	} else {
		checks = append(checks, checkSpace(dir)...)
	}
	checks = append(checks, checkPublish(shmDir), checkCgroup(dir))
	checks = append(checks, a.checkLeftovers(st)...)
	return append(checks, checkFiles(), checkKernel(), checkCPU())
}

// checkDaemon looks at the socket. The status is nil when no daemon answers.
func (a *app) checkDaemon(ctx context.Context) (*zcstorev1.StatusReply, []check) {
	fix := "zcstored --dev --socket " + a.socket
	access, bad := socketAccess(a.socket)
	if bad != nil {
		return nil, []check{*bad}
	}
	if access == "" {
		return nil, []check{warn("daemon", fix, "no daemon: %s is not there", a.socket)}
	}
	c, err := a.dial(ctx)
	if err != nil {
		return nil, []check{fail("daemon", zcerr.HintOf(err), "%v", err)}
	}
	defer c.Close()
	st, err := c.Status(ctx)
	switch zcerr.KindOf(err) {
	case zcerr.Unavailable:
		return nil, []check{warn("daemon", fix, "no daemon: nobody answers on %s, its daemon has ended", a.socket)}
	default:
		if err != nil {
			return nil, []check{fail("daemon", zcerr.HintOf(err), "%v", err)}
		}
	}
	return st, []check{
		ok("daemon", "zcstored %s, pid %d, up %s, answers on %s", st.Version, st.Pid, age(st.StartedUnixMs), a.socket),
		ok("access", "%s", access),
	}
}

func (a *app) printChecks(checks []check) error {
	failed := 0
	for _, c := range checks {
		if c.Level == levelFail {
			failed++
		}
	}
	if a.json() {
		if err := a.emit(doctorJSON{Schema: schema, OK: failed == 0, Checks: checks}); err != nil {
			return err
		}
	} else {
		g := newGrid(a.stdout, "")
		for _, c := range checks {
			g.row(c.Level, c.Name, c.Message)
			if c.Fix != "" {
				g.row("", "", "  fix: "+c.Fix)
			}
		}
		if err := g.flush(); err != nil {
			return err
		}
	}
	if failed > 0 {
		return zcerr.New(zcerr.Other, "%s failed", count(failed, "check"))
	}
	return nil
}
