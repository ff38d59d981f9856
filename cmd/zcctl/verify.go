package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const verifyHelp = `verify has the daemon read the bytes of versions in shared memory and compare their SHA-256 with what was put: REF, or
everything that is stored. A version with a damaged tensor is not served any more; workers that have it mapped are left
alone. With a data directory the next attach loads it from disk again; without one, put the model again to repair it. Of a
version that is only on disk, the bytes there are read. Exit 7 when anything is damaged.

--quick compares CRC32C instead: bytes that changed by accident are found at the speed of memory, bytes that somebody changed
on purpose are not.`

const verifyExample = `  zcctl verify
  zcctl verify --quick
  zcctl verify minilm:prod -o json`

// verifyOutput is the document of verify -o json.
type verifyOutput struct {
	Schema   int              `json:"schema"`
	Versions []verifiedOutput `json:"versions"`
}

type verifiedOutput struct {
	Ref     string   `json:"ref"`
	Digest  string   `json:"digest"`
	Tensors uint32   `json:"tensors"`
	Bytes   uint64   `json:"bytes"`
	Damaged []string `json:"damaged_tensors"`
	OnDisk  bool     `json:"on_disk"`       // the bytes on disk were read
	Reloads bool     `json:"reloads"`       // damaged in memory, and loaded from disk at the next attach
	Forms   []string `json:"damaged_forms"` // and what of them; dropped, and made again at the next attach
}

func verifyCmd(a *app) *cobra.Command {
	var quick bool
	cmd := &cobra.Command{
		Use: "verify [REF]", Short: "Compare stored bytes with their digests", GroupID: groupModels,
		Long: verifyHelp, Example: verifyExample, Args: atMostOne("REF"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			c, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return a.verify(ctx, c, first(argv), quick)
		},
	}
	cmd.Flags().BoolVar(&quick, "quick", false, "compare CRC32C, not SHA-256")
	return cmd
}

func (a *app) verify(ctx context.Context, c *client.Client, ref string, quick bool) error {
	verify := c.Verify
	if quick {
		verify = c.VerifyQuick
	}
	refs := []string{ref}
	if ref == "" {
		stored, err := c.List(ctx, "", false)
		if err != nil {
			return inCommand("verify", "", err)
		}
		refs = nil
		for _, v := range stored {
			refs = append(refs, v.Name+"@"+client.Digest(v.Digest).String())
		}
	}
	out := verifyOutput{Schema: 1, Versions: []verifiedOutput{}}
	var damaged error
	for _, r := range refs {
		v, err := verify(ctx, r)
		if err != nil {
			if ref == "" && zcerr.KindOf(err) == zcerr.Corrupt { // known to be damaged: go on with the others
				a.talk("%v", err)
				damaged = err
				continue
			}
			return err
		}
		out.Versions = append(out.Versions, verifiedOutput{v.Ref, client.Digest(v.Digest).String(), v.Tensors, v.Bytes, append([]string{}, v.Damaged...), v.OnDisk, v.Reloads, append([]string{}, v.DamagedForms...)})
		if len(v.DamagedForms) > 0 {
			damaged = zcerr.New(zcerr.Corrupt, "what was made of %s was damaged in memory: form %s", v.Ref, v.DamagedForms[0]).
				WithHint("it was dropped, and the next attach has it made again; start workers that have it anew, and find out what writes there: %s doctor", a.zcctl())
		}
		if len(v.Damaged) > 0 {
			e := zcerr.New(zcerr.Corrupt, "%s is damaged and is not served any more: tensor %q", v.Ref, v.Damaged[0])
			damaged = e.WithHint("put the model again, or remove it: %s rm %s", a.zcctl(), v.Ref)
			if v.Reloads {
				damaged = zcerr.New(zcerr.Corrupt, "%s was damaged in memory: tensor %q", v.Ref, v.Damaged[0]).
					WithHint("the next attach loads it from disk; find out what writes there: %s doctor", a.zcctl())
			}
		}
	}
	if a.output == "json" {
		if err := a.emit(out); err != nil {
			return err
		}
		return damaged
	}
	for _, v := range out.Versions {
		state := "ok     "
		if len(v.Damaged)+len(v.Forms) > 0 {
			state = "DAMAGED"
		}
		where := ""
		if v.OnDisk {
			where = ", on disk"
		}
		if _, err := fmt.Fprintf(a.stdout, "%s  %s  %d tensors, %s%s\n", state, v.Ref, v.Tensors, units.Bytes(v.Bytes), where); err != nil {
			return err
		}
	}
	return damaged
}
