package text

import (
	"context"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Classification is what a classifier says of one text.
type Classification struct {
	Label     string    // the one with the highest score
	Score     float32   // its score: a probability, or the value of a regression
	Scores    []float32 // of every label, in the order of Labels
	Tokens    int
	Truncated int // tokens that were cut off because the text was too long
}

// Classify scores the labels of each text, in order: probabilities that sum to 1; or, where problem_type says that several
// labels may hold, one probability for each; or the values themselves for a regression.
func (p *Pipeline) Classify(ctx context.Context, texts []string) ([]Classification, error) {
	return p.classify(ctx, len(texts), func() ([]*tokenizer.Encoding, error) { return p.Tokenize(texts) })
}

// ClassifyPairs is Classify for pairs, such as premise and hypothesis.
func (p *Pipeline) ClassifyPairs(ctx context.Context, pairs [][2]string) ([]Classification, error) {
	return p.classify(ctx, len(pairs), func() ([]*tokenizer.Encoding, error) { return p.TokenizePairs(pairs) })
}

func (p *Pipeline) classify(ctx context.Context, n int, tokenize func() ([]*tokenizer.Encoding, error)) ([]Classification, error) {
	out := make([]Classification, n)
	err := p.sequences(ctx, "classify", tokenize, func(i int, row []float32, e *tokenizer.Encoding) {
		p.score(row)
		b := best(row)
		out[i] = Classification{Label: p.config.Labels[b], Score: row[b], Scores: row, Tokens: len(e.IDs), Truncated: e.Truncated}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// score makes scores of logits, as problem_type says; without it, one label is a yes or no, and of several one holds.
func (p *Pipeline) score(row []float32) {
	switch kind := p.config.ProblemType; {
	case kind == regression:
	case kind == multiLabel || len(row) == 1:
		for i := range row {
			row[i] = sigmoid(row[i])
		}
	default:
		softmax(row)
	}
}

// sequences calls each with the logits of a head over whole texts.
func (p *Pipeline) sequences(ctx context.Context, what string, tokenize func() ([]*tokenizer.Encoding, error), each func(i int, row []float32, e *tokenizer.Encoding)) error {
	if t := p.config.Task; t != Classify && t != Rerank || p.scores == nil {
		return p.otherTask(what)
	}
	enc, err := tokenize()
	if err != nil {
		return err
	}
	return p.run(ctx, enc, func(b encoder.Batch, index []int) error {
		logits, err := p.scores(ctx, b)
		if err != nil {
			return err
		}
		v, n, err := rows(logits, len(p.config.Labels))
		if err != nil {
			return err
		}
		for k, i := range index {
			each(i, v[k*n:(k+1)*n:(k+1)*n], enc[i])
		}
		return nil
	})
}

// Relevance is how well a text answers a query.
type Relevance struct {
	Score     float32
	Tokens    int // of query and text
	Truncated int
}

// Rerank scores each text against a query, in order, by a cross-encoder, with the activation that its config names, else a
// sigmoid.
func (p *Pipeline) Rerank(ctx context.Context, query string, texts []string) ([]Relevance, error) {
	if n := len(p.config.Labels); n != 1 && (p.config.Task == Classify || p.config.Task == Rerank) {
		return nil, zcerr.New(zcerr.Invalid, "the model has %d labels, a cross-encoder that reranks has one", n)
	}
	pairs := make([][2]string, len(texts))
	for i, t := range texts {
		pairs[i] = [2]string{query, t}
	}
	out := make([]Relevance, len(texts))
	tokenize := func() ([]*tokenizer.Encoding, error) { return p.TokenizePairs(pairs) }
	err := p.sequences(ctx, "rerank", tokenize, func(i int, row []float32, e *tokenizer.Encoding) {
		if p.config.Activation != identityActivation {
			row[0] = sigmoid(row[0])
		}
		out[i] = Relevance{Score: row[0], Tokens: len(e.IDs), Truncated: e.Truncated}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
