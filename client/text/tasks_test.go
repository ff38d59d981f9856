package text_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testdaemon"
	models "github.com/zcstore/zcstore/models/text"
)

// truth is test/golden/text/golden.json: what transformers and sentence-transformers answer.
type truth struct {
	Texts, Questions []string
	Context          string
	ST               map[string]struct {
		Folder string
		Args   struct {
			Dim        int     `json:"truncate_dim"`
			Normalize  bool    `json:"normalize_embeddings"`
			PromptName string  `json:"prompt_name"`
			Prompt     *string `json:"prompt"`
		}
	}
	Heads map[string]json.RawMessage
}

func readTruth(t *testing.T) *truth {
	t.Helper()
	b, err := os.ReadFile(golden.Tree(t, "text", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g truth
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	return &g
}

func decode[T any](t *testing.T, b []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// folder is base/ with one of the folders laid over it.
func folder(t *testing.T, parts ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "m")
	over := golden.Tree(t, append([]string{"text"}, parts...)...)
	if err := os.CopyFS(dir, os.DirFS(golden.Tree(t, "text", "base"))); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(over, func(path string, e os.DirEntry, err error) error {
		rel, rerr := filepath.Rel(over, path)
		if err != nil || rerr != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		to := filepath.Join(dir, rel)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o700)
		}
		if err == nil {
			err = os.WriteFile(to, b, 0o600)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func daemon(t *testing.T) *client.Client {
	t.Helper()
	socket, shmDir := testdaemon.Place(t)
	testdaemon.Start(t, socket, shmDir)
	return testdaemon.Client(t, socket)
}

// openFolder puts a folder and opens it.
func openFolder(t *testing.T, c *client.Client, parts ...string) *text.Pipeline {
	t.Helper()
	name := parts[len(parts)-1]
	put(t, c, name, folder(t, parts...))
	p, err := text.Open(ctx, c, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func near(a, b float32) bool {
	return math.Abs(float64(a)-float64(b)) <= 2e-5*math.Max(1, math.Abs(float64(b)))
}

// TestSentenceTransformers compares every pooling mode, module, prompt and cut of a vector.
func TestSentenceTransformers(t *testing.T) {
	g := readTruth(t)
	c := daemon(t)
	opened := map[string]*text.Pipeline{}
	for name, call := range g.ST {
		p := opened[call.Folder]
		if p == nil {
			p = openFolder(t, c, "st", call.Folder)
			opened[call.Folder] = p
		}
		want := f32(t, golden.Tree(t, "text", "golden.safetensors"), name)
		got, err := p.EmbedWith(ctx, g.Texts, models.EmbedOptions{Prompt: call.Args.Prompt, PromptName: call.Args.PromptName, Dim: call.Args.Dim, Normalize: call.Args.Normalize})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		dim := len(want) / len(g.Texts)
		worst := 0.0
		for i, e := range got {
			worst = math.Max(worst, largest(e.Vector, want[i*dim:(i+1)*dim]))
		}
		if worst > 2e-5 {
			t.Errorf("%s: largest difference %g", name, worst)
		}
	}
	if len(g.ST) < 20 {
		t.Errorf("%d cases", len(g.ST))
	}
}

func TestClassifiers(t *testing.T) {
	g := readTruth(t)
	c := daemon(t)
	for _, name := range []string{"single", "multi", "regression", "one"} {
		p := openFolder(t, c, "heads", name)
		want := decode[[][]struct {
			Label string
			Score float32
		}](t, g.Heads[name])
		got, err := p.Classify(ctx, g.Texts)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, w := range want {
			if got[i].Label != w[0].Label || !near(got[i].Score, w[0].Score) {
				t.Errorf("%s, text %d: %s %g, want %v", name, i, got[i].Label, got[i].Score, w)
			}
			for _, one := range w {
				for k, l := range p.Labels() {
					if l == one.Label && !near(got[i].Scores[k], one.Score) {
						t.Errorf("%s, text %d: %s %g, want %g", name, i, l, got[i].Scores[k], one.Score)
					}
				}
			}
		}
	}
}

func TestRerank(t *testing.T) {
	g := readTruth(t)
	c := daemon(t)
	for _, name := range []string{"rerank", "rerank-identity"} {
		p := openFolder(t, c, "heads", name)
		for q, want := range decode[[][]float32](t, g.Heads[name]) {
			got, err := p.Rerank(ctx, g.Questions[q], g.Texts)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for i, w := range want {
				if !near(got[i].Score, w) {
					t.Errorf("%s, query %d, text %d: %g, want %g", name, q, i, got[i].Score, w)
				}
			}
		}
	}
}

func TestTag(t *testing.T) {
	g := readTruth(t)
	p := openFolder(t, daemon(t), "heads", "tags")
	for how, want := range decode[map[models.Aggregation][][]struct {
		Entity     string
		Group      string `json:"entity_group"`
		Score      float32
		Start, End int
	}](t, g.Heads["tags"]) {
		got, err := p.Tag(ctx, g.Texts, how)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range want {
			if len(got[i].Entities) != len(list) {
				t.Errorf("%s, text %d: %v, want %v", how, i, got[i].Entities, list)
				continue
			}
			for k, w := range list {
				e := got[i].Entities[k]
				runes := []rune(g.Texts[i])
				if e.Label != w.Entity+w.Group || !near(e.Score, w.Score) || e.Runes.Start != w.Start || e.Runes.End != w.End || e.Text != string(runes[w.Start:w.End]) {
					t.Errorf("%s, text %d: %+v, want %+v", how, i, e, w)
				}
			}
		}
	}
}

func TestAnswer(t *testing.T) {
	g := readTruth(t)
	c := daemon(t)
	for _, name := range []string{"qa", "qa-roberta"} {
		t.Run(name, func(t *testing.T) { answers(t, openFolder(t, c, "heads", name), g.Heads[name]) })
	}
}

func answers(t *testing.T, p *text.Pipeline, truth json.RawMessage) {
	t.Helper()
	for _, w := range decode[[]struct {
		Question, Context string
		Args              struct {
			TopK       int   `json:"top_k"`
			MaxTokens  int   `json:"max_seq_len"`
			Stride     int   `json:"doc_stride"`
			MaxAnswer  int   `json:"max_answer_len"`
			Impossible bool  `json:"handle_impossible_answer"`
			Align      *bool `json:"align_to_words"`
		}
		Answers []struct {
			Score      float32
			Start, End int
			Answer     string
		}
	}](t, truth) {
		a := w.Args
		got, err := p.Answer(ctx, []models.Question{{Question: w.Question, Context: w.Context}}, models.AnswerOptions{
			TopK: a.TopK, MaxTokens: a.MaxTokens, Stride: a.Stride, MaxAnswer: a.MaxAnswer, Impossible: a.Impossible, Pieces: a.Align != nil && !*a.Align,
		})
		if err != nil {
			t.Fatal(err)
		}
		same := len(got[0].Answers) == len(w.Answers)
		for k := 0; same && k < len(w.Answers); k++ {
			f := got[0].Answers[k]
			same = near(f.Score, w.Answers[k].Score) && f.Text == w.Answers[k].Answer && f.Runes.Start == w.Answers[k].Start && f.Runes.End == w.Answers[k].End
		}
		if !same {
			t.Errorf("%q, %d bytes, %+v:\n%+v, want\n%+v", w.Question, len(w.Context), a, got[0].Answers, w.Answers)
		}
	}
}

func TestFillMask(t *testing.T) {
	g := readTruth(t)
	p := openFolder(t, daemon(t), "heads", "mlm")
	type fill struct {
		Score    float32
		Token    int32
		TokenStr string `json:"token_str"`
		Sequence string
	}
	for _, w := range decode[[]struct {
		Text    string
		Answers json.RawMessage
	}](t, g.Heads["mlm"]) {
		var want [][]fill
		if json.Unmarshal(w.Answers, &want) != nil {
			want = [][]fill{decode[[]fill](t, w.Answers)}
		}
		got, err := p.FillMask(ctx, []string{w.Text}, 4)
		if err != nil {
			t.Fatal(err)
		}
		if len(got[0].Masks) != len(want) {
			t.Fatalf("%d masks, want %d", len(got[0].Masks), len(want))
		}
		for m, list := range want {
			for k, f := range list {
				e := got[0].Masks[m][k]
				if e.ID != f.Token || e.Token != f.TokenStr || e.Text != f.Sequence || !near(e.Score, f.Score) {
					t.Errorf("%q: %+v, want %+v", w.Text, e, f)
				}
			}
		}
	}
	if _, err := p.FillMask(ctx, []string{"no mask"}, 1); err == nil || fmt.Sprint(err) != "text 0 has no [MASK]" {
		t.Errorf("%v", err)
	}
}
