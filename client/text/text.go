// Package text opens stored text pipelines.
//
//	c, err := client.Dial(ctx, client.Options{})
//	p, err := text.Open(ctx, c, "minilm")
//	vectors, err := p.Embed(ctx, []string{"one copy of the weights"})
//	p.Close()
package text

import (
	"context"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Pipeline is a stored text pipeline in use: its weights are the shared pages. It is safe for many goroutines, Close included.
type Pipeline struct {
	*text.Pipeline
	model *client.Model
}

// Open attaches a text pipeline and rebuilds it. Errors: as for client.Attach; Invalid when what is stored is something else.
func Open(ctx context.Context, c *client.Client, ref string, opts ...client.AttachOption) (*Pipeline, error) {
	m, err := c.Attach(ctx, ref, append([]client.AttachOption{client.Tokenizers()}, opts...)...)
	if err != nil {
		return nil, err
	}
	p, err := open(m)
	if err == nil {
		return &Pipeline{Pipeline: p, model: m}, nil
	}
	_ = m.Close()
	return nil, err
}

func open(m *client.Model) (*text.Pipeline, error) {
	what := ""
	err := m.Read(func() error { what = m.Table().Root().Impl(); return nil })
	if err != nil {
		return nil, err
	}
	if what == text.Kind {
		mod, err := pipeline.Build(m, pipeline.LoadOptions{})
		if err != nil {
			return nil, err
		}
		return mod.(*text.Pipeline), nil
	}
	if what == "" {
		what = "struct"
	}
	return nil, zcerr.Wrap("open", m.Ref(), zcerr.New(zcerr.Invalid, "what is stored is of kind %s, not a text pipeline", what).WithHint("zcctl show %s", m.Ref()))
}

// Stored is the attached version: its reference, digest and segments.
func (p *Pipeline) Stored() *client.Model { return p.model }

// Close releases the lease and unmaps the weights. It waits for the batches that are computing; the rest of their calls, and
// calls that come later, are errors of kind Canceled.
func (p *Pipeline) Close() error { return p.model.Close() }
