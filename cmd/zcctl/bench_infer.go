package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/bench"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const benchInferHelp = `infer measures forward passes of a stored encoder, on the shared weights, for batches of texts of one length: texts and tokens
a second, GF/s of the matrix work in the median pass and in the best, and the former's share of a probe that does nothing but multiply and add in registers.
The probe runs before and after each row, and the row again when the two differ by more than 3 %.

READ is the share of the memory's read bandwidth, measured before the first row, at which the weights of products would have to be
read, were they in no cache.

--ops says what each kind of op takes of a pass.`

const benchInferExample = `  zcctl bench infer minilm --threads 1
  zcctl bench infer minilm --form packed --shapes 8x128 --ops
  zcctl bench infer minilm -o json > table.json`

// benchInferOutput is the document of bench infer.
type benchInferOutput struct {
	Schema  int             `json:"schema"`
	Ref     string          `json:"ref"`
	Digest  string          `json:"digest"`
	Form    string          `json:"form"`
	Tier    string          `json:"tier"`
	Threads int             `json:"threads"`
	Rows    []bench.Forward `json:"rows"`
}

func benchInferCmd(a *app) *cobra.Command {
	var form string
	var shapes []string
	var threads int
	var ops bool
	window := 3 * time.Second
	cmd := &cobra.Command{
		Use: "infer REF", Short: "Forward passes of a stored encoder, by shape", GroupID: groupDaemon, Long: benchInferHelp, Example: benchInferExample,
		Args: args(false, "REF"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			f := bench.Infer{Window: window, Tries: 5}
			var err error
			if f.Shapes, err = shapesOf(shapes); err != nil {
				return err
			}
			if threads < 0 || threads > 1024 {
				return zcerr.New(zcerr.Invalid, "--threads %d", threads).WithHint("take 1 to 1024 threads")
			}
			opt := gpu.Options{Threads: threads}
			if ops {
				f.Ops = &bench.Ops{}
				opt.Watch = f.Ops.Watch
			}
			d, err := cpu.New(opt)
			if err != nil {
				return err
			}
			defer d.Close()
			c, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			m, err := c.Attach(ctx, argv[0], client.Form(form))
			if err != nil {
				return err
			}
			defer m.Close()
			if f.Model, err = encoderOf(m, d); err != nil {
				return zcerr.Wrap("bench", argv[0], err)
			}
			if derived := derive.Form(m.Form()); derived.Derived() {
				name, _ := derived.Layout()
				if f.Form, err = pack.ParseForm(name); err != nil {
					return err
				}
			}
			out := benchInferOutput{schema, m.Ref(), m.Digest().String(), m.Form(), d.Tier(), d.Info().Threads, []bench.Forward{}}
			return a.benchInfer(ctx, f, &out)
		},
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&shapes, "shapes", []string{"1x16", "1x128", "8x128", "32x128", "32x32"}, "batches to measure, as TEXTSxTOKENS")
	fl.IntVar(&threads, "threads", 0, "threads that compute (default: $ZCSTORE_THREADS, else what the process may use)")
	fl.BoolVar(&ops, "ops", false, "also say what each kind of op takes")
	fl.DurationVar(&window, "window", window, "how long each row is measured")
	a.formFlag(cmd, &form, "form of the weights: plain, packed, bf16 or int8 (default: $"+client.EnvForm+", else what the tag says, else plain)")
	fl.SortFlags = false
	return cmd
}

// benchInfer measures, and writes rows as they come or the document at the end.
func (a *app) benchInfer(ctx context.Context, f bench.Infer, out *benchInferOutput) error {
	if !a.json() {
		a.talk("%s, %s, %s, %s", out.Ref, out.Form, out.Tier, count(out.Threads, "thread"))
		fmt.Fprintf(a.stdout, "%-8s %6s %10s %10s %10s %8s %8s %8s %6s %6s %6s\n", "SHAPE", "PASSES", "MS", "TEXTS/s", "TOKENS/s", "GF/s", "BEST", "PEAK", "SHARE", "READ", "DRIFT")
	}
	err := f.Run(ctx, func(r bench.Forward) error {
		out.Rows = append(out.Rows, r)
		if a.json() {
			return nil
		}
		return showForward(a, r)
	})
	if err != nil || !a.json() {
		return err
	}
	return a.emit(out)
}

func showForward(a *app, r bench.Forward) error {
	share, read, drift, note := "-", "-", "-", ""
	if r.Peak > 0 {
		share, read, drift = fmt.Sprintf("%.1f%%", 100*r.Share), fmt.Sprintf("%.1f%%", 100*r.OfRead), fmt.Sprintf("%.1f%%", 100*r.Drift)
	}
	if r.Unquiet {
		note = fmt.Sprintf(" (the machine did not hold still in %d tries)", r.Tries)
	}
	_, err := fmt.Fprintf(a.stdout, "%-8s %6d %10.3f %10.1f %10.0f %8.1f %8.1f %8.1f %6s %6s %6s%s\n",
		r.Shape, r.Runs, r.Median*1e3, r.Texts, r.Tokens, r.Flops/1e9, r.Flops/1e9*r.Median/r.Best, r.Peak/1e9, share, read, drift, note)
	for _, o := range r.Ops {
		if err == nil {
			_, err = fmt.Fprintf(a.stdout, "  %-24s %5.0f calls %10.3f ms %5.1f%%\n", o.Op, o.Calls, o.Secs*1e3, 100*o.Share)
		}
	}
	return err
}

// shapesOf takes shapes from text.
func shapesOf(words []string) ([]bench.Shape, error) {
	var out []bench.Shape
	for _, w := range words {
		var s bench.Shape
		if _, err := fmt.Sscanf(w, "%dx%d", &s.Texts, &s.Tokens); err != nil || s.String() != w || s.Texts < 1 || s.Tokens < 1 || s.Texts*s.Tokens > 1<<20 {
			return nil, zcerr.New(zcerr.Invalid, "--shapes %s is no batch", w).WithHint("write texts and tokens of each, up to a million in all, as in 8x128")
		}
		out = append(out, s)
	}
	return out, nil
}

// encoderOf rebuilds what is stored on a device and gives its encoder.
func encoderOf(m *client.Model, d gpu.Device) (*encoder.Model, error) {
	mod, err := pipeline.Build(m, pipeline.LoadOptions{Device: d})
	if err != nil {
		return nil, err
	}
	if p, ok := mod.(*text.Pipeline); ok {
		mod = p.Model()
	}
	if m, ok := mod.(*encoder.Model); ok {
		return m, nil
	}
	kind := mod.Spec().Kind
	return nil, zcerr.New(zcerr.Unsupported, "it is a %s, not an encoder of texts", strings.TrimSpace(kind)).WithHint("zcctl show %s", m.Ref())
}
