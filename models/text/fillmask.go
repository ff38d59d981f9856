package text

import (
	"context"
	"slices"
	"sort"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Fill is a token for a mask.
type Fill struct {
	Token string // as text
	ID    int32
	Score float32
	Text  string // the whole text with it; where there are several masks, the others and the special tokens stay
}

// Filled is what a masked language model says of one text.
type Filled struct {
	Masks     [][]Fill // for each mask, the most probable token first
	Tokens    int
	Truncated int
}

// FillMask gives the topK most probable tokens for each mask of each text (0: 5). A text without a mask is an error.
func (p *Pipeline) FillMask(ctx context.Context, texts []string, topK int) ([]Filled, error) {
	head, ok := p.model.(maskHead)
	if p.config.Task != FillMask || !ok {
		return nil, p.otherTask("fill masks")
	}
	if topK == 0 {
		topK = 5
	}
	if topK < 1 {
		return nil, zcerr.New(zcerr.Invalid, "the %d most probable tokens are asked for", topK)
	}
	enc, err := p.Tokenize(texts)
	if err != nil {
		return nil, err
	}
	mask := p.mask
	if mask < 0 {
		return nil, zcerr.New(zcerr.Invalid, "the tokenizer has no mask token %q", p.config.MaskToken)
	}
	out := make([]Filled, len(texts))
	for i, e := range enc {
		if !slices.Contains(e.IDs, mask) {
			return nil, zcerr.New(zcerr.Invalid, "text %d has no %s", i, p.config.MaskToken)
		}
		out[i] = Filled{Tokens: len(e.IDs), Truncated: e.Truncated}
	}
	err = p.run(ctx, enc, func(b encoder.Batch, index []int) error {
		var at []int
		for i, id := range b.IDs {
			if id == mask {
				at = append(at, i)
			}
		}
		logits, err := head.MaskLogits(ctx, b, at)
		if err != nil {
			return err
		}
		v, n, err := rows(logits, 0)
		if err != nil {
			return err
		}
		for k, row := range at {
			text := sort.SearchInts(b.Starts, row+1) - 1
			i := index[text]
			fills, err := p.fills(v[k*n:(k+1)*n], enc[i], row-b.Starts[text], mask, topK)
			if err != nil {
				return err
			}
			out[i].Masks = append(out[i].Masks, fills)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// fills are the most probable tokens for the mask at a place.
func (p *Pipeline) fills(logits []float32, e *tokenizer.Encoding, at int, mask int32, topK int) ([]Fill, error) {
	softmax(logits)
	ids := make([]int32, len(logits))
	for i := range ids {
		ids[i] = int32(i)
	}
	sort.SliceStable(ids, func(a, b int) bool { return logits[ids[a]] > logits[ids[b]] })
	single := slices.Index(e.IDs, mask) == at && !slices.Contains(e.IDs[at+1:], mask)
	var out []Fill
	err := p.use(func(t *tokenizer.Tokenizer) error {
		for _, id := range ids[:min(topK, len(ids))] {
			whole := slices.Clone(e.IDs)
			whole[at] = id
			out = append(out, Fill{Token: t.Decode([]int32{id}, false), ID: id, Score: logits[id], Text: t.Decode(whole, single)})
		}
		return nil
	})
	return out, err
}
