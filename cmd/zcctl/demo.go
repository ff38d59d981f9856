package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/internal/daemon"
	"github.com/zcstore/zcstore/internal/demo"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const demoHelp = `demo shows the whole thing on this machine, in a few seconds and without leaving anything: a daemon of its own on a
private socket, two pipelines in it, worker processes that map the same read-only segments, and 500 rows and 300 texts
through them. Answers are compared with PyTorch's; memory is what the kernel says.

The tutorial's weights are 101 KiB, too little to matter. --size runs the same pipeline with wide layers, where it does,
and --compare runs it once more with a private copy in each worker.`

const demoExample = `  zcctl demo
  zcctl demo --size 500MB --compare
  zcctl demo -o json`

func demoCmd(a *app) *cobra.Command {
	var opt demo.Options
	var size string
	cmd := &cobra.Command{
		Use: "demo", Short: "Show it all: daemon, two pipelines, worker processes, answers, memory", GroupID: groupUse,
		Long: demoHelp, Example: demoExample, Args: args(false),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.Workers < 1 || opt.Workers > 64 {
				return zcerr.New(zcerr.Invalid, "--workers %d is not 1 to 64", opt.Workers)
			}
			if size != "" {
				n, err := units.ParseBytes(size)
				if err != nil || n < 1<<16 || n > 1<<38 {
					return zcerr.New(zcerr.Invalid, "--size %s is no size from 64KiB to 256GiB", size).WithHint("write it as 500MB or 2GiB")
				}
				opt.Size = int(n)
			}
			opt.StartDaemon = startDaemon
			signal.Ignore(syscall.SIGPIPE) // a reader that goes away must not keep us from cleaning up
			if a.output != "json" {
				opt.Say = func(format string, args ...any) { fmt.Fprintf(a.stdout, format+"\n", args...) }
			}
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			rep, err := demo.Run(ctx, opt)
			if err != nil {
				return err
			}
			if a.output == "json" {
				enc := json.NewEncoder(a.stdout)
				enc.SetIndent("", "  ")
				return enc.Encode(rep)
			}
			return tell(a.stdout, rep, opt)
		},
	}
	f := cmd.Flags()
	f.IntVar(&opt.Workers, "workers", 3, "worker processes")
	f.StringVar(&size, "size", "", "bytes of weights, as in 500MB: wide layers with seeded weights (default: the tutorial's 101 KiB)")
	f.BoolVar(&opt.Compare, "compare", false, "run once more with a private copy of the weights in each worker")
	return cmd
}

// tell writes the report for people.
func tell(w io.Writer, r *demo.Report, opt demo.Options) error {
	e := r.EncDec
	fmt.Fprintf(w, "\nencdec: %d rows of 128 numbers in batches of %d\n", e.Samples, e.BatchSize)
	fmt.Fprintf(w, "  Processed %d samples\n", e.Samples)
	fmt.Fprintf(w, "  First prediction shape: %v\n", e.FirstShape)
	for _, s := range e.Workers {
		fmt.Fprintf(w, "  worker %d took %d batches (%d rows)\n", s.Worker, s.Batches, s.Rows)
	}
	fmt.Fprintf(w, "  all computed on the same segment: inode %d, %d bytes, mapped r--s in every worker\n", e.Segment.Inode, e.Segment.Bytes)
	if e.AgainstPyTorch != nil {
		fmt.Fprintf(w, "  largest difference from the PyTorch answers: %.2g\n", *e.AgainstPyTorch)
	}
	fmt.Fprintf(w, "  largest difference from the same pipeline on private weights: %.2g\n", e.AgainstHeapCopy)

	fmt.Fprintf(w, "\ntext: %d texts through a BERT classifier on the same workers, %d labels as PyTorch\n", r.Text.Texts, r.Text.Agree)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range r.Text.Examples {
		fmt.Fprintf(tw, "  %q\t%s\t%.3f\n", x.Text, x.Label, x.Probability)
	}
	if err := tw.Flush(); err != nil {
		return err
	}

	fmt.Fprintf(w, "\nmemory, from the kernel (PSS counts a page that n processes share as 1/n)\n")
	tw = tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\tpid\tready\tPSS\tprivate\tof the weights (PSS)\t\n")
	for _, p := range r.Shared.Workers {
		weights := 0
		for _, s := range p.Segments {
			weights += s.PSS
		}
		fmt.Fprintf(tw, "worker\t%d\t%.0f ms\t%s\t%s\t%s\t\n", p.PID, p.Ready*1e3, units.Bytes(p.Memory.PSS), units.Bytes(p.Memory.Private), units.Bytes(weights))
	}
	if r.Private != nil {
		for _, p := range r.Private.Workers {
			fmt.Fprintf(tw, "private\t%d\t%.0f ms\t%s\t%s\ta copy of its own\t\n", p.PID, p.Ready*1e3, units.Bytes(p.Memory.PSS), units.Bytes(p.Memory.Private))
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "  weights and tables in shared memory, once: %s\n", units.Bytes(r.Weights.Once))
	fmt.Fprintf(w, "  %d workers on the store: PSS %s in all, %.0f rows/s\n", len(r.Shared.Workers), units.Bytes(r.Shared.PSS), r.Shared.Rows)
	switch {
	case r.Private != nil:
		fmt.Fprintf(w, "  %d workers with private copies: PSS %s in all, %.0f rows/s\n", len(r.Private.Workers), units.Bytes(r.Private.PSS), r.Private.Rows)
	case opt.Size == 0:
		fmt.Fprintf(w, "\nThe tutorial's weights are %s: too little for sharing to matter, a worker's own runtime is larger.\nSee it matter, against private copies that are really run:  zcctl demo --size 500MB --compare\n", units.Bytes(r.Stored[0].TensorBytes))
	default:
		fmt.Fprintf(w, "\nWhat as many private copies take, really run:  add --compare\n")
	}
	fmt.Fprintf(w, "\ndone in %.1f s; nothing is left behind\n", r.Duration)
	return nil
}

// startDaemon runs the demo's daemon as a process of its own. It ends in order when its standard input closes, which it does
// with this process, however that ends.
func startDaemon(ctx context.Context, socket, dir string) (int, func() error, error) {
	cmd := exec.Command("/proc/self/exe", demoDaemonName, socket, dir, strconv.Itoa(os.Getpid()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for us; we end it last
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, fmt.Errorf("start the daemon: %w", err)
	}
	stop := func() error {
		in.Close()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("the demo's daemon: %w", err)
		}
		return nil
	}
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		ready <- err
	}()
	select {
	case err = <-ready:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return 0, nil, errors.Join(fmt.Errorf("the demo's daemon did not start: %w", err), stop())
	}
	return cmd.Process.Pid, stop, nil
}

const demoDaemonName = "demo-daemon"

// demoDaemonCmd is the daemon of a demo: quiet, and gone with its segments when standard input closes.
func demoDaemonCmd(*app) *cobra.Command {
	return &cobra.Command{
		Use: demoDaemonName, Hidden: true, Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := daemon.Harden(); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
			return daemon.Run(ctx, daemon.Config{Socket: args[0], Dir: args[1], Ephemeral: true, Ready: func() { fmt.Println("ready") }})
		},
	}
}
