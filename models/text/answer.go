package text

import (
	"context"
	"slices"
	"sort"
	"strings"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Question is a question and the text that its answer is a part of.
type Question struct{ Question, Context string }

// AnswerOptions are the choices of one call. The zero value is as transformers' question answering does it.
type AnswerOptions struct {
	TopK       int  // answers for each question; 0: 1
	MaxTokens  int  // of question and a window of the context; 0: what the model takes, at most 384
	Stride     int  // tokens that a window repeats of the one before; 0: half of MaxTokens, at most 128
	MaxAnswer  int  // tokens of an answer; 0: 15
	Impossible bool // that there is no answer is one, with an empty text
	Pieces     bool // answers begin and end at tokens, not at words
}

// Found is an answer.
type Found struct {
	Text  string // as it stands in the context
	Score float32
	Bytes tokenizer.Span // in the context
	Runes tokenizer.Span
}

// Answers are the answers to one question, the best first. A context that is too long is read in windows, of which all
// answers compete.
type Answers struct {
	Answers []Found
	Windows int
}

// Answer finds the answers to questions.
func (p *Pipeline) Answer(ctx context.Context, questions []Question, o AnswerOptions) ([]Answers, error) {
	if p.config.Task != Answer || p.marks == nil {
		return nil, p.otherTask("answer")
	}
	if err := o.complete(p.config.MaxLength); err != nil {
		return nil, err
	}
	var windows []*tokenizer.Encoding // of all questions
	ends := make([]int, len(questions))
	for i, q := range questions {
		if q.Question == "" || q.Context == "" {
			return nil, zcerr.New(zcerr.Invalid, "question %d: question or context is empty", i)
		}
		err := p.use(func(t *tokenizer.Tokenizer) error {
			t = t.WithTruncation(tokenizer.Truncation{MaxLength: o.MaxTokens, Stride: o.Stride, Strategy: tokenizer.OnlySecond})
			e, err := t.WithOverflow(true).Encode(q.Question, q.Context)
			if err != nil {
				return zcerr.New(zcerr.Invalid, "question %d: %w", i, err).WithHint("the question and the stride have to fit in %d tokens: shorten it, or give another stride", o.MaxTokens)
			}
			windows = append(windows, e)
			for k := range e.Overflowing {
				windows = append(windows, &e.Overflowing[k])
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		ends[i] = len(windows)
	}
	logits := make([][]float32, len(windows)) // start and end of each token
	err := p.run(ctx, windows, func(b encoder.Batch, index []int) error {
		t, err := p.marks(ctx, b)
		if err != nil {
			return err
		}
		v, n, err := rows(t, 2)
		if err != nil {
			return err
		}
		for k, i := range index {
			logits[i] = v[b.Starts[k]*n : b.Starts[k+1]*n]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]Answers, len(questions))
	from := 0
	for i, q := range questions {
		s := search{p: p, o: o, q: q, null: 1e6}
		for k := from; k < ends[i]; k++ {
			s.window(windows[k], logits[k])
		}
		out[i] = Answers{Answers: s.result(), Windows: ends[i] - from}
		from = ends[i]
	}
	return out, nil
}

// complete fills in what was left out and refuses what is impossible.
func (o *AnswerOptions) complete(limit int) error {
	set := func(v *int, otherwise int) {
		if *v == 0 {
			*v = otherwise
		}
	}
	set(&o.TopK, 1)
	set(&o.MaxTokens, min(limit, 384))
	set(&o.Stride, min(o.MaxTokens/2, 128))
	set(&o.MaxAnswer, 15)
	if o.TopK < 1 || o.MaxAnswer < 1 || o.Stride < 0 || o.MaxTokens < 1 || o.MaxTokens > limit || o.Stride > o.MaxTokens {
		return zcerr.New(zcerr.Invalid, "%d answers of at most %d tokens in windows of %d with stride %d: the model takes %d tokens", o.TopK, o.MaxAnswer, o.MaxTokens, o.Stride, limit)
	}
	return nil
}

// search collects the answers to one question.
type search struct {
	p     *Pipeline
	o     AnswerOptions
	q     Question
	null  float32 // the least score of no answer
	found []Found
}

// candidate is a span of tokens.
type candidate struct {
	from, to int
	score    float32
}

// window adds the best spans of one window. The score of a span is the product of the probabilities of its ends, among all
// tokens of the context and the class token, which stands for no answer.
func (s *search) window(e *tokenizer.Encoding, logits []float32) {
	n := len(e.IDs)
	may := make([]bool, n)
	start, end := make([]float32, n), make([]float32, n)
	for i := range n {
		may[i] = e.Input[i] == 1 || e.IDs[i] == s.p.cls
		start[i], end[i] = -10000, -10000
		if may[i] {
			start[i], end[i] = logits[2*i], logits[2*i+1]
		}
	}
	softmax(start)
	softmax(end)
	s.null = min(s.null, start[0]*end[0])
	want := s.o.TopK
	if !s.o.Pieces {
		want = 2*want + 10 // several may be of the same words
	}
	var list []candidate
	least := func() float32 {
		if len(list) < want {
			return -1
		}
		return list[len(list)-1].score
	}
	for i := 1; i < n; i++ {
		for j := i; j < min(n, i+s.o.MaxAnswer); j++ {
			score := start[i] * end[j]
			if !may[i] || !may[j] || score <= least() {
				continue
			}
			at := sort.Search(len(list), func(k int) bool { return list[k].score < score })
			list = slices.Insert(list, at, candidate{i, j, score})
			list = list[:min(len(list), want)]
		}
	}
	for _, c := range list {
		s.add(e, c)
	}
}

// add adds a span's score to the answer of the same words, or makes a new one.
func (s *search) add(e *tokenizer.Encoding, c candidate) {
	from, to := c.from, c.to
	if !s.o.Pieces {
		for from > 0 && !s.p.startsWord(e, from, s.q.Context) && e.Input[from-1] == 1 {
			from--
		}
		for to+1 < len(e.IDs) && !s.p.startsWord(e, to+1, s.q.Context) && e.Input[to+1] == 1 {
			to++
		}
	}
	f := Found{Score: c.score, Bytes: tokenizer.Span{Start: e.Bytes[from].Start, End: e.Bytes[to].End}, Runes: tokenizer.Span{Start: e.Offsets[from].Start, End: e.Offsets[to].End}}
	f.Text = s.q.Context[f.Bytes.Start:max(f.Bytes.Start, f.Bytes.End)]
	for i := range s.found {
		if strings.EqualFold(s.found[i].Text, f.Text) {
			s.found[i].Score += f.Score
			return
		}
	}
	s.found = append(s.found, f)
}

func (s *search) result() []Found {
	if s.o.Impossible {
		s.found = append(s.found, Found{Score: s.null})
	}
	sort.SliceStable(s.found, func(i, j int) bool { return s.found[i].Score > s.found[j].Score })
	return s.found[:min(len(s.found), s.o.TopK)]
}
