package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const inferHelp = `infer runs a stored text pipeline in this process, on the shared weights. What it does says the model's own config:
an embedder gives vectors, a classifier labels, a tagger spans, a masked language model tokens for each mask; one for
question answering takes --question and finds answers in the texts, a cross-encoder takes --query and ranks the texts.

Texts are the arguments, or the lines of --file (- is standard input, which is also read when there is nothing else).
People get a short view; -o json gives every number in one document, --lines one JSON object for each text.

A text that is longer than the model takes is cut, and the answer says by how many tokens; --whole makes that an error.

--form takes the weights in another form, which the daemon makes when nobody has asked for it before: packed (the same
numbers, to the last bit, and faster), bf16 or int8 (rounded, faster still). --compare says what that costs: the same texts
are run in a second form as well, and standard output has how far the answers are apart.`

const inferExample = `  zcctl infer minilm "one copy of the weights" "used in place by every worker"
  zcctl infer minilm -o json < lines.txt
  zcctl infer intents "please remove the old model"
  zcctl infer ner --aggregation first "Ada was born in London" --lines
  zcctl infer squad --question "Where was Ada born?" --context "Ada was born in London."
  zcctl infer reranker --query "who was Ada?" --file passages.txt
  zcctl infer minilm --form int8 --compare plain < lines.txt`

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
	var f inferFlags
	cmd := &cobra.Command{
		Use: "infer REF [TEXT...]", Short: "Run a stored text pipeline: vectors, labels, spans, answers", GroupID: groupUse,
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
			texts, err := f.texts(ctx, argv[1:], cmd.InOrStdin())
			if err != nil {
				return err
			}
			out := inferOutput{Schema: 1, Ref: p.Stored().Ref(), Digest: p.Stored().Digest().String(), Task: p.Config().Task, Form: p.Stored().Form(), Results: []inferResult{}}
			start = time.Now()
			if err := f.run(ctx, p.Pipeline, texts, &out); err != nil {
				return zcerr.Wrap("infer", argv[0], err)
			}
			took := time.Since(start)
			if against != "" {
				if out.Compare, err = compareForms(ctx, c, &out, against, func(p *text.Pipeline, out *inferOutput) error { return f.run(ctx, p.Pipeline, texts, out) }); err != nil {
					return err
				}
			}
			if f.lines {
				return writeLines(a.stdout, out.Results)
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
	f.register(cmd)
	cmd.Flags().StringVar(&against, "compare", "", "also run the texts in this form, and say how far the answers are apart")
	return cmd
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
	const remedy = "give texts as arguments, lines on standard input, or a --file"
	if f, ok := r.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return nil, zcerr.New(zcerr.Invalid, "there is no text").WithHint(remedy)
		}
	}
	var lines []string
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		lines = append(lines, sc.Text())
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return nil, zcerr.New(zcerr.Invalid, "line %d of the texts is over %s long", len(lines)+1, units.Bytes(maxLine)).WithHint("a text is one line; split it")
	}
	if err := sc.Err(); err != nil {
		return nil, zcerr.New(zcerr.Invalid, "read the texts: %w", err)
	}
	if len(lines) == 0 {
		return nil, zcerr.New(zcerr.Invalid, "there is no text").WithHint(remedy)
	}
	return lines, nil
}
