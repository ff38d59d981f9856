package tokenizer

import (
	"unicode/utf8"
)

// wordPiece splits a word greedily into the longest pieces of its vocabulary; those that do not start the word stand
// in the vocabulary with a prefix. A word that does not divide, or is too long, is one unknown token.
type wordPiece struct {
	pieces trie // startMark and a piece that starts a word, innerMark and one that does not, without the prefix
	start  int  // the nodes of both marks, or -1
	inner  int

	unk      int32
	maxRunes int // of a word
}

const (
	startMark = 1
	innerMark = 2
)

func newWordPiece(t trie, unk int32, maxRunes int) *wordPiece {
	m := &wordPiece{pieces: t, start: -1, inner: -1, unk: unk, maxRunes: maxRunes}
	if len(t) >= 3 {
		m.start, m.inner = t.step(0, startMark), t.step(0, innerMark)
	}
	return m
}

func (m *wordPiece) tokenize(_ *work, word []byte, out []piecePart) []piecePart {
	unknown := piecePart{m.unk, 0, int32(len(word))}
	if len(word) > m.maxRunes && utf8.RuneCount(word) > m.maxRunes {
		return append(out, unknown)
	}
	first := len(out)
	root := m.start
	for at := 0; at < len(word); {
		id, end := int32(noValue), at
		node := root
		for i := at; i < len(word) && node >= 0; i++ {
			if node = m.pieces.step(node, word[i]); node >= 0 {
				if v := m.pieces.value(node); v >= 0 {
					id, end = v, i+1
				}
			}
		}
		if id < 0 {
			return append(out[:first], unknown)
		}
		out = append(out, piecePart{id, int32(at), int32(end)})
		at = end
		root = m.inner
	}
	return out
}
