package tokenizer

import (
	"math"
	"unicode/utf8"
)

// unigram finds the pieces of a text whose scores have the largest sum.
type unigram struct {
	v      *vocabulary
	pieces trie
	scores []uint32 // two words each, a float64
	least  float64
	unk    int32 // -1: none
	bytes  *[256]int32
	single bool // sums are kept in single precision, as SentencePiece does
}

type latticeNode struct {
	score float64
	start int32 // of the best piece that ends here; -1: none does
	id    int32
}

// unkPenalty is how much worse than the worst piece an unknown character is.
const unkPenalty = 10

func (m *unigram) score(id int32) float64 {
	i := 2 * int(id)
	if id < 0 || i+1 >= len(m.scores) {
		return math.Inf(-1)
	}
	return math.Float64frombits(uint64(m.scores[i]) | uint64(m.scores[i+1])<<32)
}

func (m *unigram) round(score float64) float64 {
	if m.single {
		return float64(float32(score))
	}
	return score
}

func (m *unigram) tokenize(w *work, word []byte, out []piecePart) []piecePart {
	if cap(w.lattice) < len(word)+1 {
		w.lattice = make([]latticeNode, 0, len(word)+len(word)/2+64)
	}
	best := w.lattice[:len(word)+1]
	best[0] = latticeNode{}
	for i := 1; i < len(best); i++ {
		best[i].start = -1
	}
	unkScore := m.round(m.least - unkPenalty)
	for at := 0; at < len(word); {
		here := best[at].score
		size := 1
		if word[at] >= utf8.RuneSelf {
			_, size = utf8.DecodeRune(word[at:])
		}
		single := false
		if len(m.pieces) >= 3 {
			node := 0
			for i := at; i < len(word); i++ {
				if node = m.pieces.step(node, word[i]); node < 0 {
					break
				}
				id := m.pieces.value(node)
				if id < 0 {
					continue
				}
				target := &best[i+1]
				if score := m.score(id) + here; target.start < 0 || score > target.score {
					*target = latticeNode{m.round(score), int32(at), id}
				}
				single = single || i+1 == at+size
			}
		}
		if !single {
			target := &best[at+size]
			if score := m.round(unkScore + here); target.start < 0 || score > target.score {
				*target = latticeNode{score, int32(at), m.unk}
			}
		}
		at += size
	}
	first := len(out)
	for end := int32(len(word)); end > 0; {
		n := best[end]
		if n.start < 0 || n.start >= end { // only a broken table gets here
			n = latticeNode{start: 0, id: m.unk}
		}
		if last := len(out) - 1; last >= first && n.id == m.unk && out[last].id == m.unk && m.unk >= 0 {
			out[last].start = n.start
		} else {
			out = append(out, piecePart{n.id, n.start, end})
		}
		end = n.start
	}
	for i, j := first, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return m.unknown(word, out, first)
}

// unknown gives unknown pieces the id of their text, should it be in the vocabulary, or those of their bytes.
func (m *unigram) unknown(word []byte, out []piecePart, first int) []piecePart {
	extra := 0
	for i := first; i < len(out); i++ {
		p := &out[i]
		if p.id != m.unk {
			continue
		}
		text := word[p.start:p.end]
		if id := m.v.find(text, hashBytes(text)); id >= 0 {
			p.id = id
		} else if m.bytes != nil && haveAll(m.bytes, text) {
			extra += len(text) - 1
			p.id = bytesFollow
		}
	}
	if extra == 0 && m.bytes == nil {
		return out
	}
	// Bytes are more pieces: move what follows back, from the end.
	n := len(out)
	for range extra {
		out = append(out, piecePart{})
	}
	to := len(out)
	for i := n - 1; i >= first; i-- {
		p := out[i]
		if p.id != bytesFollow {
			to--
			out[to] = p
			continue
		}
		for k := int(p.end) - 1; k >= int(p.start); k-- {
			to--
			out[to] = piecePart{m.bytes[word[k]], p.start, p.end}
		}
	}
	return out
}

const bytesFollow = math.MinInt32

func haveAll(ids *[256]int32, text []byte) bool {
	for _, c := range text {
		if ids[c] < 0 {
			return false
		}
	}
	return true
}
