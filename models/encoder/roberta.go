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
	h := l.sizes.Hidden
	if l.have[l.prefix+"pooler.dense.weight"] {
		pooler = &top{steps: []step{l.step(l.prefix+"pooler.dense", h, h, gpu.Tanh)}}
	}
	switch t {
	case Classify:
		head = l.twoLayers(gpu.Tanh, c.labels())
	case Tag:
		head = l.one("classifier", c.labels())
	case Answer:
		head = l.one("qa_outputs", 2)
	case FillMask:
		head = l.robertaLM()
	}
	return head, pooler
}

// robertaLM is the masked language model of RoBERTa and MPNet, which always has GELU.
func (l *loader) robertaLM() *top {
	head := l.languageModel("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "lm_head.bias", l.sizes.Hidden)
	head.steps[0].act = gpu.GELUErf
	return head
}
