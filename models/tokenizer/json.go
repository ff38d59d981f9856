package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"
)

// object is a JSON object whose members are taken one by one, so that one nobody asked for is noticed. The first
// error stays, and everything after it gives zero values.
type object struct {
	path    string // of the file, for errors
	members map[string]json.RawMessage
	err     *error // shared by all objects of a file
}

func (o *object) fail(format string, args ...any) {
	if *o.err == nil {
		*o.err = fmt.Errorf(format, args...)
	}
}

// UnsupportedError says which part of a tokenizer's file this package does not have. Other errors are of files that are wrong.
type UnsupportedError struct{ Reason string }

func (e *UnsupportedError) Error() string { return e.Reason }

// ErrorKind is the kind in the words of proto/zcerr.
func (e *UnsupportedError) ErrorKind() string { return "unsupported" }

func (o *object) unsupported(format string, args ...any) {
	if *o.err == nil {
		*o.err = &UnsupportedError{fmt.Sprintf(format, args...)}
	}
}

// readObject reads the members of an object. Equal keys are an error, and case counts.
func readObject(path string, raw []byte, err *error) *object {
	o := &object{path, map[string]json.RawMessage{}, err}
	eachMember(o, raw, func(key string, d *json.Decoder) error {
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return err
		}
		if _, dup := o.members[key]; dup {
			return fmt.Errorf("duplicate key %q", key)
		}
		o.members[key] = v
		return nil
	})
	return o
}

// eachMember calls member for each key of the object raw; member decodes the value.
func eachMember(o *object, raw []byte, member func(key string, d *json.Decoder) error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		o.fail("%s: want an object", o.path)
		return
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			o.fail("%s: %w", o.path, err)
			return
		}
		key, ok := t.(string)
		if !ok {
			o.fail("%s: want a key", o.path)
			return
		}
		if err := member(key, d); err != nil {
			o.fail("%s: %w", o.path, err)
			return
		}
	}
	if _, err := d.Token(); err != nil {
		o.fail("%s: %w", o.path, err)
	}
	if rest := raw[d.InputOffset():]; len(bytes.TrimLeft(rest, " \t\r\n")) > 0 {
		o.fail("%s: something follows the object", o.path)
	}
}

// take removes a member. A missing one and null are the same.
func (o *object) take(key string) (json.RawMessage, bool) {
	v, ok := o.members[key]
	delete(o.members, key)
	if !ok || *o.err != nil || string(v) == "null" {
		return nil, false
	}
	return v, true
}

// need is take for a member that must be there.
func (o *object) need(key string) (json.RawMessage, bool) {
	v, ok := o.take(key)
	if !ok {
		o.fail("%s: %q is missing", o.path, key)
	}
	return v, ok
}

// value decodes a required member.
func value[T any](o *object, key string) (v T) {
	if raw, ok := o.need(key); ok {
		decodeInto(o, key, raw, &v)
	}
	return v
}

// valueOr decodes a member that may be missing.
func valueOr[T any](o *object, key string, def T) T {
	raw, ok := o.take(key)
	if !ok {
		return def
	}
	var v T
	decodeInto(o, key, raw, &v)
	return v
}

func decodeInto(o *object, key string, raw json.RawMessage, v any) {
	if err := json.Unmarshal(raw, v); err != nil {
		o.fail("%s.%s: %w", o.path, key, err)
	}
}

// id decodes a token id.
func (o *object) id(key string) int32 {
	n := value[int64](o, key)
	if n < 0 || n > math.MaxInt32 {
		o.fail("%s.%s: %d is no token id", o.path, key, n)
		return 0
	}
	return int32(n)
}

// count decodes a number from 0 to limit.
func (o *object) count(key string, def, limit int64) int {
	n := valueOr(o, key, def)
	if n < 0 || n > limit {
		o.fail("%s.%s: %d is not between 0 and %d", o.path, key, n, limit)
		return 0
	}
	return int(n)
}

// object takes a member that is an object; nil if it is missing.
func (o *object) object(key string) *object {
	raw, ok := o.take(key)
	if !ok {
		return nil
	}
	return readObject(o.path+"."+key, raw, o.err)
}

// list takes a member that is an array of objects.
func (o *object) list(key string) []*object {
	var out []*object
	for i, raw := range valueOr[[]json.RawMessage](o, key, nil) {
		out = append(out, readObject(fmt.Sprintf("%s.%s[%d]", o.path, key, i), raw, o.err))
	}
	return out
}

// end refuses what nobody took.
func (o *object) end() {
	for _, key := range sortedKeys(o.members) {
		o.unsupported("%s: unsupported field %q", o.path, key)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// FromJSON reads a tokenizer.json. The error names the component or field that is malformed or not supported, such as
// `unsupported pre_tokenizer "Metaspace"`.
func FromJSON(tokenizerJSON []byte) (*Tokenizer, error) {
	t, err := fromJSON(tokenizerJSON)
	if err != nil {
		return nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	return t, nil
}

func fromJSON(file []byte) (*Tokenizer, error) {
	if !utf8.Valid(file) {
		return nil, fmt.Errorf("not UTF-8")
	}
	var err error
	o := readObject("file", file, &err)
	if v := value[string](o, "version"); err == nil && v != "1.0" {
		return nil, &UnsupportedError{fmt.Sprintf("unsupported version %q", v)}
	}
	t := &Tokenizer{
		normalizer:   readNormalizer(o),
		preTokenizer: readPreTokenizer(o),
		model:        readModel(o),
		post:         readPostProcessor(o),
		decoder:      readDecoder(o),
		truncation:   readTruncation(o),
		padding:      readPadding(o),
	}
	added := readAdded(o)
	o.end()
	if err != nil {
		return nil, err
	}
	t.added, err = newAddedVocab(added, t.model, t.normalizer)
	return t, err
}

// The read functions take one component each. A component of an unknown type is an error that names it.

func readNormalizer(o *object) normalizer {
	n := o.object("normalizer")
	if n == nil {
		return nil
	}
	switch kind := value[string](n, "type"); kind {
	case "BertNormalizer":
		b := bertNormalizer{
			cleanText: value[bool](n, "clean_text"),
			chinese:   value[bool](n, "handle_chinese_chars"),
			lowercase: value[bool](n, "lowercase"),
		}
		b.stripAccents = valueOr(n, "strip_accents", b.lowercase)
		n.end()
		return b
	default:
		n.unsupported("unsupported normalizer %q", kind)
		return nil
	}
}

func readPreTokenizer(o *object) preTokenizer {
	p := o.object("pre_tokenizer")
	if p == nil {
		return nil
	}
	switch kind := value[string](p, "type"); kind {
	case "BertPreTokenizer":
		p.end()
		return bertPreTokenizer{}
	default:
		p.unsupported("unsupported pre_tokenizer %q", kind)
		return nil
	}
}

func readModel(o *object) model {
	raw, ok := o.need("model")
	if !ok {
		return nil
	}
	m := readObject("file.model", raw, o.err)
	kind := valueOr(m, "type", "")
	if kind == "" {
		kind = inferModel(m)
	}
	switch kind {
	case "WordPiece":
		unk := value[string](m, "unk_token")
		prefix := value[string](m, "continuing_subword_prefix")
		maxRunes := m.count("max_input_chars_per_word", 100, math.MaxInt32)
		vocab := readVocab(m)
		m.end()
		if *o.err != nil {
			return nil
		}
		w, err := newWordPiece(vocab, unk, prefix, maxRunes)
		if err != nil {
			m.fail("%s: %w", m.path, err)
			return nil
		}
		return w
	default:
		m.unsupported("unsupported model %q", kind)
		return nil
	}
}

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
	case has("vocab", "unk_token"):
		return "WordLevel"
	case has("vocab", "unk_id"):
		return "Unigram"
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
		var id *int32
		if err := d.Decode(&id); err != nil {
			return err
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

func readPostProcessor(o *object) *template {
	p := o.object("post_processor")
	if p == nil {
		return nil
	}
	var t *template
	switch kind := value[string](p, "type"); kind {
	case "TemplateProcessing":
		t = readTemplate(p)
	case "BertProcessing":
		cls, sep := readTokenPair(p, "cls"), readTokenPair(p, "sep")
		t = bertTemplate(cls, sep)
	default:
		p.unsupported("unsupported post_processor %q", kind)
		return nil
	}
	p.end()
	return t
}

// bertTemplate is [CLS] A [SEP], and with a pair [CLS] A [SEP] B [SEP].
func bertTemplate(cls, sep piece) *template {
	second := sep
	second.typeID = 1
	single := pieces{cls, {input: 0}, sep}
	return &template{single: single, pair: pieces{cls, {input: 0}, sep, {input: 1, typeID: 1}, second}}
}

// readTokenPair takes ["[CLS]", 101].
func readTokenPair(o *object, key string) piece {
	list := value[[]json.RawMessage](o, key)
	if len(list) != 2 {
		o.fail("%s.%s: want a token and its id", o.path, key)
		return piece{}
	}
	p := piece{input: -1}
	decodeInto(o, key, list[0], &p.token)
	decodeInto(o, key, list[1], &p.id)
	if p.id < 0 {
		o.fail("%s.%s: %d is no token id", o.path, key, p.id)
	}
	return p
}

func readTemplate(p *object) *template {
	special := map[string]pieces{}
	if tokens := p.object("special_tokens"); tokens != nil {
		for _, name := range sortedKeys(tokens.members) {
			o := tokens.object(name)
			if o == nil {
				continue
			}
			if id := value[string](o, "id"); id != name {
				o.fail("%s: the id is %q", o.path, id)
			}
			ids, texts := value[[]int32](o, "ids"), value[[]string](o, "tokens")
			o.end()
			if len(ids) != len(texts) {
				o.fail("%s: %d ids, but %d tokens", o.path, len(ids), len(texts))
				continue
			}
			list := pieces{}
			for i, id := range ids {
				if id < 0 {
					o.fail("%s: %d is no token id", o.path, id)
				}
				list = append(list, piece{input: -1, id: id, token: texts[i]})
			}
			special[name] = list
		}
	}
	return &template{single: readPieces(p, "single", 1, special), pair: readPieces(p, "pair", 2, special)}
}

// readPieces takes one line of a template. Each of the inputs must stand in it once.
func readPieces(p *object, key string, inputs int, special map[string]pieces) pieces {
	var out pieces
	var seen [2]int
	for _, o := range p.list(key) {
		switch {
		case o.members["Sequence"] != nil:
			s := o.object("Sequence")
			if s == nil {
				o.unsupported("%s: unsupported piece", o.path)
				break
			}
			input := int8(slices.Index([]string{"A", "B"}, value[string](s, "id")))
			out = append(out, piece{input: input, typeID: s.id("type_id")})
			s.end()
			if input < 0 {
				s.fail("%s: the sequence is neither A nor B", s.path)
				break
			}
			seen[input]++
		case o.members["SpecialToken"] != nil:
			s := o.object("SpecialToken")
			if s == nil {
				o.unsupported("%s: unsupported piece", o.path)
				break
			}
			name, typeID := value[string](s, "id"), s.id("type_id")
			s.end()
			list, ok := special[name]
			if !ok {
				s.fail("%s: special token %q is not among special_tokens", s.path, name)
			}
			for _, x := range list {
				x.typeID = typeID
				out = append(out, x)
			}
		default:
			o.unsupported("%s: unsupported piece", o.path)
		}
		o.end()
	}
	for i, n := range seen {
		if want := min(max(inputs-i, 0), 1); n != want {
			p.fail("%s.%s: sequence %c stands there %d times, not %d", p.path, key, 'A'+i, n, want)
		}
	}
	return out
}

func readDecoder(o *object) decoder {
	d := o.object("decoder")
	if d == nil {
		return nil
	}
	switch kind := value[string](d, "type"); kind {
	case "WordPiece":
		w := wordPieceDecoder{prefix: value[string](d, "prefix"), cleanup: value[bool](d, "cleanup")}
		d.end()
		return w
	default:
		d.unsupported("unsupported decoder %q", kind)
		return nil
	}
}

func readTruncation(o *object) Truncation {
	t := o.object("truncation")
	if t == nil {
		return Truncation{}
	}
	out := Truncation{
		Stride:    t.count("stride", 0, math.MaxInt32),
		Strategy:  Strategy(choice(t, "strategy", valueOr(t, "strategy", "LongestFirst"), "LongestFirst", "OnlyFirst", "OnlySecond")),
		Direction: readDirection(t),
	}
	if out.MaxLength = int(value[int32](t, "max_length")); out.MaxLength <= 0 {
		t.fail("%s.max_length: %d is no length", t.path, out.MaxLength)
	}
	t.end()
	return out
}

func readPadding(o *object) Padding {
	p := o.object("padding")
	if p == nil {
		return Padding{}
	}
	out := Padding{
		MultipleOf: p.count("pad_to_multiple_of", 0, MaxPadding),
		Direction:  readDirection(p),
		ID:         p.id("pad_id"),
		TypeID:     p.id("pad_type_id"),
		Token:      value[string](p, "pad_token"),
	}
	if raw := p.members["strategy"]; len(raw) > 0 && raw[0] == '{' { // {"Fixed": 128}
		s := readObject(p.path+".strategy", raw, p.err)
		delete(p.members, "strategy")
		out.Strategy = PadFixed
		if raw, ok := s.need("Fixed"); ok {
			s.members["Fixed"] = raw
			out.Length = s.count("Fixed", 0, MaxPadding)
		}
		s.end()
	} else {
		choice(p, "strategy", value[string](p, "strategy"), "BatchLongest")
		out.Strategy = PadLongest
	}
	p.end()
	return out
}

func readDirection(o *object) Direction {
	return Direction(choice(o, "direction", valueOr(o, "direction", "Right"), "Right", "Left"))
}

// choice is the index of v among the values that are known.
func choice(o *object, key, v string, known ...string) int {
	i := slices.Index(known, v)
	if i < 0 {
		o.unsupported("%s: unsupported %s %q", o.path, key, v)
		return 0
	}
	return i
}
