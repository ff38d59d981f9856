package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/bench"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const computeHelp = `compute measures products of M rows with a weight of N outputs and K inputs, for each tier of kernels and each form of
the weight, as GF/s of the fastest run and as share of a probe that does nothing but multiply and add in registers, in the
arithmetic of the form. The probe runs before and after each row, and the row again when the two differ by more than 3 %. It
asks no daemon.

M = 1 is measured on weights that are in no cache, as a decoder reads them: there GB/s and the share are of the memory's read
bandwidth.`

const computeExample = `  zcctl bench compute
  zcctl bench compute --tier avx512 --form packed,int8 --threads 1 --size 768x768 --rows 8,32,128
  zcctl bench compute -o json > table.json`

func benchComputeCmd(a *app) *cobra.Command {
	c := bench.Compute{Window: 150 * time.Millisecond, Tries: 5}
	var sizes []string
	cmd := &cobra.Command{
		Use: "compute", Short: "Products, by tier and form", GroupID: groupDaemon, Long: computeHelp, Example: computeExample, Args: args(false),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			if err := computeArgs(&c, sizes); err != nil {
				return err
			}
			rows := []bench.Product{}
			if !a.json() {
				fmt.Fprintf(a.stdout, "%-11s %-7s %7s %5s %5s %5s %8s %8s %6s %6s\n", "TIER", "FORM", "THREADS", "M", "N", "K", "GF/s", "PEAK", "SHARE", "DRIFT")
			}
			err := c.Run(ctx, func(p bench.Product) error {
				if a.json() {
					rows = append(rows, p)
					return nil
				}
				return showProduct(a, p)
			})
			if err != nil || !a.json() {
				return err
			}
			return a.emit(struct {
				Schema int             `json:"schema"`
				Rows   []bench.Product `json:"rows"`
			}{schema, rows})
		},
	}
	var forms []string
	for _, f := range derive.Weights {
		forms = append(forms, string(f))
	}
	fast := slices.DeleteFunc(cpu.Tiers(), func(t string) bool { return t == "go" })
	if len(fast) == 0 {
		fast = []string{"go"}
	}
	threads := []int{1}
	if n := runtime.GOMAXPROCS(0); n > 1 {
		threads = append(threads, n)
	}
	f := cmd.Flags()
	f.StringSliceVar(&c.Tiers, "tier", fast, "tiers of kernels")
	f.StringSliceVar(&c.Forms, "form", forms, "forms of the weight")
	f.IntSliceVar(&c.Threads, "threads", threads, "numbers of threads")
	f.StringSliceVar(&sizes, "size", []string{"384x384", "1536x384", "384x1536", "768x768", "768x3072", "3072x768"}, "weights, as NxK")
	f.IntSliceVar(&c.Rows, "rows", []int{1, 8, 32, 128, 1024}, "numbers of rows, M")
	f.DurationVar(&c.Window, "window", c.Window, "how long each row is measured")
	f.SortFlags = false
	return cmd
}

// computeArgs takes the sizes from text and refuses what cannot be measured.
func computeArgs(c *bench.Compute, sizes []string) error {
	c.Sizes = nil
	for _, s := range sizes {
		var n, k int
		if _, err := fmt.Sscanf(s, "%dx%d", &n, &k); err != nil || fmt.Sprintf("%dx%d", n, k) != s || n < 1 || k < 1 || n > 1<<16 || k > 1<<16 {
			return zcerr.New(zcerr.Invalid, "--size %s is no size of a weight", s).WithHint("write N and K, 1 to 65536, as in 768x3072")
		}
		c.Sizes = append(c.Sizes, [2]int{n, k})
	}
	for _, m := range c.Rows {
		if m < 1 || m > 1<<16 {
			return zcerr.New(zcerr.Invalid, "--rows %d", m).WithHint("take 1 to 65536 rows")
		}
	}
	for _, n := range c.Threads {
		if n < 1 || n > 1024 {
			return zcerr.New(zcerr.Invalid, "--threads %d", n).WithHint("take 1 to 1024 threads")
		}
	}
	for _, f := range c.Forms {
		if _, err := derive.Parse(f); err != nil {
			return err
		}
	}
	for _, t := range c.Tiers {
		if have := cpu.Tiers(); !slices.Contains(have, t) {
			return zcerr.New(zcerr.Invalid, "this processor does not run the tier %q", t).WithHint("use one of %s", strings.Join(have, ", "))
		}
	}
	return nil
}

func showProduct(a *app, p bench.Product) error {
	got, peak, unit := p.Flops/1e9, p.Peak/1e9, ""
	if p.Read > 0 {
		got, unit = p.Read/1e9, " GB/s from memory"
	}
	share, drift := "-", "-"
	if p.Share > 0 {
		share, drift = fmt.Sprintf("%.1f%%", 100*p.Share), fmt.Sprintf("%.1f%%", 100*p.Drift)
	}
	if p.Unquiet {
		unit += fmt.Sprintf(" (the machine did not hold still in %d tries)", p.Tries)
	}
	_, err := fmt.Fprintf(a.stdout, "%-11s %-7s %7d %5d %5d %5d %8.1f %8.1f %6s %6s%s\n", p.Tier, p.Form, p.Threads, p.M, p.N, p.K, got, peak, share, drift, unit)
	return err
}
