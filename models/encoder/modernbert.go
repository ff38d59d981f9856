package encoder

import (
	"fmt"
	"math"
	"slices"

	"github.com/zcstore/zcstore/gpu"
)

// modernbert is ModernBERT: norms come before, positions turn queries and keys, and most layers see neighbours only. Source:
// arXiv 2412.13663.
var modernbert = &family{name: "modernbert", class: "ModernBert", prefix: "model.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: func() config {
		return &modernbertConfig{VocabSize: 50368, HiddenSize: 768, IntermediateSize: 1152, NumHiddenLayers: 22, NumAttentionHeads: 12,
			HiddenActivation: "gelu", MaxPositionEmbeddings: 8192, NormEps: 1e-5, GlobalRopeTheta: 160000, LocalRopeTheta: 10000,
			GlobalAttnEveryNLayers: 3, LocalAttention: 128, ClassifierPooling: "cls", ClassifierActivation: "gelu"}
	}}

type modernbertConfig struct {
	common
	VocabSize              int     `json:"vocab_size"`
	HiddenSize             int     `json:"hidden_size"`
	IntermediateSize       int     `json:"intermediate_size"`
	NumHiddenLayers        int     `json:"num_hidden_layers"`
	NumAttentionHeads      int     `json:"num_attention_heads"`
	HiddenActivation       string  `json:"hidden_activation"`
	MaxPositionEmbeddings  int     `json:"max_position_embeddings"`
	NormEps                float64 `json:"norm_eps"`
	NormBias               bool    `json:"norm_bias"`
	AttentionBias          bool    `json:"attention_bias"`
	MLPBias                bool    `json:"mlp_bias"`
	GlobalRopeTheta        float64 `json:"global_rope_theta"`
	LocalRopeTheta         float64 `json:"local_rope_theta"`
	GlobalAttnEveryNLayers int     `json:"global_attn_every_n_layers"`
	LocalAttention         int     `json:"local_attention"`
	ClassifierPooling      string  `json:"classifier_pooling"`
	ClassifierBias         bool    `json:"classifier_bias"`
	ClassifierActivation   string  `json:"classifier_activation"`
}

func (c *modernbertConfig) shared() *common { return &c.common }

func (c *modernbertConfig) check(k *checker) Sizes {
	k.size("vocab_size", c.VocabSize)
	k.size("hidden_size", c.HiddenSize)
	k.heads("num_attention_heads", c.NumAttentionHeads, "hidden_size", c.HiddenSize)
	if k.err == nil && c.HiddenSize/c.NumAttentionHeads%2 != 0 {
		k.refuse("num_attention_heads", c.NumAttentionHeads, fmt.Sprintf("heads of an even size, of hidden_size %d", c.HiddenSize))
	}
	k.size("intermediate_size", c.IntermediateSize)
	k.size("max_position_embeddings", c.MaxPositionEmbeddings)
	k.layers("num_hidden_layers", c.NumHiddenLayers)
	k.eps("norm_eps", c.NormEps)
	k.size("global_attn_every_n_layers", c.GlobalAttnEveryNLayers)
	k.size("local_attention", c.LocalAttention)
	if !(c.GlobalRopeTheta > 0) {
		k.refuse("global_rope_theta", c.GlobalRopeTheta, "a number over 0")
	}
	if c.LocalRopeTheta == 0 {
		c.LocalRopeTheta = c.GlobalRopeTheta
	}
	if !(c.LocalRopeTheta > 0) {
		k.refuse("local_rope_theta", c.LocalRopeTheta, "a number over 0")
	}
	if p := c.ClassifierPooling; p != "cls" && p != "mean" {
		k.refuse("classifier_pooling", p, "cls or mean")
	}
	k.act("classifier_activation", c.ClassifierActivation)
	return Sizes{Vocab: c.VocabSize, Hidden: c.HiddenSize, Embedding: c.HiddenSize, Layers: c.NumHiddenLayers, Heads: c.NumAttentionHeads,
		Intermediate: c.IntermediateSize, Positions: c.MaxPositionEmbeddings, MaxTokens: c.MaxPositionEmbeddings,
		Act: k.act("hidden_activation", c.HiddenActivation), Eps: c.NormEps, Pad: -1}
}

// modernNet is the encoder.
type modernNet struct {
	word   *gpu.Weight // [vocabulary, hidden size]
	norm   norm
	layers []modernLayer
	last   norm

	act    gpu.Act
	eps    float32
	heads  int
	window int
	theta  [2]float64 // of local layers, and of global ones
}

type modernLayer struct {
	attnNorm norm       // without a weight in the first layer: the embeddings are normalised already
	qkv      *gpu.Group // [3 * hidden size, hidden size]
	attn     *gpu.Group // [hidden size, hidden size]
	norm     norm
	up       *gpu.Group // [2 * intermediate size, hidden size]: values, and gates
	down     *gpu.Group // [hidden size, intermediate size]
	global   bool       // sees all tokens
}

func (c *modernbertConfig) norm(l *loader, name string) norm {
	n := norm{weight: l.weight(name+".weight", c.HiddenSize)}
	if c.NormBias {
		n.bias = l.weight(name+".bias", c.HiddenSize)
	}
	return n
}

func (c *modernbertConfig) load(l *loader) net {
	h, p := c.HiddenSize, l.prefix
	n := &modernNet{act: l.sizes.Act, eps: float32(c.NormEps), heads: c.NumAttentionHeads, window: max(c.LocalAttention/2, 1), theta: [2]float64{c.LocalRopeTheta, c.GlobalRopeTheta}}
	n.word = l.weight(p+"embeddings.tok_embeddings.weight", c.VocabSize, h)
	n.norm = c.norm(l, p+"embeddings.norm")
	for i := range c.NumHiddenLayers {
		p := fmt.Sprintf("%slayers.%d.", p, i)
		ly := modernLayer{
			qkv:    l.join(3*h, h, c.AttentionBias, p+"attn.Wqkv"),
			attn:   l.join(h, h, c.AttentionBias, p+"attn.Wo"),
			norm:   c.norm(l, p+"mlp_norm"),
			up:     l.join(2*c.IntermediateSize, h, c.MLPBias, p+"mlp.Wi"),
			down:   l.join(h, c.IntermediateSize, c.MLPBias, p+"mlp.Wo"),
			global: i%c.GlobalAttnEveryNLayers == 0,
		}
		if i > 0 {
			ly.attnNorm = c.norm(l, p+"attn_norm")
		}
		n.layers = append(n.layers, ly)
	}
	n.last = c.norm(l, p+"final_norm")
	return n
}

func (c *modernbertConfig) head(l *loader, t Task) (head, pooler *top) {
	if t == Base {
		return nil, nil
	}
	h := c.HiddenSize
	first := step{linear: l.join(h, h, c.ClassifierBias, "head.dense"), act: activations[c.ClassifierActivation], norm: c.norm(l, "head.norm"), eps: float32(c.NormEps)}
	head = &top{steps: []step{first}}
	switch t {
	case Classify:
		head.mean = c.ClassifierPooling == "mean"
		head.steps = append(head.steps, l.step("classifier", c.labels(), h, gpu.None))
	case Tag:
		head.steps = append(head.steps, l.step("classifier", c.labels(), h, gpu.None))
	case Answer:
		head.steps = append(head.steps, l.step("classifier", 2, h, gpu.None))
	case FillMask:
		head.steps = append(head.steps, l.decoder(l.prefix+"embeddings.tok_embeddings.weight", "decoder", "decoder.bias", c.VocabSize, h))
	}
	return head, nil
}

func (n *modernNet) embed(p *pass) {
	s := p.s
	n.turns(p)
	mark := s.Mark()
	ids := s.I32(len(p.b.IDs))
	s.UploadInts(ids, p.b.IDs)
	s.Gather(p.h, append(p.tables[:0], gpu.Lookup{Table: n.word, IDs: ids}))
	s.LayerNorm(p.h, p.h, gpu.Matrix{}, n.norm.weight, n.norm.bias, n.eps)
	s.Release(mark)
}

// turns uploads the angles by which positions turn queries and keys.
func (n *modernNet) turns(p *pass) {
	half := p.m.sizes.Hidden / n.heads / 2
	positions := p.positions()
	for k, theta := range n.theta {
		cos, sin := p.near.angles[2*k][:0], p.near.angles[2*k+1][:0]
		cos, sin = slices.Grow(cos, len(positions)*half), slices.Grow(sin, len(positions)*half)
		for _, at := range positions {
			for i := range half {
				turn := float64(float32(at) * float32(1/math.Pow(theta, float64(2*i)/float64(2*half))))
				cos, sin = append(cos, float32(math.Cos(turn))), append(sin, float32(math.Sin(turn)))
			}
		}
		p.near.angles[2*k], p.near.angles[2*k+1] = cos, sin
		p.near.cos[k], p.near.sin[k] = p.s.F32(len(positions), half), p.s.F32(len(positions), half)
		p.s.Upload(p.near.cos[k], cos)
		p.s.Upload(p.near.sin[k], sin)
	}
}

func (n *modernNet) layer(p *pass, i int, t part) {
	s, l, h := p.s, &n.layers[i], p.states(t)
	hidden, sort := h.Cols, 0
	a := gpu.Attention{Heads: n.heads, Seqs: t.seqs, Window: n.window}
	if l.global {
		a.Window, sort = 0, 1
	}
	mark := s.Mark()
	x := h
	if l.attnNorm.weight != nil {
		x = s.F32(h.Rows, hidden)
		s.LayerNorm(x, h, gpu.Matrix{}, l.attnNorm.weight, l.attnNorm.bias, n.eps)
	}
	qkv, seen := s.F32(h.Rows, 3*hidden), s.F32(h.Rows, hidden)
	s.Linear(qkv, x, l.qkv, gpu.Epilogue{})
	q, k, v := qkv.Columns(0, hidden), qkv.Columns(hidden, hidden), qkv.Columns(2*hidden, hidden)
	cos, sin := p.near.cos[sort].Slice(t.from, h.Rows), p.near.sin[sort].Slice(t.from, h.Rows)
	s.Rotate(q, q, cos, sin, n.heads)
	s.Rotate(k, k, cos, sin, n.heads)
	s.Attention(seen, q, k, v, a)
	s.Linear(h, seen, l.attn, gpu.Epilogue{Residual: h})
	s.Release(mark)

	x = s.F32(h.Rows, hidden)
	s.LayerNorm(x, h, gpu.Matrix{}, l.norm.weight, l.norm.bias, n.eps)
	wide := s.F32(h.Rows, l.up.N())
	s.Linear(wide, x, l.up, gpu.Epilogue{})
	values, gates := wide.Columns(0, wide.Cols/2), wide.Columns(wide.Cols/2, wide.Cols/2)
	s.Act(values, values, n.act)
	s.Mul(values, values, gates)
	s.Linear(h, values, l.down, gpu.Epilogue{Residual: h})
	s.Release(mark)
}

func (n *modernNet) finish(p *pass) {
	p.s.LayerNorm(p.h, p.h, gpu.Matrix{}, n.last.weight, n.last.bias, n.eps)
}
