package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// spec is what a tokenizer's files say, its tables apart from the rest.
type spec struct {
	parts  map[string]json.RawMessage // normalizer, pre_tokenizer, post_processor, decoder, truncation, padding; null: none
	maps   [][]byte                   // the character maps that Precompiled normalizers name by number
	model  modelSpec
	vocab  map[string]int32
	pieces []scored    // of Unigram, by id, in place of vocab
	merges [][2]string // of BPE
	ranked []mergeRule // the same by id
	added  []addedToken

	// Of SentencePiece models: the ids that text never becomes by itself, and the texts that are kept as they are.
	sentencePiece bool
	hidden        []int32
	user          []string
}

// set states a part.
func (s *spec) set(key string, value any) {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err) // maps of strings, numbers and booleans have a JSON form
	}
	if s.parts == nil {
		s.parts = map[string]json.RawMessage{}
	}
	s.parts[key] = raw
}

// open makes a tokenizer.
func (s *spec) open() (*Tokenizer, error) {
	b, err := s.compile()
	if err != nil {
		return nil, err
	}
	return open(b)
}

type scored struct {
	text  string
	score float64
	least bool // it counts for the least score
}

// modelSpec is the settings of a model, as they stand in the compiled form. Not all models have all.
type modelSpec struct {
	Kind         string   `json:"type"`
	Unk          *string  `json:"unk_token,omitempty"`
	UnkID        *int32   `json:"unk_id,omitempty"`
	Prefix       string   `json:"continuing_subword_prefix,omitempty"`
	Suffix       string   `json:"end_of_word_suffix,omitempty"`
	MaxRunes     int      `json:"max_input_chars_per_word,omitempty"`
	Fuse         bool     `json:"fuse_unk,omitempty"`
	ByteFallback bool     `json:"byte_fallback,omitempty"`
	IgnoreMerges bool     `json:"ignore_merges,omitempty"`
	Least        *float64 `json:"least_score,omitempty"`      // of Unigram; nil: no piece has a score
	Single       bool     `json:"single_precision,omitempty"` // of Unigram: sums are rounded as SentencePiece does
	Count        int      `json:"count"`                      // of different tokens
}

// maxToken bounds a token, in bytes.
const maxToken = 1 << 16

// maxID bounds the ids of a vocabulary, whose tables have a place for each up to the largest.
const maxID = 1 << 22

// compile makes the flat tables.
func (s *spec) compile() ([]byte, error) {
	names, present, err := s.names()
	if err != nil {
		return nil, err
	}
	config, err := s.config(len(present))
	if err != nil {
		return nil, err
	}
	c := &core{}
	if err := c.configure(config, s.maps); err != nil {
		return nil, err
	}
	for id, name := range names {
		if len(name) > maxToken {
			return nil, fmt.Errorf("vocabulary: the token with the id %d has %d bytes, the most that are taken are %d", id, len(name), maxToken)
		}
	}
	sections := make([][]byte, secCharsmap+len(s.maps))
	sections[secConfig] = config
	copy(sections[secCharsmap:], s.maps)

	v := &c.vocab
	v.count = len(present)
	v.flags = make([]byte, len(names))
	for id := range names {
		if present[int32(id)] {
			v.flags[id] = flagPresent | flagKey
		}
	}
	keys := names
	v.names = newTextTable(names)
	v.keys = v.names
	for _, id := range s.hidden {
		v.flags[id] &^= flagKey
	}
	if s.sentencePiece {
		v.named = newTable(names, func(id int) bool { return v.flags[id]&flagPresent != 0 })
		sections[secNamed] = bytesOfWords(v.named)
	}
	if c.byteLevel {
		keys = make([][]byte, len(names))
		for id, name := range names {
			key, ok := bytesOfAlphabet(name)
			if keys[id] = key; !ok {
				v.flags[id] &^= flagKey
			}
		}
		v.keys = newTextTable(keys)
		v.named = newTable(names, func(id int) bool { return v.flags[id]&flagPresent != 0 })
		sections[secKeyEnds], sections[secKeyBlob] = bytesOfWords(v.keys.ends), v.keys.blob
		sections[secNamed] = bytesOfWords(v.named)
	}
	v.table = newTable(keys, func(id int) bool { return v.flags[id]&flagKey != 0 })
	sections[secNameEnds], sections[secNameBlob] = bytesOfWords(v.names.ends), v.names.blob
	sections[secTable] = bytesOfWords(v.table)

	if err := s.compileModel(c, keys, sections); err != nil {
		return nil, err
	}
	w := &work{core: c}
	for id, key := range keys {
		if v.flags[id]&flagKey == 0 || len(key) == 0 || len(key) > maxWholeKey {
			continue
		}
		word, ok := key, true
		if c.suffix != "" {
			word, ok = bytes.CutSuffix(key, []byte(c.suffix))
		}
		if !ok || len(word) == 0 {
			continue
		}
		if w.pieces = c.model.tokenize(w, word, w.pieces[:0]); len(w.pieces) == 1 && w.pieces[0] == (piecePart{int32(id), 0, int32(len(word))}) {
			v.flags[id] |= flagWhole
		}
	}
	sections[secFlags] = v.flags
	return s.compileAdded(c, sections)
}

// maxWholeKey bounds the tokens that are tried out, so that a hostile vocabulary compiles in linear time.
const maxWholeKey = 512

// names are the texts of all ids.
func (s *spec) names() (names [][]byte, present map[int32]bool, err error) {
	present = map[int32]bool{}
	if s.vocab == nil {
		for id, p := range s.pieces {
			names = append(names, []byte(p.text))
			present[int32(id)] = true
		}
		if len(names) > maxID {
			return nil, nil, fmt.Errorf("vocabulary: %d pieces, the most that are taken are %d", len(names), maxID)
		}
		return names, present, nil
	}
	largest := int32(-1)
	for token, id := range s.vocab {
		if id >= maxID {
			return nil, nil, fmt.Errorf("vocabulary: %q has the id %d, the largest that is taken is %d", token, id, maxID-1)
		}
		largest = max(largest, id)
	}
	if err := checkIDs(int(largest)+1, len(s.vocab)); err != nil {
		return nil, nil, err
	}
	names = make([][]byte, largest+1)
	for token, id := range s.vocab {
		if present[id] {
			other := string(names[id])
			return nil, nil, fmt.Errorf("vocabulary: %q and %q both have the id %d", min(token, other), max(token, other), id)
		}
		names[id], present[id] = []byte(token), true
	}
	return names, present, nil
}

// config is the tokenizer.json without tables.
func (s *spec) config(count int) ([]byte, error) {
	m := s.model
	m.Count = count
	if len(s.pieces) > 0 {
		least := math.Inf(1)
		for _, p := range s.pieces {
			if p.least {
				least = min(least, p.score)
			}
		}
		m.Least = &least
	}
	all := map[string]any{"model": m}
	for key, raw := range s.parts {
		if len(raw) > 0 {
			all[key] = raw
		}
	}
	return json.Marshal(all)
}

func (s *spec) compileModel(c *core, keys [][]byte, sections [][]byte) error {
	v := &c.vocab
	tables := &modelTables{}
	switch m := &s.model; m.Kind {
	case "WordPiece":
		var list []trieKey
		for id, key := range keys {
			if v.flags[id]&flagPresent == 0 {
				continue
			}
			list = append(list, trieKey{append([]byte{startMark}, key...), int32(id)})
			if rest, ok := bytes.CutPrefix(key, []byte(m.Prefix)); ok {
				list = append(list, trieKey{append([]byte{innerMark}, rest...), int32(id)})
			}
		}
		tables.trie = newTrie(list)
	case "Unigram":
		var list []trieKey
		for id := len(keys) - 1; id >= 0; id-- { // of equal pieces the last counts
			if v.flags[id]&flagKey != 0 {
				list = append(list, trieKey{keys[id], int32(id)})
			}
		}
		tables.trie = newTrie(list)
		for _, p := range s.pieces {
			bits := math.Float64bits(p.score)
			tables.scores = append(tables.scores, uint32(bits), uint32(bits>>32))
		}
	case "BPE":
		rules, err := s.rules()
		if err != nil {
			return err
		}
		tables.merges = newMerges(rules)
		if s.mayCut(c, rules) {
			tables.glue = newGlue(rules, func(id int32) []byte { b, _ := v.name(id); return b })
		}
	}
	sections[secTrie], sections[secScores] = bytesOfWords(tables.trie), bytesOfWords(tables.scores)
	sections[secMerges], sections[secGlue] = bytesOfWords(tables.merges), bytesOfWords(tables.glue)
	return c.buildModel(tables)
}

// rules are the merges by id.
func (s *spec) rules() ([]mergeRule, error) {
	if s.ranked != nil {
		return s.ranked, nil
	}
	out := make([]mergeRule, 0, len(s.merges))
	for i, m := range s.merges {
		left, ok1 := s.vocab[m[0]]
		right, ok2 := s.vocab[m[1]]
		if !ok1 || !ok2 {
			missing := m[0]
			if ok1 {
				missing = m[1]
			}
			return nil, fmt.Errorf("merges[%d]: %q is not in the vocabulary", i, missing)
		}
		if len(m[1]) < len(s.model.Prefix) {
			return nil, fmt.Errorf("merges[%d]: %q is shorter than the prefix %q", i, m[1], s.model.Prefix)
		}
		whole := m[0] + m[1][len(s.model.Prefix):]
		joined, ok := s.vocab[whole]
		if !ok {
			return nil, fmt.Errorf("merges[%d]: %q, which %q and %q make, is not in the vocabulary", i, whole, m[0], m[1])
		}
		out = append(out, mergeRule{left, right, joined, uint32(i)})
	}
	return out, nil
}

// mayCut reports whether cutting text between characters that no rule joins leaves the result as it is. It does if each
// rule joins what its tokens say, and what is unknown has tokens.
func (s *spec) mayCut(c *core, rules []mergeRule) bool {
	m := &s.model
	if c.byteLevel || m.IgnoreMerges || m.Prefix != "" || m.Suffix != "" {
		return false
	}
	special := map[int32]bool{}
	complete := m.ByteFallback
	for b := range 256 {
		id, ok := s.vocab[byteToken(byte(b))]
		complete = complete && ok
		if ok && m.ByteFallback {
			special[id] = true
		}
	}
	if m.Unk != nil {
		special[s.vocab[*m.Unk]] = true
	}
	for _, r := range rules {
		if special[r.left] || special[r.right] {
			return false
		}
	}
	return complete || m.Unk != nil && !m.ByteFallback
}

func byteToken(b byte) string { return fmt.Sprintf("<0x%02X>", b) }

func (s *spec) compileAdded(c *core, sections [][]byte) ([]byte, error) {
	if err := c.checkAdded(s.added); err != nil {
		return nil, err
	}
	var list []uint32
	var texts [][]byte
	var raw, normalized []trieKey
	w, cost := &work{core: c}, newRewriting(c.normalizer)
	for _, a := range s.added {
		list = append(list, uint32(a.id), a.flags())
		texts = append(texts, []byte(a.content))
	}
	for _, special := range []bool{true, false} { // of two that look the same, the special one wins
		for i, a := range s.added {
			if a.special != special || a.unmatched {
				continue
			}
			if a.verbatim {
				normalized = append(normalized, trieKey{[]byte(a.content), int32(i)})
				continue
			}
			if !a.normalized {
				raw = append(raw, trieKey{[]byte(a.content), int32(i)})
				continue
			}
			if err := cost.check(a.content); err != nil {
				return nil, err
			}
			content := newRuneCounter([]byte(a.content))
			t := w.newSegment(&content)
			if c.normalizer != nil {
				t = c.normalizer.normalize(w, t)
			}
			if len(t.text) > 0 {
				normalized = append(normalized, trieKey{bytes.Clone(t.text), int32(i)})
			}
		}
	}
	table := newTextTable(texts)
	sections[secAdded], sections[secAddedEnds], sections[secAddedBlob] = bytesOfWords(list), bytesOfWords(table.ends), table.blob
	sections[secAddedRaw], sections[secAddedNormalized] = bytesOfWords(newTrie(raw)), bytesOfWords(newTrie(normalized))
	return seal(sections), nil
}

// mapNumber is how a compiled form names one of its character maps.
func mapNumber(s string) (int, bool) {
	rest, ok := strings.CutPrefix(s, "@")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(rest)
	return n, err == nil
}
