package text

import (
	"context"

	"github.com/zcstore/zcstore/internal/join"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
)

// forward is a pass through the encoder and perhaps a head.
type forward func(context.Context, encoder.Batch) (*nn.Tensor, error)

// passes are the encoder's forward passes, each of which runs the texts together of all who call it at a time. What a text gets
// does not depend on the others, and a small batch keeps the kernels less busy than two of them in one.
type passes struct {
	states forward // [tokens, hidden]
	means  forward // [texts, hidden], of length 1; nil: the model has no such pass
	scores forward // [texts, labels]; nil: the model has no such head
	marks  forward // [tokens, labels]; nil: the model has no such head
}

func passesOf(e Encoder) passes {
	if _, ok := e.(static); ok {
		return passes{states: e.Encode} // a lookup
	}
	p := passes{states: together(e.Encode, true)}
	if m, ok := e.(*encoder.Model); ok {
		p.means = together(func(ctx context.Context, b encoder.Batch) (*nn.Tensor, error) {
			dim := m.Sizes().Hidden
			out := make([]float32, b.Len()*dim)
			if err := m.Embed(ctx, out, b); err != nil {
				return nil, err
			}
			return nn.New([]int{b.Len(), dim}, out)
		}, false)
	}
	if h, ok := e.(sequenceHead); ok {
		p.scores = together(h.Classify, false)
	}
	if h, ok := e.(tokenHead); ok {
		p.marks = together(h.TokenLogits, true)
	}
	return p
}

// one is a text on its way into a pass, span its rows of what comes out.
type (
	one  struct{ ids, types []int32 }
	span struct {
		t        *nn.Tensor
		from, to int
	}
)

// together is a pass that takes the texts of all callers that wait for it, up to maxTokens at a time.
func together(pass forward, perToken bool) forward {
	g := &join.Group[one, span]{Most: maxTokens, Size: func(o one) int { return len(o.ids) }}
	g.Run = func(ctx context.Context, texts []one) ([]span, error) {
		b := encoder.Batch{Starts: make([]int, 1, len(texts)+1)}
		typed := false
		for _, o := range texts {
			b.IDs = append(b.IDs, o.ids...)
			b.Starts = append(b.Starts, len(b.IDs))
			typed = typed || o.types != nil
		}
		for i := 0; typed && i < len(texts); i++ {
			if b.TypeIDs = append(b.TypeIDs, texts[i].types...); texts[i].types == nil {
				b.TypeIDs = append(b.TypeIDs, make([]int32, len(texts[i].ids))...)
			}
		}
		t, err := pass(ctx, b)
		if err != nil {
			return nil, err
		}
		out := make([]span, len(texts))
		for i := range out {
			out[i] = span{t, i, i + 1}
			if perToken {
				out[i] = span{t, b.Starts[i], b.Starts[i+1]}
			}
		}
		return out, nil
	}
	return func(ctx context.Context, b encoder.Batch) (*nn.Tensor, error) {
		if b.Positions != nil || b.Mask != nil || b.Len() == 0 {
			return pass(ctx, b)
		}
		texts := make([]one, b.Len())
		for i := range texts {
			texts[i].ids = b.IDs[b.Starts[i]:b.Starts[i+1]]
			if b.TypeIDs != nil {
				texts[i].types = b.TypeIDs[b.Starts[i]:b.Starts[i+1]]
			}
		}
		spans, err := g.Do(ctx, texts)
		if err != nil {
			return nil, err
		}
		return whole(spans)
	}
}

// whole is the rows of a caller as one tensor: the very one that they are all of, or a copy.
func whole(spans []span) (*nn.Tensor, error) {
	var runs []span // with neighbours joined
	for _, s := range spans {
		if n := len(runs) - 1; n >= 0 && runs[n].t == s.t && runs[n].to == s.from {
			runs[n].to = s.to
		} else {
			runs = append(runs, s)
		}
	}
	if len(runs) == 1 {
		return runs[0].rows()
	}
	var out []float32
	rows, cols := 0, runs[0].t.Shape()[1]
	for _, s := range runs {
		part, err := s.rows()
		if err != nil {
			return nil, err
		}
		v, err := part.Float32s()
		if err != nil {
			return nil, err
		}
		out = append(out, v...)
		rows += s.to - s.from
	}
	return nn.New([]int{rows, cols}, out)
}

func (s span) rows() (*nn.Tensor, error) {
	if s.from == 0 && s.to == s.t.Shape()[0] {
		return s.t, nil
	}
	index := make([]int, s.to-s.from)
	for i := range index {
		index[i] = s.from + i
	}
	return s.t.Pick(index)
}
