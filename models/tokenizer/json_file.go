package tokenizer

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// FromJSON reads a tokenizer.json. The error names the component or field that is malformed or not supported, such as
// `unsupported pre_tokenizer "UnicodeScripts"`. An escape of half a surrogate pair, which is no character, reads as U+FFFD.
func FromJSON(tokenizerJSON []byte) (*Tokenizer, error) {
	s, err := readSpec(tokenizerJSON)
	if err == nil {
		var t *Tokenizer
		if t, err = s.open(); err == nil {
			return t, nil
		}
	}
	return nil, fmt.Errorf("tokenizer.json: %w", err)
}

// parts are the members of a file that the compiled form keeps as they are.
var partKeys = []string{"normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding"}

func readSpec(file []byte) (*spec, error) {
	if !utf8.Valid(file) {
		return nil, fmt.Errorf("not UTF-8")
	}
	var err error
	o := readObject("file", file, &err)
	if v := value[string](o, "version"); err == nil && v != "1.0" {
		return nil, &UnsupportedError{fmt.Sprintf("unsupported version %q", v)}
	}
	s := &spec{parts: map[string]json.RawMessage{}}
	for _, key := range partKeys {
		if raw, ok := o.take(key); ok {
			s.parts[key] = raw
		}
	}
	if raw, ok := s.parts["normalizer"]; ok {
		s.parts["normalizer"] = s.takeMaps(o, raw)
	}
	s.readModel(o)
	s.added = readAdded(o)
	o.end()
	return s, err
}

// takeMaps puts numbers in the place of the character maps of Precompiled normalizers.
func (s *spec) takeMaps(o *object, raw json.RawMessage) json.RawMessage {
	key := []byte(`"precompiled_charsmap"`)
	var out []byte
	for {
		i := bytes.Index(raw, key)
		if i < 0 {
			return append(out, raw...)
		}
		i += len(key)
		out = append(out, raw[:i]...)
		raw = raw[i:]
		var text string
		start := bytes.IndexByte(raw, '"')
		if start < 0 || len(bytes.Trim(raw[:start], ": \t\r\n")) > 0 {
			continue // no string: reading it will say so
		}
		end := start + 1
		for end < len(raw) && raw[end] != '"' {
			if raw[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(raw) || json.Unmarshal(raw[start:end+1], &text) != nil {
			continue
		}
		m, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			o.fail("file.normalizer: precompiled_charsmap: %w", err)
		}
		if len(s.maps) == maxSections-secCharsmap {
			o.unsupported("file.normalizer: more than %d character maps", len(s.maps))
			continue
		}
		out = append(out, fmt.Sprintf(`:"@%d"`, len(s.maps))...)
		s.maps = append(s.maps, m)
		raw = raw[end+1:]
	}
}

func (s *spec) readModel(o *object) {
	raw, ok := o.need("model")
	if !ok {
		return
	}
	m := readObject("file.model", raw, o.err)
	kind := valueOr(m, "type", "")
	if kind == "" {
		kind = inferModel(m)
	}
	s.model.Kind = kind
	optional := func(key string) *string {
		if _, ok := m.members[key]; !ok || string(m.members[key]) == "null" {
			delete(m.members, key)
			return nil
		}
		v := value[string](m, key)
		return &v
	}
	switch kind {
	case "WordPiece":
		unk := value[string](m, "unk_token")
		s.model.Unk = &unk
		s.model.Prefix = value[string](m, "continuing_subword_prefix")
		s.model.MaxRunes = m.count("max_input_chars_per_word", 100, math.MaxInt32)
		s.vocab = readVocab(m)
	case "WordLevel":
		unk := value[string](m, "unk_token")
		s.model.Unk = &unk
		s.vocab = readVocab(m)
	case "BPE":
		if d := valueOr(m, "dropout", 0.0); d != 0 {
			m.unsupported("%s: unsupported dropout %g", m.path, d)
		}
		s.model.Unk = optional("unk_token")
		s.model.Prefix = valueOr(m, "continuing_subword_prefix", "")
		s.model.Suffix = valueOr(m, "end_of_word_suffix", "")
		s.model.Fuse = valueOr(m, "fuse_unk", false)
		s.model.ByteFallback = valueOr(m, "byte_fallback", false)
		s.model.IgnoreMerges = valueOr(m, "ignore_merges", false)
		s.vocab = readVocab(m)
		s.merges = readMerges(m)
	case "Unigram":
		if raw, ok := m.take("unk_id"); ok {
			m.members["unk_id"] = raw
			id := m.id("unk_id")
			s.model.UnkID = &id
		}
		s.model.ByteFallback = valueOr(m, "byte_fallback", false)
		s.pieces = readPiecesOf(m)
	default:
		m.unsupported("unsupported model %q", kind)
		return
	}
	m.end()
}

// readMerges takes the rules, which are "a b" or ["a", "b"].
func readMerges(m *object) [][2]string {
	list := value[[]json.RawMessage](m, "merges")
	out := make([][2]string, 0, len(list))
	for i, raw := range list {
		var pair []string
		var text string
		switch {
		case json.Unmarshal(raw, &text) == nil:
			if strings.HasPrefix(text, "#version") {
				continue
			}
			pair = strings.Split(text, " ")
		case json.Unmarshal(raw, &pair) != nil:
			m.fail("%s.merges[%d]: found %s, want two tokens", m.path, i, found(raw))
			return nil
		}
		if len(pair) != 2 {
			m.fail("%s.merges[%d]: %d tokens, want two", m.path, i, len(pair))
			return nil
		}
		out = append(out, [2]string(pair))
	}
	return out
}

// readPiecesOf takes the vocabulary of Unigram: pairs of a text and its score, in the order of their ids.
func readPiecesOf(m *object) []scored {
	list := value[[]json.RawMessage](m, "vocab")
	out := make([]scored, 0, len(list))
	for i, raw := range list {
		var pair []json.RawMessage
		if json.Unmarshal(raw, &pair) != nil || len(pair) != 2 {
			m.fail("%s.vocab[%d]: found %s, want a text and its score", m.path, i, found(raw))
			return nil
		}
		p := scored{least: true}
		path := fmt.Sprintf("vocab[%d]", i)
		decodeInto(m, path, pair[0], &p.text)
		decodeInto(m, path, pair[1], &p.score)
		p.score = libraryFloat(pair[1], p.score)
		out = append(out, p)
	}
	return out
}

// libraryFloat is a JSON number as the parser of the tokenizers library rounds it: the digits as a whole number, then one
// multiplication or division by a power of ten. In about one score of four that is not the nearest number, and sums of scores
// that are equal but for that decide between two ways to cut a word. exact is the nearest number.
func libraryFloat(number []byte, exact float64) float64 {
	var digits uint64
	exponent, fraction, full := 0, false, false
	i := 0
	if i < len(number) && number[i] == '-' {
		i++
	}
	for ; i < len(number); i++ {
		c := number[i]
		if c == '.' {
			fraction = true
			continue
		}
		if c < '0' || c > '9' {
			break
		}
		d := uint64(c - '0')
		full = full || digits > (math.MaxUint64-d)/10 // digits that do not fit are dropped
		switch {
		case !full:
			digits = 10*digits + d
			if fraction {
				exponent--
			}
		case !fraction:
			exponent++
		}
	}
	if i < len(number) { // e or E
		e, err := strconv.Atoi(string(number[i+1:]))
		if err != nil {
			return exact
		}
		exponent += e
	} else if !fraction && exponent == 0 {
		return exact
	}
	f := float64(digits)
	for exponent < -308 && f != 0 {
		f /= 1e308
		exponent += 308
	}
	switch {
	case f == 0:
	case exponent < 0:
		f /= powersOfTen()[-exponent]
	case exponent <= 308:
		f *= powersOfTen()[exponent]
	}
	if math.IsInf(f, 0) {
		return exact
	}
	return math.Copysign(f, exact)
}

// powersOfTen are the nearest numbers to 1e0 to 1e308.
var powersOfTen = sync.OnceValue(func() (t [309]float64) {
	for i := range t {
		t[i], _ = strconv.ParseFloat("1e"+strconv.Itoa(i), 64)
	}
	return t
})

// inferModel finds the type of a model that does not state it, as older files do not, from its fields.
func inferModel(m *object) string {
	has := func(keys ...string) bool {
		return !slices.ContainsFunc(keys, func(k string) bool { _, ok := m.members[k]; return !ok })
	}
	switch {
	case has("vocab", "merges"):
		return "BPE"
	case has("vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"):
		return "WordPiece"
	case has("vocab", "unk_id"):
		return "Unigram"
	case has("vocab", "unk_token"):
		return "WordLevel"
	}
	return "of unknown type"
}

// readVocab takes the vocabulary: token to id.
func readVocab(m *object) map[string]int32 {
	raw, ok := m.need("vocab")
	if !ok {
		return nil
	}
	vocab := map[string]int32{}
	eachMember(&object{path: m.path + ".vocab", err: m.err}, raw, func(token string, d *json.Decoder) error {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		var id *int32
		if err := json.Unmarshal(raw, &id); err != nil {
			return fmt.Errorf("the id of %q: found %s, want %s", token, found(raw), wanted(&id))
		}
		if id == nil || *id < 0 {
			return fmt.Errorf("the id of %q is no token id", token)
		}
		if _, dup := vocab[token]; dup {
			return fmt.Errorf("duplicate key %q", token)
		}
		vocab[token] = *id
		return nil
	})
	return vocab
}

func readAdded(o *object) []addedToken {
	var out []addedToken
	for _, a := range o.list("added_tokens") {
		out = append(out, addedToken{
			id:         a.id("id"),
			content:    value[string](a, "content"),
			singleWord: value[bool](a, "single_word"),
			lstrip:     value[bool](a, "lstrip"),
			rstrip:     value[bool](a, "rstrip"),
			normalized: value[bool](a, "normalized"),
			special:    value[bool](a, "special"),
		})
		a.end()
	}
	return out
}
