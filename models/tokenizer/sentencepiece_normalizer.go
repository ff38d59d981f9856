package tokenizer

import "unicode/utf8"

// spNormalizerType is the name that the compiled form has for SentencePiece's own normalizer. No tokenizer.json has it.
const spNormalizerType = "zcstore.SentencePiece"

// spNormalizer replaces the longest text that its table has, drops spaces that are too many, puts one in front and writes
// them all as marks.
type spNormalizer struct {
	table   precompiled
	user    trie // texts that stay as they are
	dummy   bool
	trim    bool
	escape  bool
	noTable bool
}

func newSPNormalizer(charsmap []byte, user []string, dummy, trim, escape bool) (spNormalizer, error) {
	n := spNormalizer{dummy: dummy, trim: trim, escape: escape, noTable: len(charsmap) == 0}
	var err error
	if !n.noTable {
		n.table, err = newPrecompiled(charsmap)
	}
	var keys []trieKey
	for _, s := range user {
		keys = append(keys, trieKey{[]byte(s), 0})
	}
	n.user = newTrie(keys)
	return n, err
}

// prefix is what the text starts with, of which so many bytes are replaced.
func (n *spNormalizer) prefix(text []byte) (to []byte, size int) {
	if _, size := n.user.longest(text); size > 0 {
		return text[:size], size
	}
	if !n.noTable {
		if to, size := n.table.longest(text); size > 0 {
			return to, size
		}
	}
	_, size = utf8.DecodeRune(text)
	return text[:size], size
}

func (n spNormalizer) normalize(w *work, s segment) segment {
	const mark = "▁"
	b := w.next()
	at := 0
	for n.trim && at < len(s.text) {
		to, size := n.prefix(s.text[at:])
		if string(to) != " " {
			break
		}
		at += size
	}
	if at == len(s.text) {
		return b.segment()
	}
	space := mark
	if !n.escape {
		space = " "
	}
	if n.dummy {
		_, size := n.prefix(s.text[at:])
		b.string(space, s.span(at, at+size))
	}
	afterSpace := n.trim
	for at < len(s.text) {
		to, size := n.prefix(s.text[at:])
		for afterSpace && len(to) > 0 && to[0] == ' ' {
			to = to[1:]
		}
		span := s.span(at, at+size)
		for _, c := range to {
			if c == ' ' {
				b.string(space, span)
			} else {
				b.text, b.from = append(b.text, c), append(b.from, span)
			}
		}
		if len(to) > 0 {
			afterSpace = to[len(to)-1] == ' '
		}
		if !n.trim {
			afterSpace = false
		}
		at += size
	}
	for n.trim && len(b.text) >= len(space) && string(b.text[len(b.text)-len(space):]) == space {
		b.text, b.from = b.text[:len(b.text)-len(space)], b.from[:len(b.from)-len(space)]
	}
	return b.segment()
}
