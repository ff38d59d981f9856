package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/units"
	modeltext "github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const inferHelp = `infer runs a stored text pipeline in this process, on the shared weights: an embedder gives vectors, a classifier
labels. Texts are the arguments, or the lines of standard input when there are none.

People get a short view; -o json gives every number.

--form takes the weights in another form, which the daemon makes when nobody has asked for it before: packed (the same
numbers, to the last bit, and faster), bf16 or int8 (rounded, faster still). --compare says what that costs: the same texts
are run in a second form as well, and standard output has how far the answers are apart.`

const inferExample = `  zcctl infer minilm "one copy of the weights" "used in place by every worker"
  zcctl infer minilm -o json < lines.txt
  zcctl infer intents "please remove the old model"
  zcctl infer minilm --form int8 --compare plain < lines.txt`

// inferResult is one text's answer; fields that do not apply are left out.
type inferResult struct {
	Text        string             `json:"text"`
	Tokens      int                `json:"tokens"`
	Truncated   int                `json:"truncated_tokens,omitempty"`
	Embedding   []float32          `json:"embedding,omitempty"`
	Label       string             `json:"label,omitempty"`
	Probability float32            `json:"probability,omitempty"`
	Scores      map[string]float32 `json:"scores,omitempty"`
}

type inferOutput struct {
	Schema  int           `json:"schema"`
	Ref     string        `json:"ref"`
	Digest  string        `json:"digest"`
	Task    string        `json:"task"`
	Results []inferResult `json:"results"`
	Form    string        `json:"form"`
	Compare *comparison   `json:"compare,omitempty"`
}

func inferCmd(a *app) *cobra.Command {
	var form, against string
	cmd := &cobra.Command{
		Use: "infer REF [TEXT...]", Short: "Run a stored text pipeline: vectors or labels", GroupID: groupUse,
		Long: inferHelp, Example: inferExample, Args: args(true, "REF"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			c, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			start := time.Now()
			p, err := text.Open(ctx, c, argv[0], client.Form(form))
			if err != nil {
				return err
			}
			defer p.Close()
			opened := time.Since(start)
			texts := argv[1:]
			if len(texts) == 0 {
				if texts, err = readLines(ctx, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			out := inferOutput{Schema: 1, Ref: p.Stored().Ref(), Digest: p.Stored().Digest().String(), Task: p.Config().Task, Form: p.Stored().Form(), Results: []inferResult{}}
			start = time.Now()
			if err := inferTexts(cmd, p, texts, &out); err != nil {
				return zcerr.Wrap("infer", argv[0], err)
			}
			took := time.Since(start)
			if against != "" {
				if out.Compare, err = compareForms(cmd, c, &out, against, texts); err != nil {
					return err
				}
			}
			if a.output == "json" {
				return json.NewEncoder(a.stdout).Encode(out)
			}
			show := showResults
			if out.Compare != nil {
				show = showComparison
			}
			if err := show(a.stdout, &out); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "%s %s, %s: opened in %.1f ms, %d texts in %.0f ms\n", out.Ref, p.Stored().Digest().Short(), out.Form, opened.Seconds()*1e3, len(texts), took.Seconds()*1e3)
			return nil
		},
	}
	a.formFlag(cmd, &form, "form of the weights: plain, packed, bf16 or int8 (default: $"+client.EnvForm+", else what the tag says, else plain)")
	cmd.Flags().StringVar(&against, "compare", "", "also run the texts in this form, and say how far the answers are apart")
	return cmd
}

// inferTexts does the pipeline's task.
func inferTexts(cmd *cobra.Command, p *text.Pipeline, texts []string, out *inferOutput) error {
	if p.Config().Task == modeltext.Classify {
		return classifyTexts(cmd, p, texts, out)
	}
	return embedTexts(cmd, p, texts, out)
}

// maxLine is the longest text of standard input, in bytes.
const maxLine = 16 << 20

// readLines reads the texts of standard input, one a line. It gives up waiting for more when ctx ends.
func readLines(ctx context.Context, r io.Reader) ([]string, error) {
	type result struct {
		lines []string
		err   error
	}
	done := make(chan result, 1)
	go func() {
		lines, err := scanLines(r)
		done <- result{lines, err}
	}()
	select {
	case got := <-done:
		return got.lines, got.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func scanLines(r io.Reader) ([]string, error) {
	if f, ok := r.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return nil, zcerr.New(zcerr.Invalid, "there is no text").WithHint("give texts as arguments, or lines on standard input")
		}
	}
	var lines []string
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return nil, zcerr.New(zcerr.Invalid, "line %d of standard input is over %s long", len(lines)+1, units.Bytes(maxLine)).WithHint("a text is one line; split it")
	}
	if err := sc.Err(); err != nil {
		return nil, zcerr.New(zcerr.Invalid, "read standard input: %w", err)
	}
	if len(lines) == 0 {
		return nil, zcerr.New(zcerr.Invalid, "there is no text").WithHint("give texts as arguments, or lines on standard input")
	}
	return lines, nil
}

func embedTexts(cmd *cobra.Command, p *text.Pipeline, texts []string, out *inferOutput) error {
	got, err := p.Embed(cmd.Context(), texts)
	if err != nil {
		return err
	}
	for i, g := range got {
		out.Results = append(out.Results, inferResult{Text: texts[i], Tokens: g.Tokens, Truncated: g.Truncated, Embedding: g.Vector})
	}
	return nil
}

func classifyTexts(cmd *cobra.Command, p *text.Pipeline, texts []string, out *inferOutput) error {
	got, err := p.Classify(cmd.Context(), texts)
	if err != nil {
		return err
	}
	labels := p.Labels()
	for i, g := range got {
		scores := map[string]float32{}
		for k, s := range g.Scores {
			scores[labels[k]] = s
		}
		out.Results = append(out.Results, inferResult{Text: texts[i], Tokens: g.Tokens, Truncated: g.Truncated, Label: g.Label, Probability: g.Score, Scores: scores})
	}
	return nil
}

// showResults is the short view for people.
func showResults(w io.Writer, out *inferOutput) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if out.Task == modeltext.Classify {
		fmt.Fprintln(tw, "LABEL\tPROBABILITY\tTOKENS\tTEXT")
	} else {
		fmt.Fprintln(tw, "DIM\tNORM\tTOKENS\tVECTOR\tTEXT")
	}
	for _, r := range out.Results {
		tokens := fmt.Sprint(r.Tokens)
		if r.Truncated > 0 {
			tokens += fmt.Sprintf(" (%d cut)", r.Truncated)
		}
		short := strings.Join(strings.Fields(r.Text), " ")
		if runes := []rune(short); len(runes) > 60 {
			short = string(runes[:57]) + "..."
		}
		if out.Task == modeltext.Classify {
			fmt.Fprintf(tw, "%s\t%.3f\t%s\t%s\n", r.Label, r.Probability, tokens, short)
			continue
		}
		fmt.Fprintf(tw, "%d\t%.3f\t%s\t%s\t%s\n", len(r.Embedding), norm(r.Embedding), tokens, head(r.Embedding), short)
	}
	return tw.Flush()
}

func norm(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

func head(v []float32) string {
	var parts []string
	for _, x := range v[:min(4, len(v))] {
		parts = append(parts, fmt.Sprintf("%.4f", x))
	}
	return "[" + strings.Join(parts, ", ") + ", ...]"
}
