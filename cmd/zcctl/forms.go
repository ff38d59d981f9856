package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/units"
	"github.com/zcstore/zcstore/models/derive"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// formFlag is --form, with what it means here.
func (a *app) formFlag(cmd *cobra.Command, form *string, usage string) {
	cmd.Flags().StringVar(form, "form", "", usage)
	names := func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		var out []cobra.Completion
		for _, f := range derive.Weights {
			out = append(out, cobra.Completion(f))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("form", names); err != nil {
		panic(err) // the flag was made above
	}
}

// tagFormUsage is what --form means for commands that set tags.
const tagFormUsage = "form of whoever attaches by the tag and names none: plain, packed, bf16 or int8 (default: as the tag has it)"

// formJSON is a form of a version that is in memory.
type formJSON struct {
	Form       string    `json:"form"`
	Bytes      uint64    `json:"bytes"`
	TableBytes uint64    `json:"table_bytes"`
	Holders    uint32    `json:"holders"`
	Segments   []segment `json:"segments"`
}

func formsOf(v *zcstorev1.VersionInfo) []formJSON {
	out := []formJSON{}
	for _, f := range v.Forms {
		out = append(out, formJSON{f.Form, f.Bytes, f.TableBytes, f.Holders, segmentsOf(f.Segments)})
	}
	return out
}

// tagFormsOf are the default forms of a version's tags.
func tagFormsOf(v *zcstorev1.VersionInfo) map[string]string {
	if v.TagForms == nil {
		return map[string]string{}
	}
	return v.TagForms
}

// tagWords are a version's tags, each with its default form if that is not plain: "v1,prod(packed)".
func tagWords(v *zcstorev1.VersionInfo) []string {
	var out []string
	for _, tag := range v.Tags {
		if f := v.TagForms[tag]; f != "" {
			tag += "(" + f + ")"
		}
		out = append(out, tag)
	}
	return out
}

// statusForm is all that is in memory of a form.
type statusForm struct {
	Form     string `json:"form"`
	Versions uint32 `json:"versions"`
	Bytes    uint64 `json:"bytes"`
}

func statusForms(st *zcstorev1.StatusReply) []statusForm {
	out := []statusForm{}
	for _, f := range st.Forms {
		out = append(out, statusForm{f.Form, f.Versions, f.Bytes})
	}
	return out
}

// formRows says what is in memory of each form.
func formRows(g *grid, st *zcstorev1.StatusReply) {
	head := "forms"
	for _, f := range st.Forms {
		g.row(head, fmt.Sprintf("%s: %s of %s, dropped when room is needed and nobody holds them", f.Form, units.Bytes(f.Bytes), count(f.Versions, "version")))
		head = ""
	}
}

// comparison is how far the answers in two forms are apart.
type comparison struct {
	Form          string   `json:"form"`
	With          string   `json:"with"`
	Texts         int      `json:"texts"`
	MinCosine     *float64 `json:"min_cosine,omitempty"` // of embeddings
	MeanCosine    *float64 `json:"mean_cosine,omitempty"`
	OtherLabels   *int     `json:"other_labels,omitempty"` // of classes
	MaxDifference float64  `json:"max_difference"`         // of one number of a vector, or of a probability
}

// compareForms runs the texts in a second form and compares.
func compareForms(ctx context.Context, c *client.Client, got *inferOutput, form string, run func(*text.Pipeline, *inferOutput) error) (*comparison, error) {
	name, _, _ := strings.Cut(got.Ref, ":")
	at := name + "@" + got.Digest // the tag could have moved
	p, err := text.Open(ctx, c, at, client.Form(form))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	want := inferOutput{Task: got.Task}
	if err := run(p, &want); err != nil {
		return nil, zcerr.Wrap("infer", at, err)
	}
	return compareAnswers(got, &want, form), nil
}

func compareAnswers(got, want *inferOutput, form string) *comparison {
	out := &comparison{Form: got.Form, With: form, Texts: len(got.Results)}
	least, sum, vectors, other, labels := 1.0, 0.0, 0, 0, 0
	for i, g := range got.Results {
		w := want.Results[i]
		if g.Embedding != nil {
			c := cosine(g.Embedding, w.Embedding)
			least = min(least, c)
			sum += c
			vectors++
		}
		if g.Label != "" {
			labels++
			if g.Label != w.Label {
				other++
			}
		}
		a, b := g.numbers(), w.numbers()
		for k := range a {
			out.MaxDifference = max(out.MaxDifference, math.Abs(float64(a[k])-float64(b[k])))
		}
	}
	if vectors > 0 {
		mean := sum / float64(vectors)
		out.MinCosine, out.MeanCosine = &least, &mean
	}
	if labels > 0 {
		out.OtherLabels = &other
	}
	return out
}

// numbers are all that an answer says, in an order that does not depend on the form.
func (r inferResult) numbers() []float32 {
	if r.Embedding != nil {
		return r.Embedding
	}
	var out []float32
	for _, label := range slices.SortedFunc(maps.Keys(r.Scores), cmp.Compare[string]) {
		out = append(out, r.Scores[label])
	}
	return out
}

func cosine(a, b []float32) float64 {
	dot, aa, bb := 0.0, 0.0, 0.0
	for i := range a {
		x, y := float64(a[i]), float64(b[i])
		dot, aa, bb = dot+x*y, aa+x*x, bb+y*y
	}
	if aa == 0 || bb == 0 {
		return 0
	}
	return min(1, dot/math.Sqrt(aa*bb))
}

// showComparison is what a form costs, for people.
func showComparison(w io.Writer, out *inferOutput) error {
	c := out.Compare
	g := newGrid(w, "")
	g.row("form", fmt.Sprintf("%s, against %s", c.Form, c.With))
	g.row("texts", c.Texts)
	if c.MinCosine != nil {
		g.row("cosine", fmt.Sprintf("%.7f at least, %.7f in the mean", *c.MinCosine, *c.MeanCosine))
	}
	if c.OtherLabels != nil {
		g.row("labels", count(*c.OtherLabels, "text")+" with another label")
	}
	what := "of a number in a vector"
	if c.MinCosine == nil {
		what = "of a probability"
	}
	g.row("difference", fmt.Sprintf("%.3g at most, %s", c.MaxDifference, what))
	return g.flush()
}
