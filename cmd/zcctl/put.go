package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/models/ref"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

const putHelp = `put stores a model in shared memory. PATH is a Hugging Face or sentence-transformers directory, or one
.safetensors file. It is streamed from the disk; bytes that another version has already are shared with it.

A bare NAME makes the next version (v1, v2, ...) and moves NAME:latest to it. NAME:TAG points that tag;
a tag that points at other bytes moves only with --replace. Workers keep what they have mapped.`

const putExample = `  zcctl put minilm ./all-MiniLM-L6-v2
  zcctl put minilm:prod ./all-MiniLM-L6-v2 --replace
  zcctl put weights ./model.safetensors -o json`

type putJSON struct {
	Schema         int      `json:"schema"`
	Ref            string   `json:"ref"`
	Name           string   `json:"name"`
	Tags           []string `json:"tags"`
	Digest         string   `json:"digest"`
	Kind           string   `json:"kind"`
	Tensors        uint32   `json:"tensors"`
	TensorBytes    uint64   `json:"tensor_bytes"`
	TableBytes     uint64   `json:"table_bytes"`
	SharedBytes    uint64   `json:"shared_bytes"`
	WrittenBytes   uint64   `json:"written_bytes"`
	Existed        bool     `json:"existed"`
	Seconds        float64  `json:"seconds"`
	BytesPerSecond float64  `json:"bytes_per_second"`
	Notes          []string `json:"notes"`
}

func putCmd(a *app) *cobra.Command {
	var replace bool
	var mode string
	cmd := &cobra.Command{
		Use: "put NAME[:TAG] PATH", Short: "Store a model", GroupID: groupModels,
		Long: putHelp, Example: putExample, Args: args(false, "NAME[:TAG]", "PATH"),
		ValidArgsFunction: func(_ *cobra.Command, got []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(got) == 1 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := newProgress(mode, a.stderr)
			if err != nil {
				return err
			}
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			return a.put(ctx, args[0], args[1], replace, p)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&replace, "replace", false, "let NAME:TAG move to other bytes")
	f.StringVar(&mode, "progress", "auto", "auto (a line on a terminal), plain (lines) or none")
	return cmd
}

func (a *app) put(ctx context.Context, target, path string, replace bool, p *progress) error {
	r, err := ref.Parse(target)
	if err == nil && r.Digest != nil {
		err = fmt.Errorf("reference %s: a put cannot choose its digest", target)
	}
	if err != nil {
		return zcerr.Wrap("put", "", zcerr.New(zcerr.Invalid, "%w", err).WithHint("write NAME or NAME:TAG, as in zcctl put minilm:v1 DIR"))
	}
	im, err := hf.Open(path)
	if err != nil {
		return zcerr.Wrap("put", target, err)
	}
	defer im.Close()
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Status(ctx); err != nil { // before gigabytes are hashed for nobody
		return err
	}
	opt := client.PutOptions{Replace: replace}
	if p != nil {
		opt.Progress = p.update
	}
	start := time.Now()
	done, err := c.Put(ctx, target, im.Draft, opt)
	p.close()
	if err != nil {
		return err
	}
	took := time.Since(start)
	if a.json() {
		v := done.Version
		return a.emit(putJSON{
			Schema: schema, Ref: putRef(r, v), Name: v.Name, Tags: some(v.Tags), Digest: client.Digest(v.Digest).String(), Kind: v.Kind,
			Tensors: v.Tensors, TensorBytes: v.TensorBytes, TableBytes: v.TableBytes, SharedBytes: done.SharedBytes, WrittenBytes: done.WrittenBytes,
			Existed: done.Existed, Seconds: took.Seconds(), BytesPerSecond: perSecond(v.TensorBytes, took), Notes: some(im.Notes),
		})
	}
	for _, n := range im.Notes {
		a.talk("note: %s", n)
	}
	return a.printPut(r, done, took)
}

func (a *app) printPut(r ref.Ref, done *zcstorev1.PutDone, took time.Duration) error {
	v := done.Version
	what := "stored"
	if done.Existed {
		what = "named"
	}
	fmt.Fprintf(a.stdout, "%s %s\n", what, putRef(r, v))
	g := newGrid(a.stdout, "  ")
	g.row("tags", strings.Join(v.Tags, ", "))
	g.row("digest", client.Digest(v.Digest).Short())
	g.row("kind", v.Kind)
	g.row("tensors", fmt.Sprintf("%d, %s", v.Tensors, units.Bytes(v.TensorBytes)))
	if done.Existed {
		g.row("written", "nothing: this version was stored already")
	} else {
		g.row("written", units.Bytes(done.WrittenBytes))
		g.row("shared", units.Bytes(done.SharedBytes)+" with other versions")
	}
	g.row("took", fmt.Sprintf("%s, %s", span(took), rate(v.TensorBytes, took)))
	return g.flush()
}

// putRef is what a version that was just stored is called: the tag asked for, else the number it got.
func putRef(r ref.Ref, v *zcstorev1.VersionInfo) string {
	if r.Tag != "" || len(v.Tags) == 0 {
		return r.String()
	}
	return r.Name + ":" + v.Tags[0] // the numbers come first
}
