package encoder

import "github.com/zcstore/zcstore/gpu"

// electra is ELECTRA: BERT whose embeddings may be narrower than its states. Source: arXiv 2003.10555.
var electra = &family{name: "electra", class: "Electra", prefix: "electra.", tasks: []Task{Base, Classify, Tag, Answer, FillMask, Detect},
	config: func() config {
		c := &electraConfig{bertDefaults()}
		c.EmbeddingSize, c.HiddenSize, c.NumAttentionHeads, c.IntermediateSize = 128, 256, 4, 1024
		return c
	}}

type electraConfig struct{ bertKeys }

func (c *electraConfig) check(k *checker) Sizes {
	z := c.bertKeys.check(k)
	k.size("embedding_size", c.EmbeddingSize)
	z.Embedding = c.EmbeddingSize
	return z
}

func (c *electraConfig) load(l *loader) net {
	t := l.bertLike()
	if c.EmbeddingSize != c.HiddenSize {
		t.project = l.group(c.HiddenSize, c.EmbeddingSize, l.prefix+"embeddings_project")
	}
	return t
}

func (c *electraConfig) head(l *loader, t Task) (head, pooler *top) {
	switch t {
	case Classify:
		head = l.twoLayers(gpu.GELUErf, c.labels())
	case Tag, Answer:
		head = l.overTokens(t, c.labels())
	case FillMask: // the generator
		head = l.languageModel("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "generator_lm_head.bias", c.EmbeddingSize)
		head.steps[0].act = gpu.GELUErf
	case Detect: // the discriminator
		head = &top{steps: []step{l.step("discriminator_predictions.dense", c.HiddenSize, c.HiddenSize, l.sizes.Act),
			l.step("discriminator_predictions.dense_prediction", 1, c.HiddenSize, gpu.None)}}
	}
	return head, nil
}
