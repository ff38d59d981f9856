package main

import (
	"context"
	"fmt"
	"io"
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

const putHelp = `put stores a model in shared memory. PATH is a Hugging Face or sentence-transformers directory, one
.safetensors or PyTorch file, or - for one .safetensors file on the standard input. The daemon reads files itself, from
descriptors that it is passed, and hashes every byte once; bytes that another version has already are shared with it.

A bare NAME makes the next version (v1, v2, ...) and moves NAME:latest to it. NAME:TAG points that tag;
a tag that points at other bytes moves only with --replace. Workers keep what they have mapped. --form sets the form in
which whoever attaches by these tags gets the weights (zcctl tag --help).

--dry-run says what would be sent, what is shared with other versions, what it needs and what is free, and stores nothing;
exit 6 when it would not fit. A stream cannot be read twice: it needs room for all of it, though parts may be stored already.`

const putExample = `  zcctl put minilm ./all-MiniLM-L6-v2
  zcctl put minilm:prod ./all-MiniLM-L6-v2 --replace
  zcctl put minilm ./all-MiniLM-L6-v2 --dry-run
  zcctl put weights ./model.safetensors -o json
  curl -s https://host/model.safetensors | zcctl put weights -`

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
	var replace, dry bool
	var mode, form string
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
			job := putJob{target: args[0], path: args[1], replace: replace, form: form, progress: p, stdin: cmd.InOrStdin()}
			if dry {
				return a.planPut(ctx, job)
			}
			return a.put(ctx, job)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&replace, "replace", false, "let NAME:TAG move to other bytes")
	a.formFlag(cmd, &form, tagFormUsage)
	f.BoolVar(&dry, "dry-run", false, "say what would be stored, and store nothing")
	f.StringVar(&mode, "progress", "auto", "auto (a line on a terminal), plain (lines) or none")
	return cmd
}

// putJob is one put as it was asked for.
type putJob struct {
	target, path string
	replace      bool
	form         string
	progress     *progress // nil: none
	stdin        io.Reader
}

// ref is the target, checked.
func (j putJob) ref() (ref.Ref, error) {
	r, err := ref.Parse(j.target)
	if err == nil && r.Digest != nil {
		err = fmt.Errorf("reference %s: a put cannot choose its digest", j.target)
	}
	if err != nil {
		err = zcerr.Wrap("put", "", zcerr.New(zcerr.Invalid, "%w", err).WithHint("write NAME or NAME:TAG, as in zcctl put minilm:v1 DIR"))
	}
	return r, err
}

func (j putJob) options() client.PutOptions {
	opt := client.PutOptions{Replace: j.replace, Form: j.form}
	if j.progress != nil {
		opt.Progress = j.progress.update
	}
	return opt
}

// open reads what the source is, and dials the daemon, so that neither waits in vain for the other.
func (a *app) openPut(ctx context.Context, j putJob) (im *hf.Import, stream *hf.Stream, c *client.Client, err error) {
	if j.path == "-" {
		if stream, err = hf.OpenStream(j.stdin); err == nil {
			im = &hf.Import{Draft: stream.Draft, Kind: hf.TensorsKind}
		}
	} else {
		im, err = hf.Open(j.path)
	}
	if err != nil {
		return nil, nil, nil, zcerr.Wrap("put", j.target, err)
	}
	if c, err = a.dial(ctx); err != nil {
		im.Close()
		return nil, nil, nil, err
	}
	if _, err := c.Status(ctx); err != nil { // before gigabytes are hashed for nobody
		im.Close()
		c.Close()
		return nil, nil, nil, inCommand("put", j.target, err)
	}
	return im, stream, c, nil
}

func (a *app) put(ctx context.Context, j putJob) error {
	r, err := j.ref()
	if err != nil {
		return err
	}
	im, stream, c, err := a.openPut(ctx, j)
	if err != nil {
		return err
	}
	defer im.Close()
	defer c.Close()
	start := time.Now()
	var done *zcstorev1.PutDone
	if stream != nil {
		done, err = c.PutStream(ctx, j.target, stream.Draft, stream.Order, stream.Data, j.options())
	} else {
		done, err = c.Put(ctx, j.target, im.Draft, j.options())
	}
	j.progress.close()
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
