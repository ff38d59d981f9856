package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

const rmHelp = `rm takes names away, and frees what no name is left for. NAME:TAG removes that tag; NAME@sha256:DIGEST that
version with all its tags; a bare NAME the model, with --all also when it has several versions.

Workers that hold a removed version keep it: its memory is freed when the last of them goes. Bytes that
another version shares stay. After an error with one reference rm goes on with the next, and ends with
the exit code of the first error.`

const rmExample = `  zcctl rm minilm:v1
  zcctl rm minilm --all
  zcctl rm $(zcctl ls -q)`

type rmJSON struct {
	Schema  int       `json:"schema"`
	Removed []removed `json:"removed"` // one a reference, in order
}

type removed struct {
	Ref         string     `json:"ref"`
	Untagged    []string   `json:"untagged"`
	Versions    []string   `json:"versions"` // digests that no tag names any more
	FreedBytes  uint64     `json:"freed_bytes"`
	HeldBytes   uint64     `json:"held_bytes"`
	PinnedBytes uint64     `json:"pinned_bytes"`
	HeldBy      []int32    `json:"held_by"` // pids
	Error       *errorBody `json:"error"`
}

func rmCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "rm REF...", Short: "Remove tags, versions or models", GroupID: groupModels,
		Long: rmHelp, Example: rmExample, Args: args(true, "REF"), ValidArgsFunction: a.completeRefs(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.ask(cmd, func(ctx context.Context, c *client.Client) error { return a.remove(ctx, c, args, all) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "with a bare NAME: every version of the model")
	return cmd
}

func (a *app) remove(ctx context.Context, c *client.Client, refs []string, all bool) error {
	out := rmJSON{Schema: schema, Removed: []removed{}}
	var failed *saidError
	for _, target := range refs {
		r, err := c.Remove(ctx, target, all)
		if err != nil {
			if code := a.report(err); failed == nil {
				failed = &saidError{code}
			}
			b := bodyOf(err)
			out.Removed = append(out.Removed, removed{Ref: target, Untagged: []string{}, Versions: []string{}, HeldBy: []int32{}, Error: &b})
			if k := zcerr.KindOf(err); k == zcerr.Unavailable || ctx.Err() != nil {
				break // the next would fail the same
			}
			continue
		}
		one := removed{
			Ref: target, Untagged: some(r.Untagged), Versions: []string{}, HeldBy: heldBy(ctx, c, target, r),
			FreedBytes: r.FreedBytes, HeldBytes: r.HeldBytes, PinnedBytes: r.PinnedBytes,
		}
		for _, d := range r.Removed {
			one.Versions = append(one.Versions, client.Digest(d).String())
		}
		out.Removed = append(out.Removed, one)
		if !a.json() {
			a.printRemoved(one)
		}
	}
	if a.json() {
		if err := a.emit(out); err != nil {
			return err
		}
	}
	if failed != nil {
		return failed
	}
	return nil
}

func (a *app) printRemoved(r removed) {
	fmt.Fprintf(a.stdout, "untagged %s\n", clean(strings.Join(r.Untagged, ", ")))
	if len(r.Versions) == 0 {
		fmt.Fprintln(a.stdout, "  the version stays: it has other tags")
		return
	}
	fmt.Fprintf(a.stdout, "  freed %s\n", units.Bytes(r.FreedBytes))
	if r.PinnedBytes > 0 {
		fmt.Fprintf(a.stdout, "  kept %s, which other versions share\n", units.Bytes(r.PinnedBytes))
	}
	if r.HeldBytes > 0 {
		by := "workers"
		if len(r.HeldBy) > 0 {
			by = "pid " + strings.Trim(fmt.Sprint(r.HeldBy), "[]")
		}
		fmt.Fprintf(a.stdout, "  held %s by %s, freed when they go: %s ps\n", units.Bytes(r.HeldBytes), by, a.zcctl())
	}
}

// heldBy lists the processes that keep what was removed. It is an extra: when it cannot be asked, it is empty.
func heldBy(ctx context.Context, c *client.Client, target string, r *zcstorev1.RemoveReply) []int32 {
	pids := []int32{}
	parsed, err := ref.Parse(target)
	if err != nil || r.HeldBytes == 0 {
		return pids
	}
	holders, err := c.Holders(ctx, parsed.Name)
	if err != nil {
		return pids
	}
	for _, h := range holders {
		gone := slices.ContainsFunc(r.Removed, func(d []byte) bool { return client.Digest(d) == client.Digest(h.Digest) })
		if gone && !slices.Contains(pids, h.Pid) {
			pids = append(pids, h.Pid)
		}
	}
	return pids
}
