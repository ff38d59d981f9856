package encoder

import "github.com/zcstore/zcstore/gpu"

// roberta is RoBERTa: BERT whose positions begin behind that of padding, and other heads. Source: arXiv 1907.11692.
var roberta = &family{name: "roberta", class: "Roberta", prefix: "roberta.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: newRoberta}

// xlmRoberta is RoBERTa on a hundred languages. Source: arXiv 1911.02116.
var xlmRoberta = &family{name: "xlm-roberta", class: "XLMRoberta", prefix: "roberta.", tasks: roberta.tasks, config: newRoberta}

type robertaConfig struct{ bertKeys }

func newRoberta() config {
	c := &robertaConfig{bertDefaults()}
	c.VocabSize, c.PadTokenID = 50265, 1
	return c
}

func (c *robertaConfig) check(k *checker) Sizes { return c.checkPadded(k) }

func (c *robertaConfig) load(l *loader) net { return l.bertLike() }

func (c *robertaConfig) head(l *loader, t Task) (head, pooler *top) {
	return l.robertaHead(t, c.labels())
}

// robertaHead is what stands on RoBERTa and on MPNet.
func (l *loader) robertaHead(t Task, labels int) (head, pooler *top) {
	h := l.sizes.Hidden
	if l.have[l.prefix+"pooler.dense.weight"] {
		pooler = &top{steps: []step{l.step(l.prefix+"pooler.dense", h, h, gpu.Tanh)}}
	}
	switch t {
	case Classify:
		head = l.twoLayers(gpu.Tanh, labels)
	case Tag, Answer:
		head = l.overTokens(t, labels)
	case FillMask: // always with GELU
		head = l.languageModel("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", h)
		head.steps[0].act = gpu.GELUErf
	}
	return head, pooler
}
