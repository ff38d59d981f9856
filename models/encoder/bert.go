package encoder

import (
	"fmt"

	"github.com/zcstore/zcstore/gpu"
)

// bert is BERT. Source: arXiv 1810.04805.
var bert = &family{name: "bert", class: "Bert", prefix: "bert.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: func() config { return &bertConfig{bertDefaults()} }}

// bertKeys are the keys of config.json in BERT, RoBERTa, ELECTRA and MPNet.
type bertKeys struct {
	common
	VocabSize             int     `json:"vocab_size"`
	HiddenSize            int     `json:"hidden_size"`
	EmbeddingSize         int     `json:"embedding_size"` // ELECTRA, ALBERT
	NumHiddenLayers       int     `json:"num_hidden_layers"`
	NumAttentionHeads     int     `json:"num_attention_heads"`
	IntermediateSize      int     `json:"intermediate_size"`
	HiddenAct             string  `json:"hidden_act"`
	MaxPositionEmbeddings int     `json:"max_position_embeddings"`
	TypeVocabSize         int     `json:"type_vocab_size"`
	LayerNormEps          float64 `json:"layer_norm_eps"`
	PadTokenID            int     `json:"pad_token_id"`
}

func bertDefaults() bertKeys {
	return bertKeys{VocabSize: 30522, HiddenSize: 768, NumHiddenLayers: 12, NumAttentionHeads: 12, IntermediateSize: 3072,
		HiddenAct: "gelu", MaxPositionEmbeddings: 512, TypeVocabSize: 2, LayerNormEps: 1e-12}
}

func (c *bertKeys) shared() *common { return &c.common }

// check settles the sizes of a family that counts positions from 0.
func (c *bertKeys) check(k *checker) Sizes {
	k.size("vocab_size", c.VocabSize)
	k.size("hidden_size", c.HiddenSize)
	k.heads("num_attention_heads", c.NumAttentionHeads, "hidden_size", c.HiddenSize)
	k.size("intermediate_size", c.IntermediateSize)
	k.size("max_position_embeddings", c.MaxPositionEmbeddings)
	k.size("type_vocab_size", c.TypeVocabSize)
	k.layers("num_hidden_layers", c.NumHiddenLayers)
	k.eps("layer_norm_eps", c.LayerNormEps)
	return Sizes{Vocab: c.VocabSize, Hidden: c.HiddenSize, Embedding: c.HiddenSize, Layers: c.NumHiddenLayers, Heads: c.NumAttentionHeads,
		Intermediate: c.IntermediateSize, Positions: c.MaxPositionEmbeddings, MaxTokens: c.MaxPositionEmbeddings, Types: c.TypeVocabSize,
		Act: k.act("hidden_act", c.HiddenAct), Eps: c.LayerNormEps, Pad: -1}
}

// checkPadded settles the sizes of a family whose positions begin behind that of padding.
func (c *bertKeys) checkPadded(k *checker) Sizes {
	z := c.check(k)
	z.Pad = c.PadTokenID
	z.MaxTokens = z.Positions - z.Pad - 1
	if z.Pad < 0 || z.MaxTokens < 1 {
		k.refuse("pad_token_id", z.Pad, fmt.Sprintf("an id from 0 on, with positions behind it in max_position_embeddings %d", z.Positions))
	}
	return z
}

// bertLike loads an encoder whose parts are called as in BERT.
func (l *loader) bertLike() *transformer {
	t := l.embeddings(true, true)
	for i := range l.sizes.Layers {
		t.layers = append(t.layers, l.layer(fmt.Sprintf("%sencoder.layer.%d.", l.prefix, i), bertLayer))
	}
	return t
}

type bertConfig struct{ bertKeys }

func (c *bertConfig) load(l *loader) net { return l.bertLike() }

func (c *bertConfig) head(l *loader, t Task) (head, pooler *top) {
	h := l.sizes.Hidden
	if t == Classify || l.have[l.prefix+"pooler.dense.weight"] {
		pooler = &top{steps: []step{l.step(l.prefix+"pooler.dense", h, h, gpu.Tanh)}}
	}
	switch t {
	case Classify:
		head = &top{steps: append(pooler.steps[:1:1], l.step("classifier", c.labels(), h, gpu.None))}
	case Tag, Answer:
		head = l.overTokens(t, c.labels())
	case FillMask:
		// Checkpoints of pre-training have its other head, too, whatever their config says.
		l.used["cls.seq_relationship.weight"], l.used["cls.seq_relationship.bias"] = true, true
		head = l.languageModel("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder", "cls.predictions.bias", h)
	}
	return head, pooler
}

// overTokens is a head of one layer over tokens: their labels, or where an answer begins and ends.
func (l *loader) overTokens(t Task, labels int) *top {
	if t == Answer {
		return &top{steps: []step{l.step("qa_outputs", 2, l.sizes.Hidden, gpu.None)}}
	}
	return &top{steps: []step{l.step("classifier", labels, l.sizes.Hidden, gpu.None)}}
}

// twoLayers is RoBERTa's head over texts, and that of others.
func (l *loader) twoLayers(act gpu.Act, labels int) *top {
	h := l.sizes.Hidden
	return &top{steps: []step{l.step("classifier.dense", h, h, act), l.step("classifier.out_proj", labels, h, gpu.None)}}
}

// languageModel is the head of a masked language model: a layer, a norm, and the table of embeddings.
func (l *loader) languageModel(dense, norm, decoder, bias string, width int) *top {
	first := l.step(dense, width, l.sizes.Hidden, l.sizes.Act)
	first.norm, first.eps = l.norm(norm, width), float32(l.sizes.Eps)
	return &top{steps: []step{first, l.decoder(l.prefix+"embeddings.word_embeddings.weight", decoder, bias, l.sizes.Vocab, width)}}
}
