package encoder

import (
	"fmt"
	"math"
)

// mpnet is MPNet: RoBERTa without token types, whose scores get a bias for the distance of two tokens. Source: arXiv 2004.09297.
var mpnet = &family{name: "mpnet", class: "MPNet", prefix: "mpnet.", tasks: []Task{Base, Classify, Tag, Answer, FillMask},
	config: func() config {
		c := &mpnetConfig{bertDefaults()}
		c.VocabSize, c.PadTokenID = 30527, 1
		return c
	}}

type mpnetConfig struct{ bertKeys }

func (c *mpnetConfig) check(k *checker) Sizes {
	c.TypeVocabSize = 1 // it has no such key
	z := c.checkPadded(k)
	z.Types = 0
	return z
}

func (c *mpnetConfig) load(l *loader) net {
	t := l.embeddings(false, true)
	names := layerNames{"attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"}
	for i := range c.NumHiddenLayers {
		t.layers = append(t.layers, l.layer(fmt.Sprintf("%sencoder.layer.%d.", l.prefix, i), names))
	}
	t.bias = l.weight(l.prefix+"encoder.relative_attention_bias.weight", buckets, c.NumAttentionHeads)
	return t
}

func (c *mpnetConfig) head(l *loader, t Task) (head, pooler *top) {
	return l.robertaHead(t, c.labels())
}

// buckets is how many sorts of distance there are: the model ignores what its config says of it.
const buckets = 32

// bucket is the sort of a distance, key less query: small ones have one each, up to 128 they share them by their logarithm.
// Source: arXiv 1910.10683.
func bucket(distance int) int {
	const half, exact, far = buckets / 2, buckets / 4, 128
	at := 0
	if distance > 0 {
		at = half
	}
	n := max(distance, -distance)
	if n < exact {
		return at + n
	}
	wide := float32(math.Log(float64(float32(n)/exact))) / float32(math.Log(float64(far)/exact)) * (half - exact)
	return at + min(exact+int(wide), half-1)
}
