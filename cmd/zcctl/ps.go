package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

const psHelp = `ps lists the leases: which process holds which version, oldest first. The kernel says who they are; the
command line is as the process had it when it attached. A version that was removed meanwhile is marked:
its memory is freed when its last holder goes.`

const psExample = `  zcctl ps
  zcctl ps minilm --no-trunc`

type psJSON struct {
	Schema int          `json:"schema"`
	Leases []holderInfo `json:"leases"`
}

type holderInfo struct {
	Lease   uint64     `json:"lease"`
	Ref     string     `json:"ref"`
	Digest  string     `json:"digest"`
	PID     int32      `json:"pid"`
	UID     uint32     `json:"uid"`
	Since   *time.Time `json:"since"`
	Deleted bool       `json:"deleted"`
	Command string     `json:"command"`
	Form    string     `json:"form"`
}

func psCmd(a *app) *cobra.Command {
	var noTrunc bool
	cmd := &cobra.Command{
		Use: "ps [NAME]", Short: "List who holds what", GroupID: groupUse,
		Long: psHelp, Example: psExample, Args: atMostOne("NAME"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, func(ctx context.Context, c *client.Client) error {
				holders, err := c.Holders(ctx, first(args))
				if err != nil {
					return err
				}
				return a.printHolders(holders, first(args), noTrunc)
			})
		},
	}
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "whole digests and command lines")
	return cmd
}

func (a *app) printHolders(holders []*zcstorev1.Holder, name string, noTrunc bool) error {
	if a.json() {
		out := psJSON{Schema: schema, Leases: []holderInfo{}}
		for _, h := range holders {
			out.Leases = append(out.Leases, holderInfo{h.Lease, h.Ref, client.Digest(h.Digest).String(), h.Pid, h.Uid, stamp(h.SinceUnixMs), h.Deleted, h.Command, h.Form})
		}
		return a.emit(out)
	}
	if len(holders) == 0 {
		if name == "" {
			name = "anything"
		}
		a.talk("nobody holds %s", name)
		return nil
	}
	width := 60
	if columns, tty := terminal(a.stdout); tty {
		width = max(20, columns-83) // what the other columns usually take
	}
	g := newGrid(a.stdout, "", "LEASE", "REF", "DIGEST", "FORM", "PID", "UID", "AGE", "COMMAND")
	for _, h := range holders {
		at, digest, command := h.Ref, client.Digest(h.Digest).Short(), cut(h.Command, width)
		if noTrunc {
			digest, command = client.Digest(h.Digest).String(), h.Command
		}
		if h.Deleted {
			at += " (deleted)"
		}
		if command == "" {
			command = "-"
		}
		g.row(h.Lease, at, digest, h.Form, h.Pid, h.Uid, age(h.SinceUnixMs), command)
	}
	return g.flush()
}
