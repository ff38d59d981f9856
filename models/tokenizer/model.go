package tokenizer

// A model cuts words into pieces. What it knows lies in flat tables.
type model interface {
	// tokenize appends the pieces of a word. It is not empty.
	tokenize(w *work, word []byte, out []piecePart) []piecePart
}

// wordLevel knows whole words.
type wordLevel struct {
	v   *vocabulary
	unk int32 // -1: a word that is not known is an error
}

func (m *wordLevel) tokenize(_ *work, word []byte, out []piecePart) []piecePart {
	id := m.v.find(word, hashBytes(word))
	if id < 0 {
		id = m.unk
	}
	return append(out, piecePart{id, 0, int32(len(word))})
}
