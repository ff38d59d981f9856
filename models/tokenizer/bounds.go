package tokenizer

import (
	"bytes"
	"fmt"
)

// A tokenizer is compiled where a hostile file must do no harm: the work and the memory that it takes are bounded by the size of the
// file. Most of that follows from how tables are made; what a few bytes could blow up is refused here.

const (
	// maxHoles is how many ids without a token a vocabulary may have besides one for each that it has. Tables have a place for
	// every id.
	maxHoles = 1 << 16
	// maxNormalized bounds what an added token can become when it is normalised, in bytes.
	maxNormalized = 1 << 24
	// maxRewriting bounds the normalizers times the bytes of added tokens that go through them.
	maxRewriting = 1 << 30
)

func checkIDs(places, tokens int) error {
	if places > 2*tokens+maxHoles {
		return fmt.Errorf("vocabulary: %d tokens have ids up to %d: over half of the ids are of no token", tokens, places-1)
	}
	return nil
}

// rewriting adds up what the normalisation of added tokens costs.
type rewriting struct {
	by    normalizer
	steps int
	grows float64 // how many times longer a text can become
	adds  float64 // bytes on top, the growth of the steps that follow included
	spent float64
}

func newRewriting(n normalizer) *rewriting {
	r := &rewriting{by: n, grows: 1}
	r.add(n)
	return r
}

func (r *rewriting) add(n normalizer) {
	factor, adds := 1.0, 0.0
	switch n := n.(type) {
	case nil:
		return
	case normalizers:
		for _, one := range n {
			r.add(one)
		}
		return
	case *memo:
		for _, one := range n.stages {
			r.add(one)
		}
		return
	case lowercase, bertNormalizer:
		factor = 6 // of a character whose lower case is longer, or spaces around it
	case unicodeForm:
		factor = 18 // the longest decomposition of a character
	case prepend:
		adds = float64(len(n.text))
	case replace:
		factor = max(1, float64(len(n.content)))
	case precompiled:
		factor = n.longestText()
	case spNormalizer:
		factor = 3 * n.table.longestText() // and every space is a mark of three bytes
		adds = 3
	}
	r.steps++
	r.grows *= factor
	r.adds = r.adds*factor + adds
}

// longestText is that of the replacements.
func (p precompiled) longestText() float64 {
	longest := 4 // a character that stays
	for rest := p.texts; len(rest) > 0; {
		n := bytes.IndexByte(rest, 0)
		if n < 0 {
			n = len(rest) - 1
		}
		longest = max(longest, n)
		rest = rest[n+1:]
	}
	return float64(longest)
}

// check refuses an added token that could become too long, or one too many.
func (r *rewriting) check(content string) error {
	if could := float64(len(content))*r.grows + r.adds; could > maxNormalized {
		return fmt.Errorf("added token %.40q of %d bytes: the normalizers could make %.0f of them, the most that are taken are %d", content, len(content), could, maxNormalized)
	}
	if r.spent += float64(len(content)+64) * float64(r.steps); r.spent > maxRewriting {
		return fmt.Errorf("the added tokens and %d normalizers are too many for each other", r.steps)
	}
	return nil
}
