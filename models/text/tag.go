package text

import (
	"context"
	"strings"
	"unicode/utf8"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Aggregation is how tagged tokens become spans: the strategies of transformers' token classification.
type Aggregation string

// The strategies. None gives tokens. Simple joins neighbours of one label; the others decide for whole words first: by their
// first token, by the mean of their tokens, or by the surest one.
const (
	NoAggregation Aggregation = "none"
	Simple        Aggregation = "simple"
	First         Aggregation = "first"
	Average       Aggregation = "average"
	Max           Aggregation = "max"
)

// Aggregations lists them.
var Aggregations = []Aggregation{NoAggregation, Simple, First, Average, Max}

// Entity is a labelled span of a text.
type Entity struct {
	Label string // without B- and I-, but for tokens
	Score float32
	Text  string         // as it stands there
	Bytes tokenizer.Span // in the text
	Runes tokenizer.Span
}

// Tagged is what a tagger says of one text.
type Tagged struct {
	Entities  []Entity // in the order of the text; those labelled O are left out
	Tokens    int
	Truncated int
}

// tagged is an Entity on the way: a token, a word or a span.
type tagged struct {
	label        string
	score        float32
	scores       []float32
	bytes, runes tokenizer.Span
	subword      bool
}

// Tag labels the tokens of each text and joins them.
func (p *Pipeline) Tag(ctx context.Context, texts []string, how Aggregation) ([]Tagged, error) {
	if p.config.Task != Tag || p.marks == nil {
		return nil, p.otherTask("tag")
	}
	switch how {
	case NoAggregation, Simple, First, Average, Max:
	default:
		return nil, zcerr.New(zcerr.Invalid, "there is no aggregation %q", how).WithHint("use one of %v", Aggregations)
	}
	enc, err := p.Tokenize(texts)
	if err != nil {
		return nil, err
	}
	out := make([]Tagged, len(texts))
	err = p.run(ctx, enc, func(b encoder.Batch, index []int) error {
		logits, err := p.marks(ctx, b)
		if err != nil {
			return err
		}
		v, n, err := rows(logits, len(p.config.Labels))
		if err != nil {
			return err
		}
		for k, i := range index {
			out[i] = Tagged{Tokens: len(enc[i].IDs), Truncated: enc[i].Truncated}
			for _, g := range p.aggregate(p.tagTokens(texts[i], enc[i], v[b.Starts[k]*n:b.Starts[k+1]*n], n), how) {
				if g.label != "O" {
					out[i].Entities = append(out[i].Entities, Entity{g.label, g.score, texts[i][g.bytes.Start:g.bytes.End], g.bytes, g.runes})
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// tagTokens gives the tokens of a text that are not special, with their probabilities.
func (p *Pipeline) tagTokens(text string, e *tokenizer.Encoding, logits []float32, labels int) []tagged {
	prefix := p.tok.ContinuingPrefix() != ""
	var out []tagged
	for i, id := range e.IDs {
		if e.SpecialMask[i] == 1 {
			continue
		}
		t := tagged{scores: logits[i*labels : (i+1)*labels], bytes: e.Bytes[i], runes: e.Offsets[i]}
		softmax(t.scores)
		switch {
		case id == p.unk:
		case prefix:
			t.subword = utf8.RuneCountInString(e.Tokens[i]) != t.runes.End-t.runes.Start
		default: // no space at the seam
			t.subword = t.bytes.Start > 0 && !strings.HasPrefix(text[t.bytes.Start:], " ") && text[t.bytes.Start-1] != ' '
		}
		out = append(out, t)
	}
	return out
}

func (p *Pipeline) aggregate(tokens []tagged, how Aggregation) []tagged {
	if how == NoAggregation || how == Simple {
		for i := range tokens {
			p.name(&tokens[i])
		}
		if how == NoAggregation {
			return tokens
		}
		return spans(tokens)
	}
	var words []tagged
	for from := 0; from < len(tokens); {
		to := from + 1
		for to < len(tokens) && tokens[to].subword {
			to++
		}
		words = append(words, p.word(tokens[from:to], how))
		from = to
	}
	return spans(words)
}

// name gives a token the label with the highest score.
func (p *Pipeline) name(t *tagged) {
	b := best(t.scores)
	t.label, t.score = p.config.Labels[b], t.scores[b]
}

// word decides for the tokens of a word.
func (p *Pipeline) word(tokens []tagged, how Aggregation) tagged {
	w := tokens[0]
	switch how {
	case Max:
		for _, t := range tokens {
			if t.scores[best(t.scores)] > w.scores[best(w.scores)] {
				w.scores = t.scores
			}
		}
	case Average:
		w.scores = make([]float32, len(w.scores))
		for c := range w.scores {
			sum := 0.0
			for _, t := range tokens {
				sum += float64(t.scores[c])
			}
			w.scores[c] = float32(sum / float64(len(tokens)))
		}
	}
	p.name(&w)
	last := tokens[len(tokens)-1]
	w.bytes = tokenizer.Span{Start: tokens[0].bytes.Start, End: last.bytes.End}
	w.runes = tokenizer.Span{Start: tokens[0].runes.Start, End: last.runes.End}
	return w
}

// spans joins neighbours of one label, until one begins anew with B-.
func spans(parts []tagged) []tagged {
	var out []tagged
	for from := 0; from < len(parts); {
		_, last := cutTag(parts[from].label)
		to := from + 1
		sum := float64(parts[from].score)
		for ; to < len(parts); to++ {
			begins, tag := cutTag(parts[to].label)
			if begins || tag != last {
				break
			}
			sum += float64(parts[to].score)
		}
		s := parts[from]
		if _, rest, ok := strings.Cut(s.label, "-"); ok {
			s.label = rest
		}
		s.score = float32(sum / float64(to-from))
		s.bytes.End, s.runes.End = parts[to-1].bytes.End, parts[to-1].runes.End
		out = append(out, s)
		from = to
	}
	return out
}

// cutTag is a label without B- or I-, and whether it was B-.
func cutTag(label string) (begins bool, tag string) {
	if tag, ok := strings.CutPrefix(label, "B-"); ok {
		return true, tag
	}
	return false, strings.TrimPrefix(label, "I-")
}
