package main

import (
	"context"
	"fmt"

	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// planJSON is the document of put --dry-run -o json.
type planJSON struct {
	Schema    int    `json:"schema"`
	Ref       string `json:"ref"`
	Existed   bool   `json:"existed"`
	SendBytes uint64 `json:"send_bytes"`
	Shared    uint64 `json:"shared_bytes"`
	NeedBytes uint64 `json:"need_bytes"`
	FreeBytes uint64 `json:"free_bytes"`
	FreeLimit string `json:"free_limit"`
	Fits      bool   `json:"fits"`
}

// planPut says what a put would do.
func (a *app) planPut(ctx context.Context, j putJob) error {
	r, err := j.ref()
	if err != nil {
		return err
	}
	if j.path == "-" {
		return zcerr.Wrap("put", j.target, zcerr.New(zcerr.Invalid, "--dry-run would use up the stream").WithHint("give a file or a directory"))
	}
	im, _, c, err := a.openPut(ctx, j)
	if err != nil {
		return err
	}
	defer im.Close()
	defer c.Close()
	plan, err := c.PlanPut(ctx, j.target, im.Draft, j.options())
	j.progress.close()
	if err != nil {
		return err
	}
	fits := plan.NeedBytes <= plan.FreeBytes
	if a.json() {
		err = a.emit(planJSON{schema, r.String(), plan.Existed, plan.SendBytes, plan.Shared, plan.NeedBytes, plan.FreeBytes, plan.FreeLimit, fits})
	} else {
		for _, n := range im.Notes {
			a.talk("note: %s", n)
		}
		fmt.Fprintf(a.stdout, "would store %s\n", r)
		g := newGrid(a.stdout, "  ")
		if plan.Existed {
			g.row("send", "nothing: this version is stored already")
		} else {
			g.row("send", units.Bytes(plan.SendBytes))
			g.row("shared", units.Bytes(plan.Shared)+" with other versions")
		}
		g.row("needed", units.Bytes(plan.NeedBytes))
		g.row("free", units.Bytes(plan.FreeBytes)+" ("+plan.FreeLimit+")")
		err = g.flush()
	}
	if err == nil && !fits {
		err = zcerr.Wrap("put", j.target, zcerr.New(zcerr.NoSpace, "%s needed, %s free (%s)", units.Bytes(plan.NeedBytes), units.Bytes(plan.FreeBytes), plan.FreeLimit).
			WithHint("remove a version: 'zcctl ls', 'zcctl rm REF'; or see who holds deleted ones: 'zcctl ps'"))
	}
	return err
}
