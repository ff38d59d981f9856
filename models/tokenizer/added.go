package tokenizer

import (
	"fmt"
	"unicode"
)

// addedToken is a token that is cut out of the text before the model sees it.
type addedToken struct {
	id      int32
	content string
	// singleWord: only where no letter, digit or mark stands beside it. lstrip, rstrip: it takes the white space on
	// that side with it. normalized: it is looked for in the normalised text, normalised itself. special: Decode can
	// skip it.
	singleWord, lstrip, rstrip, normalized, special bool
}

// addedVocab finds added tokens in text.
type addedVocab struct {
	list   []addedToken
	ids    map[string]int32
	tokens map[int32]string
	beyond int // how many are not in the model's vocabulary

	special         map[string]bool
	raw, normalized trie // over the text as given, and as normalised
}

// newAddedVocab checks that the ids are those that the library itself would give: it numbers added tokens after the
// vocabulary and does not look at the ids of the file.
func newAddedVocab(list []addedToken, m model, n normalizer) (*addedVocab, error) {
	v := &addedVocab{list: list, ids: map[string]int32{}, tokens: map[int32]string{}, special: map[string]bool{}}
	next := int32(m.size())
	for _, a := range list {
		if a.content == "" {
			return nil, fmt.Errorf("added token with the id %d is empty", a.id)
		}
		if _, dup := v.ids[a.content]; dup {
			return nil, fmt.Errorf("added token %q stands there twice", a.content)
		}
		want, known := m.id(a.content)
		if !known {
			want = next
			v.beyond++
		}
		if a.id != want {
			return nil, fmt.Errorf("added token %q has the id %d, it should be %d", a.content, a.id, want)
		}
		next = max(next, want+1)
		v.ids[a.content], v.tokens[a.id] = a.id, a.content
		v.special[a.content] = a.special
	}
	for _, special := range []bool{true, false} { // of two that look the same, the special one wins
		for i, a := range list {
			if a.special != special {
				continue
			}
			s := newSequence(a.content)
			if !a.normalized {
				v.raw.add(s.runes, int32(i))
				continue
			}
			if n != nil {
				n.normalize(&s)
			}
			if len(s.runes) > 0 {
				v.normalized.add(s.runes, int32(i))
			}
		}
	}
	return v, nil
}

func (v *addedVocab) isSpecial(token string) bool { return v.special[token] }

// extract calls emit with the added tokens and the normalised text between them, in order; the id of text is -1.
func (v *addedVocab) extract(text sequence, n normalizer, emit func(s sequence, id int32)) {
	v.find(&v.raw, text, func(s sequence, id int32) {
		if id >= 0 {
			emit(s, id)
			return
		}
		if n != nil {
			n.normalize(&s)
		}
		v.find(&v.normalized, s, emit)
	})
}

// find cuts text at the tokens of the trie: the leftmost match first, of those the longest. Nothing emitted is empty.
func (v *addedVocab) find(t *trie, text sequence, emit func(s sequence, id int32)) {
	runes := text.runes
	if len(runes) == 0 {
		return
	}
	done := 0      // emitted so far
	spaceEnd := -1 // end of the white space that an rstrip saw last, so that none is walked over twice
	for i := 0; i < len(runes); {
		token, end := t.match(runes[i:])
		if token < 0 {
			i++
			continue
		}
		start, stop := i, i+end
		i = stop
		a := &v.list[token]
		if a.singleWord && (start > 0 && wordRune(runes[start-1]) || stop < len(runes) && wordRune(runes[stop])) {
			continue
		}
		start = max(start, done)
		if a.lstrip {
			for start > done && unicode.IsSpace(runes[start-1]) {
				start--
			}
		}
		if a.rstrip {
			if spaceEnd < stop {
				for spaceEnd = stop; spaceEnd < len(runes) && unicode.IsSpace(runes[spaceEnd]); {
					spaceEnd++
				}
			}
			stop = spaceEnd
		}
		if stop <= start {
			continue // white space that belongs to the token before
		}
		if done < start {
			emit(text.slice(done, start), -1)
		}
		emit(text.slice(start, stop), a.id)
		done = stop
	}
	if done < len(runes) {
		emit(text.slice(done, len(runes)), -1)
	}
}

// wordRune is \w of Unicode regular expressions.
func wordRune(r rune) bool {
	if r < 0x80 {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_'
	}
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic, unicode.Join_Control)
}

// trie finds the longest of a set of strings at the start of a text.
type trie struct{ nodes []trieNode }

type trieNode struct {
	next map[rune]int32
	leaf int32 // -1: no string ends here
}

// add puts a string in; one that is there already keeps its leaf.
func (t *trie) add(s []rune, leaf int32) {
	if len(t.nodes) == 0 {
		t.nodes = []trieNode{{leaf: -1}}
	}
	at := int32(0)
	for _, r := range s {
		next, ok := t.nodes[at].next[r]
		if !ok {
			next = int32(len(t.nodes))
			t.nodes = append(t.nodes, trieNode{leaf: -1})
			if t.nodes[at].next == nil {
				t.nodes[at].next = map[rune]int32{}
			}
			t.nodes[at].next[r] = next
		}
		at = next
	}
	if t.nodes[at].leaf < 0 {
		t.nodes[at].leaf = leaf
	}
}

// match is the leaf of the longest string that text starts with and its length in runes, or -1.
func (t *trie) match(text []rune) (leaf int32, length int) {
	leaf = -1
	if len(t.nodes) == 0 {
		return
	}
	at := int32(0)
	for i, r := range text {
		next, ok := t.nodes[at].next[r]
		if !ok {
			return
		}
		if at = next; t.nodes[at].leaf >= 0 {
			leaf, length = t.nodes[at].leaf, i+1
		}
	}
	return
}
