package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// inferResult is one text's answer; fields that do not apply are left out.
type inferResult struct {
	Text        string             `json:"text"`
	Tokens      int                `json:"tokens,omitempty"`
	Truncated   int                `json:"truncated_tokens,omitempty"`
	Embedding   []float32          `json:"embedding,omitempty"`
	Label       string             `json:"label,omitempty"`
	Probability float32            `json:"probability,omitempty"`
	Scores      map[string]float32 `json:"scores,omitempty"`
	Entities    []inferSpan        `json:"entities,omitempty"`
	Question    string             `json:"question,omitempty"`
	Answers     []inferSpan        `json:"answers,omitempty"`
	Windows     int                `json:"windows,omitempty"`
	Masks       [][]inferFill      `json:"masks,omitempty"`
	Query       string             `json:"query,omitempty"`
	Score       *float32           `json:"score,omitempty"`
	Rank        int                `json:"rank,omitempty"` // from 1
}

// inferSpan is a part of a text. Start and end are bytes.
type inferSpan struct {
	Label string  `json:"label,omitempty"`
	Text  string  `json:"text"`
	Score float32 `json:"score"`
	Start int     `json:"start"`
	End   int     `json:"end"`
}

func spanOf(label, s string, score float32, at tokenizer.Span) inferSpan {
	return inferSpan{label, s, score, at.Start, at.End}
}

// inferFill is a token for a mask.
type inferFill struct {
	Token string  `json:"token"`
	ID    int32   `json:"id"`
	Score float32 `json:"score"`
	Text  string  `json:"text"`
}

// inferFlags are the choices of the tasks.
type inferFlags struct {
	file, question, context, query string
	aggregation, prompt            string
	topK, dim                      int
	lines, whole                   bool
}

func (f *inferFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.file, "file", "", "read the texts from this file, one a line")
	fl.BoolVar(&f.lines, "lines", false, "print one JSON object for each text")
	fl.BoolVar(&f.whole, "whole", false, "a text that is longer than the model takes is an error")
	fl.StringVar(&f.question, "question", "", "question answering: the question to ask of each text")
	fl.StringVar(&f.context, "context", "", "question answering: the text to ask, as an argument would be")
	fl.StringVar(&f.query, "query", "", "reranking: what the texts are ranked by")
	fl.StringVar(&f.aggregation, "aggregation", string(text.Simple), "tagging: none, simple, first, average or max")
	fl.IntVar(&f.topK, "top-k", 0, "answers to a question (1), tokens for a mask (5)")
	fl.StringVar(&f.prompt, "prompt", "", "embedding: the name of the model's prompt to use")
	fl.IntVar(&f.dim, "dim", 0, "embedding: cut vectors to their first values")
}

// texts are the arguments, or the lines of a file or of standard input.
func (f *inferFlags) texts(ctx context.Context, args []string, stdin io.Reader) ([]string, error) {
	if f.context != "" {
		args = append(slices.Clone(args), f.context)
	}
	if f.file != "" && len(args) > 0 {
		return nil, zcerr.New(zcerr.Invalid, "there are texts as arguments and a --file").WithHint("give one of the two")
	}
	if len(args) > 0 {
		return args, nil
	}
	if f.file == "" || f.file == "-" {
		return readLines(ctx, stdin)
	}
	in, err := os.Open(f.file)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%w", err)
	}
	defer in.Close()
	return readLines(ctx, in)
}

// run does the pipeline's task.
func (f *inferFlags) run(ctx context.Context, p *text.Pipeline, texts []string, out *inferOutput) error {
	if f.whole {
		p = p.Whole()
	}
	task := p.Config().Task
	for _, on := range []struct{ flag, value, task string }{{"--question", f.question, text.Answer}, {"--query", f.query, text.Rerank}} {
		switch {
		case on.value == "" && task == on.task:
			return zcerr.New(zcerr.Invalid, "the model's task is %s, and there is no %s", task, on.flag).WithHint("zcctl infer --help")
		case on.value != "" && task != on.task:
			return zcerr.New(zcerr.Invalid, "%s is for models that %s, and this one's task is %s", on.flag, on.task, task).WithHint("zcctl infer --help")
		}
	}
	add := func(r inferResult) { out.Results = append(out.Results, r) }
	switch task {
	case text.Classify:
		return f.classify(ctx, p, texts, add)
	case text.Tag:
		return f.tag(ctx, p, texts, add)
	case text.Answer:
		return f.answer(ctx, p, texts, add)
	case text.FillMask:
		return f.fill(ctx, p, texts, add)
	case text.Rerank:
		return f.rerank(ctx, p, texts, add)
	}
	got, err := p.EmbedWith(ctx, texts, text.EmbedOptions{PromptName: f.prompt, Dim: f.dim})
	for i, g := range got {
		add(inferResult{Text: texts[i], Tokens: g.Tokens, Truncated: g.Truncated, Embedding: g.Vector})
	}
	return err
}

func (f *inferFlags) classify(ctx context.Context, p *text.Pipeline, texts []string, add func(inferResult)) error {
	got, err := p.Classify(ctx, texts)
	labels := p.Labels()
	for i, g := range got {
		scores := map[string]float32{}
		for k, s := range g.Scores {
			scores[labels[k]] = s
		}
		add(inferResult{Text: texts[i], Tokens: g.Tokens, Truncated: g.Truncated, Label: g.Label, Probability: g.Score, Scores: scores})
	}
	return err
}

func (f *inferFlags) tag(ctx context.Context, p *text.Pipeline, texts []string, add func(inferResult)) error {
	got, err := p.Tag(ctx, texts, text.Aggregation(f.aggregation))
	for i, g := range got {
		r := inferResult{Text: texts[i], Tokens: g.Tokens, Truncated: g.Truncated, Entities: []inferSpan{}}
		for _, e := range g.Entities {
			r.Entities = append(r.Entities, spanOf(e.Label, e.Text, e.Score, e.Bytes))
		}
		add(r)
	}
	return err
}

func (f *inferFlags) answer(ctx context.Context, p *text.Pipeline, texts []string, add func(inferResult)) error {
	list := make([]text.Question, len(texts))
	for i, t := range texts {
		list[i] = text.Question{Question: f.question, Context: t}
	}
	got, err := p.Answer(ctx, list, text.AnswerOptions{TopK: f.topK})
	for i, g := range got {
		r := inferResult{Text: texts[i], Question: f.question, Windows: g.Windows, Answers: []inferSpan{}}
		for _, a := range g.Answers {
			r.Answers = append(r.Answers, spanOf("", a.Text, a.Score, a.Bytes))
		}
		add(r)
	}
	return err
}

func (f *inferFlags) fill(ctx context.Context, p *text.Pipeline, texts []string, add func(inferResult)) error {
	got, err := p.FillMask(ctx, texts, f.topK)
	for i, g := range got {
		r := inferResult{Text: texts[i], Tokens: g.Tokens, Truncated: g.Truncated}
		for _, mask := range g.Masks {
			var fills []inferFill
			for _, m := range mask {
				fills = append(fills, inferFill(m))
			}
			r.Masks = append(r.Masks, fills)
		}
		add(r)
	}
	return err
}

func (f *inferFlags) rerank(ctx context.Context, p *text.Pipeline, texts []string, add func(inferResult)) error {
	got, err := p.Rerank(ctx, f.query, texts)
	order := make([]int, len(got))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return got[order[a]].Score > got[order[b]].Score })
	for rank, i := range order {
		g := got[i]
		add(inferResult{Text: texts[i], Query: f.query, Tokens: g.Tokens, Truncated: g.Truncated, Score: &g.Score, Rank: rank + 1})
	}
	return err
}

// writeLines writes one JSON object a line.
func writeLines[T any](w io.Writer, list []T) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	for _, v := range list {
		if err := e.Encode(v); err != nil {
			return err
		}
	}
	return nil
}

// showResults is the short view for people.
func showResults(w io.Writer, out *inferOutput) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, map[string]string{
		text.Classify: "LABEL\tPROBABILITY\tTOKENS\tTEXT", text.Tag: "LABEL\tSCORE\tBYTES\tSPAN\tTEXT", text.Answer: "ANSWER\tSCORE\tBYTES\tTEXT",
		text.FillMask: "TOKEN\tSCORE\tTEXT", text.Rerank: "RANK\tSCORE\tTOKENS\tTEXT",
		text.Embed: "DIM\tNORM\tTOKENS\tVECTOR\tTEXT", text.Encode: "DIM\tNORM\tTOKENS\tVECTOR\tTEXT",
	}[out.Task])
	for _, r := range out.Results {
		tokens := fmt.Sprint(r.Tokens)
		if r.Truncated > 0 {
			tokens += fmt.Sprintf(" (%d cut)", r.Truncated)
		}
		short := cut(clean(strings.Join(strings.Fields(r.Text), " ")), 60)
		switch out.Task {
		case text.Classify:
			fmt.Fprintf(tw, "%s\t%.3f\t%s\t%s\n", clean(r.Label), r.Probability, tokens, short)
		case text.Tag:
			for _, e := range r.Entities {
				fmt.Fprintf(tw, "%s\t%.3f\t%d-%d\t%s\t%s\n", clean(e.Label), e.Score, e.Start, e.End, clean(e.Text), short)
			}
		case text.Answer:
			for _, a := range r.Answers {
				fmt.Fprintf(tw, "%s\t%.3f\t%d-%d\t%s\n", clean(a.Text), a.Score, a.Start, a.End, short)
			}
		case text.FillMask:
			for _, mask := range r.Masks {
				for _, m := range mask {
					fmt.Fprintf(tw, "%s\t%.3f\t%s\n", clean(m.Token), m.Score, cut(clean(m.Text), 60))
				}
			}
		case text.Rerank:
			fmt.Fprintf(tw, "%d\t%.3f\t%s\t%s\n", r.Rank, *r.Score, tokens, short)
		default:
			fmt.Fprintf(tw, "%d\t%.3f\t%s\t%s\t%s\n", len(r.Embedding), norm(r.Embedding), tokens, head(r.Embedding), short)
		}
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
