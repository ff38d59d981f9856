package encoder

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// deberta is DeBERTa in its second and third version: what a token is and how far others are from it meet in separate
// products. Source: arXiv 2006.03654, 2111.09543.
var deberta = &family{name: "deberta-v2", class: "DebertaV2", prefix: "deberta.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: func() config {
		c := &debertaConfig{bertKeys: bertDefaults(), MaxRelativePositions: -1, PositionBuckets: -1, PositionBiasedInput: true, ConvAct: "tanh", ConvGroups: 1,
			PoolerHiddenAct: "gelu", Legacy: true}
		c.VocabSize, c.HiddenSize, c.NumHiddenLayers, c.NumAttentionHeads, c.IntermediateSize, c.TypeVocabSize, c.LayerNormEps = 128100, 1536, 24, 24, 6144, 0, 1e-7
		return c
	}}

type debertaConfig struct {
	bertKeys
	RelativeAttention    bool     `json:"relative_attention"`
	MaxRelativePositions int      `json:"max_relative_positions"`
	PositionBuckets      int      `json:"position_buckets"`
	PositionBiasedInput  bool     `json:"position_biased_input"`
	PosAttType           attTypes `json:"pos_att_type"`
	ShareAttKey          bool     `json:"share_att_key"`
	NormRelEbd           string   `json:"norm_rel_ebd"`
	ConvKernelSize       int      `json:"conv_kernel_size"`
	ConvAct              string   `json:"conv_act"`
	ConvGroups           int      `json:"conv_groups"`
	PoolerHiddenAct      string   `json:"pooler_hidden_act"`
	PoolerHiddenSize     int      `json:"pooler_hidden_size"`
	Legacy               bool     `json:"legacy"`
}

// attTypes are the parts of disentangled attention, as a list or joined by bars.
type attTypes []string

// UnmarshalJSON reads either.
func (a *attTypes) UnmarshalJSON(b []byte) error {
	var joined string
	if json.Unmarshal(b, &joined) == nil {
		*a = strings.Split(strings.ToLower(strings.TrimSpace(joined)), "|")
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

func (a attTypes) has(t string) bool {
	for _, x := range a {
		if x == t {
			return true
		}
	}
	return false
}

func (c *debertaConfig) check(k *checker) Sizes {
	types := c.TypeVocabSize
	c.TypeVocabSize = max(types, 1)
	z := c.bertKeys.check(k)
	if c.TypeVocabSize = types; types < 0 {
		k.refuse("type_vocab_size", types, "a number from 0 on")
	}
	z.Types = types
	if c.EmbeddingSize != 0 {
		k.size("embedding_size", c.EmbeddingSize)
		z.Embedding = c.EmbeddingSize
	}
	if c.RelativeAttention {
		if c.MaxRelativePositions < 1 {
			c.MaxRelativePositions = c.MaxPositionEmbeddings
		}
		k.size("max_relative_positions", c.MaxRelativePositions)
		if c.PositionBuckets > 0 && c.PositionBuckets < 4 {
			k.refuse("position_buckets", c.PositionBuckets, "a number from 4 on, or -1 for none")
		}
		k.size("position_buckets", c.span())
		for _, t := range c.PosAttType {
			if t != "c2p" && t != "p2c" {
				k.refuse("pos_att_type", t, "c2p and p2c")
			}
		}
		if n := c.NormRelEbd; n != "" && n != "none" && n != "layer_norm" {
			k.refuse("norm_rel_ebd", n, "none or layer_norm")
		}
	}
	if c.ConvKernelSize < 0 || c.ConvKernelSize > 1<<10 || c.ConvKernelSize > 0 && c.ConvKernelSize%2 == 0 {
		k.refuse("conv_kernel_size", c.ConvKernelSize, "0 for none, or an odd number")
	}
	if c.ConvKernelSize > 0 {
		k.act("conv_act", c.ConvAct)
		if c.ConvGroups != 1 {
			k.refuse("conv_groups", c.ConvGroups, "1")
		}
	}
	k.act("pooler_hidden_act", c.PoolerHiddenAct)
	if c.PoolerHiddenSize == 0 {
		c.PoolerHiddenSize = c.HiddenSize
	}
	if c.PoolerHiddenSize != c.HiddenSize {
		k.refuse("pooler_hidden_size", c.PoolerHiddenSize, fmt.Sprintf("hidden_size %d", c.HiddenSize))
	}
	return z
}

// span is how many sorts of distance there are on either side.
func (c *debertaConfig) span() int {
	if c.PositionBuckets > 0 {
		return c.PositionBuckets
	}
	return c.MaxRelativePositions
}

func (c *debertaConfig) load(l *loader) net {
	t := l.embeddings(c.TypeVocabSize > 0, c.PositionBiasedInput)
	if e := l.sizes.Embedding; e != c.HiddenSize {
		t.project = l.join(c.HiddenSize, e, false, l.prefix+"embeddings.embed_proj")
	}
	names := bertLayer
	names.query, names.key, names.value = "attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"
	encoder := l.prefix + "encoder."
	var parts []string // of a layer, that keys and queries of distances are made with
	if c.RelativeAttention {
		r := &relative{buckets: c.PositionBuckets, most: c.MaxRelativePositions, span: c.span()}
		r.table = l.weight(encoder+"rel_embeddings.weight", 2*r.span, c.HiddenSize)
		if c.NormRelEbd == "layer_norm" {
			r.norm, r.eps = l.norm(encoder+"LayerNorm", c.HiddenSize), float32(c.LayerNormEps)
		}
		own := [2]string{"attention.self.pos_key_proj", "attention.self.pos_query_proj"}
		if c.ShareAttKey {
			own = [2]string{names.key, names.query}
		}
		if r.keys = c.PosAttType.has("c2p"); r.keys {
			parts = append(parts, own[0])
		}
		if r.queries = c.PosAttType.has("p2c"); r.queries {
			parts = append(parts, own[1])
		}
		r.scale = float32(1 / math.Sqrt(float64(c.HiddenSize/c.NumAttentionHeads*(1+len(parts)))))
		t.relative = r
	}
	for i := range c.NumHiddenLayers {
		p := fmt.Sprintf("%slayer.%d.", encoder, i)
		ly := l.layer(p, names)
		if len(parts) > 0 {
			own := make([]string, len(parts))
			for k, part := range parts {
				own[k] = p + part
			}
			ly.far = l.group(c.HiddenSize, c.HiddenSize, own...)
		}
		t.layers = append(t.layers, ly)
	}
	if c.ConvKernelSize > 0 {
		t.conv = l.convolution(encoder+"conv.", c.HiddenSize, c.ConvKernelSize, activations[c.ConvAct], float32(c.LayerNormEps))
	}
	return t
}

func (c *debertaConfig) head(l *loader, t Task) (head, pooler *top) {
	switch t {
	case Classify:
		head = &top{steps: []step{l.step("pooler.dense", c.HiddenSize, c.HiddenSize, activations[c.PoolerHiddenAct]), l.step("classifier", c.labels(), c.HiddenSize, gpu.None)}}
	case Tag, Answer:
		head = l.overTokens(t, c.labels())
	case FillMask:
		if c.Legacy {
			return l.languageModel("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder", "cls.predictions.bias", l.sizes.Embedding), nil
		}
		head = l.languageModel("lm_predictions.lm_head.dense", "lm_predictions.lm_head.LayerNorm", "lm_predictions.lm_head.decoder", "lm_predictions.lm_head.bias", l.sizes.Embedding)
	}
	return head, nil
}

// relative is what a model has for the distance of two tokens, query less key: states, of which each layer makes keys and
// queries.
type relative struct {
	table         *gpu.Weight // [2*span, hidden size]
	norm          norm
	eps           float32
	keys, queries bool
	scale         float32

	buckets, most, span int
}

// sort is the number of a distance: near ones have one each, those behind share them by their logarithm.
func (r *relative) sort(distance int) int {
	if r.buckets > 0 {
		distance = r.logarithmic(distance)
	}
	return min(max(distance+r.span, 0), 2*r.span-1)
}

func (r *relative) logarithmic(distance int) int {
	mid := r.buckets / 2
	n := max(distance, -distance)
	if n <= mid {
		return distance
	}
	far := float32(math.Log(float64(float32(n)/float32(mid)))) / float32(math.Log(float64(float32(r.most-1)/float32(mid)))) * float32(mid-1)
	at := int(math.Ceil(float64(far))) + mid
	if distance < 0 {
		return -at
	}
	return at
}

// begin launches the states of distances, for all layers.
func (r *relative) begin(p *pass) {
	if p.seqs.MaxLen == 0 {
		return
	}
	s, n := p.s, &p.near
	numbers := n.number(p.seqs.MaxLen, r.sort)
	n.ids = s.I32(len(numbers))
	s.UploadInts(n.ids, numbers)
	for len(n.all) < 2*r.span {
		n.all = append(n.all, int32(len(n.all)))
	}
	all := s.I32(2 * r.span)
	s.UploadInts(all, n.all[:2*r.span])
	n.states = s.F32(2*r.span, p.m.sizes.Hidden)
	s.Gather(n.states, []gpu.Lookup{{Table: r.table, IDs: all}})
	if r.norm.weight != nil {
		s.LayerNorm(n.states, n.states, gpu.Matrix{}, r.norm.weight, r.norm.bias, r.eps)
	}
}

// attention makes keys and queries of distances for a layer.
func (r *relative) attention(p *pass, l *layer, t part, a *gpu.Attention) {
	a.Scale = r.scale
	if l.far == nil || t.seqs.MaxLen == 0 {
		return
	}
	n, hidden := &p.near, p.m.sizes.Hidden
	far := p.s.F32(n.states.Rows, l.far.N())
	p.s.Linear(far, n.states, l.far, gpu.Epilogue{})
	a.Relative.IDs = n.ids.Columns(n.longest-t.seqs.MaxLen, 2*t.seqs.MaxLen-1)
	if r.keys {
		a.Relative.Keys = far.Columns(0, hidden)
	}
	if r.queries {
		a.Relative.Queries = far.Columns(far.Cols-hidden, hidden)
	}
}

// convolution is y = norm(x + act(W * e)) behind the first layer: e are the states before it, of a token and its neighbours,
// and zero where a token is hidden.
type convolution struct {
	linear *gpu.Group // [hidden size, hidden size * kernel]
	kernel int
	act    gpu.Act
	norm   norm
	eps    float32
}

func (l *loader) convolution(p string, size, kernel int, act gpu.Act, eps float32) *convolution {
	c := &convolution{kernel: kernel, act: act, norm: l.norm(p+"LayerNorm", size), eps: eps}
	v, _, ok := l.tensor(p+"conv.weight", tensor.Shape{size, size, kernel})
	bias := l.weight(p+"conv.bias", size)
	if !ok || bias == nil {
		return c // reported already
	}
	v.Shape = tensor.Shape{size, size * kernel} // as it lies
	if w := l.imported(p+"conv.weight", v, tensor.Linear); w != nil {
		c.linear = l.grouped([]*gpu.Weight{w}, []*gpu.Weight{bias}, p+"conv")
	}
	return c
}

func (c *convolution) run(p *pass, t part) {
	s, h := p.s, p.states(t)
	mark := s.Mark()
	around, y := s.F32(h.Rows, h.Cols*c.kernel), s.F32(h.Rows, h.Cols)
	s.Unfold(around, p.near.embedded.Slice(t.from, h.Rows), c.kernel, t.seqs)
	s.Linear(y, around, c.linear, gpu.Epilogue{Act: c.act})
	s.LayerNorm(h, y, h, c.norm.weight, c.norm.bias, c.eps)
	s.Release(mark)
}
