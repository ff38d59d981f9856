package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
)

const pinHelp = `pin keeps a version in memory, whatever else needs room, or with --off lets go of it. It holds for the version that REF
names now, also when the tag moves on, and it survives restarts. A version that is only on disk is loaded first.

Without a data directory nothing ever leaves memory by itself; the pin is kept for the day there is one.`

const pinExample = `  zcctl pin minilm:prod
  zcctl pin minilm:prod --off`

type pinJSON struct {
	Schema  int         `json:"schema"`
	Version versionInfo `json:"version"`
}

func pinCmd(a *app) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "pin REF", Short: "Keep a version in memory", GroupID: groupModels,
		Long: pinHelp, Example: pinExample, Args: args(false, "REF"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := a.within(cmd.Context(), 0) // a load takes as long as the disk does
			defer cancel()
			c, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return a.pin(ctx, c, args[0], off)
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "let go of it")
	return cmd
}

func (a *app) pin(ctx context.Context, c *client.Client, target string, off bool) error {
	v, err := c.Pin(ctx, target, off)
	if err != nil {
		return err
	}
	if a.json() {
		return a.emit(pinJSON{Schema: schema, Version: infoOf(v)})
	}
	words := "stays in memory"
	switch {
	case off && v.Pinned: // another model names it, too
		words = "stays in memory: it is pinned under another name"
	case off:
		words = "may leave memory"
	}
	_, err = fmt.Fprintf(a.stdout, "%s %s %s\n", target, client.Digest(v.Digest).Short(), words)
	return err
}
