package text_test

import (
	"context"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/zcstore/zcstore/client/text"
	models "github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// calls are every task, on the pipeline that has it.
func calls(t *testing.T) map[string]func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) {
	t.Helper()
	return map[string]func(ctx context.Context, p *models.Pipeline, texts []string) (any, error){
		"mean": func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) { return p.Embed(ctx, texts) },
		"single": func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) {
			return p.Classify(ctx, texts)
		},
		"tags": func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) {
			return p.Tag(ctx, texts, models.First)
		},
		"qa": func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) {
			var list []models.Question
			for _, s := range texts {
				list = append(list, models.Question{Question: "what is it?", Context: "it is " + s})
			}
			return p.Answer(ctx, list, models.AnswerOptions{TopK: 2})
		},
		"mlm": func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) {
			masked := make([]string, len(texts))
			for i, s := range texts {
				masked[i] = "[MASK] " + s
			}
			return p.FillMask(ctx, masked, 3)
		},
		"rerank": func(ctx context.Context, p *models.Pipeline, texts []string) (any, error) {
			return p.Rerank(ctx, "which model?", texts)
		},
	}
}

func kindOf(name string) string {
	if name == "mean" {
		return "st"
	}
	return "heads"
}

// Many goroutines get what one gets, to the last bit, whatever else is in their batches; a call whose context has ended, and one
// on a closed pipeline, are errors of kind Canceled.
func TestTogetherAndCanceled(t *testing.T) {
	g := readTruth(t)
	c := daemon(t)
	for name, call := range calls(t) {
		p := openFolder(t, c, kindOf(name), name)
		want, err := call(ctx, p.Pipeline, g.Texts)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all := reflect.ValueOf(want)
		var wg sync.WaitGroup
		for n := range 8 {
			wg.Go(func() {
				from, to := n%4, len(g.Texts)-n/2
				got, err := call(ctx, p.Pipeline, g.Texts[from:to])
				if err != nil || !reflect.DeepEqual(got, all.Slice(from, to).Interface()) {
					t.Errorf("%s, texts %d to %d: %v, others than alone: %v", name, from, to, err, got)
				}
			})
		}
		wg.Wait()
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := call(ended, p.Pipeline, g.Texts); zcerr.KindOf(err) != zcerr.Canceled {
			t.Errorf("%s after the end of its context: %v of kind %v", name, err, zcerr.KindOf(err))
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if _, err := call(ctx, p.Pipeline, g.Texts); zcerr.KindOf(err) != zcerr.Canceled {
			t.Errorf("%s after Close: %v of kind %v", name, err, zcerr.KindOf(err))
		}
	}
}

// A text that is too long is cut and the answer says so; Whole makes it an error that names it.
func TestLongTexts(t *testing.T) {
	c := daemon(t)
	long := []string{"a model", strings.Repeat("model ", 100)}
	cut := func(name string, answers any) int {
		return int(reflect.ValueOf(answers).Index(1).FieldByName("Truncated").Int())
	}
	for name, call := range calls(t) {
		p := openFolder(t, c, kindOf(name), name)
		got, err := call(ctx, p.Pipeline, long)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if name == "qa" { // which reads in windows instead
			if w := got.([]models.Answers)[1].Windows; w < 2 {
				t.Errorf("%d windows", w)
			}
			continue
		}
		if n := cut(name, got); n < 50 {
			t.Errorf("%s: %d tokens cut", name, n)
		}
		_, err = call(ctx, p.Whole(), long)
		if zcerr.KindOf(err) != zcerr.Invalid || !strings.Contains(err.Error(), "text 1 has 1") || !strings.Contains(err.Error(), "the model takes 48") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := call(ctx, p.Whole(), long[:1]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A pipeline does its task and says so when it is asked for another.
func TestOtherTasks(t *testing.T) {
	c := daemon(t)
	opened := map[string]*text.Pipeline{}
	for name := range calls(t) {
		opened[name] = openFolder(t, c, kindOf(name), name)
	}
	for name, p := range opened {
		for other, call := range calls(t) {
			_, err := call(ctx, p.Pipeline, []string{"a"})
			may := name == other || name == "rerank" && other == "single"
			if may != (err == nil) || !may && zcerr.KindOf(err) != zcerr.Invalid {
				t.Errorf("%s of a pipeline for %s: %v", other, name, err)
			}
		}
	}
}
