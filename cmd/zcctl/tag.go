package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
)

const tagHelp = `tag points a tag at a stored version. A tag that points at another version moves only with --replace.
Workers keep the version that they have; the next attach gets the new one.

--form sets the form in which whoever attaches by the tag and asks for none gets the weights. It belongs to the tag: it stays
when the tag moves, until another one is set, and goes with the tag. A new tag, and a version that is named by its digest,
are plain.`

const tagExample = `  zcctl tag minilm:v2 minilm:prod
  zcctl tag minilm:v3 minilm:prod --replace
  zcctl tag minilm:prod minilm:prod --form packed`

type tagJSON struct {
	Schema   int     `json:"schema"`
	Ref      string  `json:"ref"`
	Digest   string  `json:"digest"`
	Previous *string `json:"previous"` // what the tag pointed at before, or null
}

func tagCmd(a *app) *cobra.Command {
	var replace bool
	var form string
	cmd := &cobra.Command{
		Use: "tag SRC NAME:TAG", Short: "Point a tag at a version", GroupID: groupModels,
		Long: tagHelp, Example: tagExample, Args: args(false, "SRC", "NAME:TAG"), ValidArgsFunction: a.completeRefs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, func(ctx context.Context, c *client.Client) error {
				r, err := c.TagAs(ctx, args[0], args[1], replace, form)
				if err != nil {
					return err
				}
				digest, previous := client.Digest(r.Digest), client.Digest(r.Previous)
				moved := len(r.Previous) > 0 && previous != digest
				if a.json() {
					out := tagJSON{Schema: schema, Ref: args[1], Digest: digest.String()}
					if len(r.Previous) > 0 {
						s := previous.String()
						out.Previous = &s
					}
					return a.emit(out)
				}
				fmt.Fprintf(a.stdout, "%s is %s", args[1], digest.Short())
				switch {
				case moved:
					fmt.Fprintf(a.stdout, ", was %s", previous.Short())
				case len(r.Previous) > 0:
					fmt.Fprint(a.stdout, ", as before")
				}
				_, err = fmt.Fprintln(a.stdout)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "let a tag move to another version")
	a.formFlag(cmd, &form, tagFormUsage)
	return cmd
}
