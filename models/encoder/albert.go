package encoder

import (
	"fmt"

	"github.com/zcstore/zcstore/gpu"
)

// albert is ALBERT: a few layers that come again and again, on narrow embeddings. Source: arXiv 1909.11942.
var albert = &family{name: "albert", class: "Albert", prefix: "albert.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: func() config {
		c := &albertConfig{bertKeys: bertDefaults(), NumHiddenGroups: 1, InnerGroupNum: 1}
		c.VocabSize, c.EmbeddingSize, c.HiddenSize, c.NumAttentionHeads, c.IntermediateSize, c.HiddenAct = 30000, 128, 4096, 64, 16384, "gelu_new"
		return c
	}}

type albertConfig struct {
	bertKeys
	NumHiddenGroups int `json:"num_hidden_groups"`
	InnerGroupNum   int `json:"inner_group_num"` // layers of a group, which always come together
}

func (c *albertConfig) check(k *checker) Sizes {
	z := c.bertKeys.check(k)
	k.size("embedding_size", c.EmbeddingSize)
	k.size("num_hidden_groups", c.NumHiddenGroups)
	k.size("inner_group_num", c.InnerGroupNum)
	if c.NumHiddenGroups > c.NumHiddenLayers {
		k.refuse("num_hidden_groups", c.NumHiddenGroups, fmt.Sprintf("at most num_hidden_layers %d", c.NumHiddenLayers))
	}
	k.layers("inner_group_num", c.InnerGroupNum)
	z.Embedding = c.EmbeddingSize
	return z
}

// albertNet is a transformer whose every layer is a group of layers.
type albertNet struct {
	*transformer
	inner int
}

func (n albertNet) layer(p *pass, i int, t part) {
	for k := range n.inner {
		n.transformer.layer(p, i*n.inner+k, t)
	}
}

func (c *albertConfig) load(l *loader) net {
	n := albertNet{l.embeddings(true, true), c.InnerGroupNum}
	n.project = l.group(c.HiddenSize, c.EmbeddingSize, l.prefix+"encoder.embedding_hidden_mapping_in")
	names := layerNames{"attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm", "ffn", "ffn_output", "full_layer_layer_norm"}
	stored := make([]*layer, 0, c.NumHiddenGroups*c.InnerGroupNum)
	for g := range c.NumHiddenGroups {
		for k := range c.InnerGroupNum {
			stored = append(stored, l.layer(fmt.Sprintf("%sencoder.albert_layer_groups.%d.albert_layers.%d.", l.prefix, g, k), names))
		}
	}
	for i := range c.NumHiddenLayers {
		g := i * c.NumHiddenGroups / c.NumHiddenLayers
		n.layers = append(n.layers, stored[g*n.inner:(g+1)*n.inner]...)
	}
	return n
}

func (c *albertConfig) head(l *loader, t Task) (head, pooler *top) {
	if t == Classify || l.have[l.prefix+"pooler.weight"] {
		pooler = &top{steps: []step{l.step(l.prefix+"pooler", c.HiddenSize, c.HiddenSize, gpu.Tanh)}}
	}
	switch t {
	case Classify:
		head = &top{steps: append(pooler.steps[:1:1], l.step("classifier", c.labels(), c.HiddenSize, gpu.None))}
	case Tag, Answer:
		head = l.overTokens(t, c.labels())
	case FillMask:
		head = l.languageModel("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "predictions.bias", c.EmbeddingSize)
	}
	return head, pooler
}
