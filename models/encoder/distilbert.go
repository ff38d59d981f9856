package encoder

import (
	"fmt"

	"github.com/zcstore/zcstore/gpu"
)

// distilbert is DistilBERT: BERT without token types and without a pooler. Source: arXiv 1910.01108.
var distilbert = &family{name: "distilbert", class: "DistilBert", prefix: "distilbert.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: func() config {
		return &distilbertConfig{VocabSize: 30522, Dim: 768, NLayers: 6, NHeads: 12, HiddenDim: 3072, Activation: "gelu", MaxPositionEmbeddings: 512}
	}}

type distilbertConfig struct {
	common
	VocabSize             int    `json:"vocab_size"`
	Dim                   int    `json:"dim"`
	NLayers               int    `json:"n_layers"`
	NHeads                int    `json:"n_heads"`
	HiddenDim             int    `json:"hidden_dim"`
	Activation            string `json:"activation"`
	MaxPositionEmbeddings int    `json:"max_position_embeddings"`
}

func (c *distilbertConfig) shared() *common { return &c.common }

func (c *distilbertConfig) check(k *checker) Sizes {
	k.size("vocab_size", c.VocabSize)
	k.size("dim", c.Dim)
	k.heads("n_heads", c.NHeads, "dim", c.Dim)
	k.size("hidden_dim", c.HiddenDim)
	k.size("max_position_embeddings", c.MaxPositionEmbeddings)
	k.layers("n_layers", c.NLayers)
	return Sizes{Vocab: c.VocabSize, Hidden: c.Dim, Embedding: c.Dim, Layers: c.NLayers, Heads: c.NHeads, Intermediate: c.HiddenDim,
		Positions: c.MaxPositionEmbeddings, MaxTokens: c.MaxPositionEmbeddings, Act: k.act("activation", c.Activation), Eps: 1e-12, Pad: -1}
}

func (c *distilbertConfig) load(l *loader) net {
	t := l.embeddings(false, true)
	names := layerNames{"attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"}
	for i := range c.NLayers {
		t.layers = append(t.layers, l.layer(fmt.Sprintf("%stransformer.layer.%d.", l.prefix, i), names))
	}
	return t
}

func (c *distilbertConfig) head(l *loader, t Task) (head, pooler *top) {
	switch t {
	case Classify:
		head = &top{steps: []step{l.step("pre_classifier", c.Dim, c.Dim, gpu.ReLU), l.step("classifier", c.labels(), c.Dim, gpu.None)}}
	case Tag, Answer:
		head = l.overTokens(t, c.labels())
	case FillMask:
		head = l.languageModel("vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector.bias", c.Dim)
	}
	return head, nil
}
