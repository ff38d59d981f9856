package tokenizer

import (
	"fmt"
	"unicode/utf8"
)

// addedToken is a token that is cut out of the text before the model sees it.
type addedToken struct {
	id      int32
	content string
	// singleWord: only where no letter, digit or mark stands beside it. lstrip, rstrip: it takes the white space on
	// that side with it. normalized: it is looked for in the normalised text, normalised itself. special: Decode can
	// skip it.
	singleWord, lstrip, rstrip, normalized, special bool
	// Of SentencePiece models. verbatim: it is looked for as it is in the normalised text. unmatched: it is not looked for.
	verbatim, unmatched bool
}

// The flags of an added token in the compiled form.
const (
	addedSingleWord = 1 << iota
	addedLstrip
	addedRstrip
	addedSpecial
)

func (a *addedToken) flags() (f uint32) {
	for _, x := range []struct {
		is   bool
		flag uint32
	}{{a.singleWord, addedSingleWord}, {a.lstrip, addedLstrip}, {a.rstrip, addedRstrip}, {a.special, addedSpecial}} {
		if x.is {
			f |= x.flag
		}
	}
	return f
}

// addedVocab finds added tokens in text.
type addedVocab struct {
	list  []uint32 // two words each: id and flags
	texts textTable
	byID  map[int32]int32 // index
	ids   map[string]int32

	beyond          int  // how many are not in the model's vocabulary
	raw, normalized trie // over the text as given, and as normalised
	rawStart        [256]bool
	normalizedStart [256]bool
}

// checkAdded checks that the ids are those that the library itself would give: it numbers added tokens after the
// vocabulary and does not look at the ids of the file.
func (c *core) checkAdded(list []addedToken) error {
	next := int32(c.vocab.count)
	seen := map[string]bool{}
	for _, a := range list {
		if a.content == "" {
			return fmt.Errorf("added token with the id %d is empty", a.id)
		}
		if len(a.content) > maxToken {
			return fmt.Errorf("added token with the id %d has %d bytes, the most that are taken are %d", a.id, len(a.content), maxToken)
		}
		if seen[a.content] {
			return fmt.Errorf("added token %q stands there twice", a.content)
		}
		seen[a.content] = true
		want, known := c.vocab.id(a.content)
		if !known {
			want = next
		}
		if a.id != want {
			return fmt.Errorf("added token %q has the id %d, it should be %d", a.content, a.id, want)
		}
		next = max(next, want+1)
	}
	return nil
}

func openAdded(c *core, list []uint32, texts textTable, raw, normalized trie) *addedVocab {
	v := &addedVocab{list: list[:len(list)/2*2], texts: texts, raw: raw, normalized: normalized}
	n := len(v.list) / 2
	v.byID, v.ids = make(map[int32]int32, n), make(map[string]int32, n)
	for i := range n {
		id := int32(v.list[2*i])
		v.byID[id] = int32(i)
		text := string(texts.at(int32(i)))
		v.ids[text] = id
		if _, ok := c.vocab.id(text); !ok {
			v.beyond++
		}
	}
	for b := range 256 {
		v.rawStart[b] = len(raw) >= 3 && raw.step(0, byte(b)) >= 0
		v.normalizedStart[b] = len(normalized) >= 3 && normalized.step(0, byte(b)) >= 0
	}
	return v
}

func (v *addedVocab) isSpecial(id int32) bool {
	i, ok := v.byID[id]
	return ok && v.list[2*i+1]&addedSpecial != 0
}

// extract hands the added tokens to w.added, and the normalised text between them to w.stage, in order.
func (v *addedVocab) extract(w *work, text segment) {
	if len(v.raw) < 3 {
		v.between(w, text)
		return
	}
	s := w.segment(0)
	*s = text
	v.find(w, &v.raw, &v.rawStart, s, func(i, j int) { v.between(w, text.slice(i, j)) })
}

// between normalises what stands between tokens found in the raw text, and looks for the others in it.
func (v *addedVocab) between(w *work, s segment) {
	if n := w.core.normalizer; n != nil {
		s = n.normalize(w, s)
	}
	// The segment is not that of extract, which is read on.
	p := w.segment(1)
	*p = s
	if len(v.normalized) < 3 {
		w.stage(0, p, 0, len(s.text))
		return
	}
	v.find(w, &v.normalized, &v.normalizedStart, p, func(i, j int) { w.stage(0, p, i, j) })
}

// find cuts text at the tokens of the trie: the leftmost match first, of those the longest. Nothing emitted is empty.
func (v *addedVocab) find(w *work, t *trie, starts *[256]bool, text *segment, emit func(i, j int)) {
	table := classes()
	b := text.text
	done := 0      // emitted so far
	spaceEnd := -1 // end of the white space that an rstrip saw last, so that none is walked over twice
	for i := 0; i < len(b); {
		if !starts[b[i]] {
			i++
			continue
		}
		n, length := t.longest(b[i:])
		if n < 0 || int(n) >= len(v.list)/2 {
			i++
			continue
		}
		id, flags := int32(v.list[2*n]), v.list[2*n+1]
		start, stop := i, i+length
		i = stop
		if flags&addedSingleWord != 0 {
			before, _ := utf8.DecodeLastRune(b[:start])
			after, _ := utf8.DecodeRune(b[stop:])
			if start > 0 && table.is(before, clWord) || stop < len(b) && table.is(after, clWord) {
				continue
			}
		}
		start = max(start, done)
		if flags&addedLstrip != 0 {
			for start > done {
				r, n := utf8.DecodeLastRune(b[done:start])
				if !table.is(r, clSpace) {
					break
				}
				start -= n
			}
		}
		if flags&addedRstrip != 0 {
			if spaceEnd < stop {
				for spaceEnd = stop; spaceEnd < len(b); {
					r, n := utf8.DecodeRune(b[spaceEnd:])
					if !table.is(r, clSpace) {
						break
					}
					spaceEnd += n
				}
			}
			stop = spaceEnd
		}
		if stop <= start {
			continue // white space that belongs to the token before
		}
		if done < start {
			emit(done, start)
		}
		w.tokens = append(w.tokens, token{id: id, bytes: text.span(start, stop), text: w.keep(b[start:stop])})
		done = stop
	}
	if done < len(b) {
		emit(done, len(b))
	}
}
