package tokenizer

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// configure reads all parts but the tables. A component of an unknown type is an error that names it.
func (c *core) configure(config []byte, maps [][]byte) error {
	var err error
	o := readObject("file", config, &err)
	if n := o.object("normalizer"); n != nil {
		c.normalizer = memoized(readNormalizer(n, maps))
	}
	if p := o.object("pre_tokenizer"); p != nil {
		c.pre = readPreTokenizer(p, nil)
	}
	if d := o.object("decoder"); d != nil {
		c.decoder = readDecoder(d)
	}
	if p := o.object("post_processor"); p != nil {
		c.readPostProcessor(p)
	}
	c.truncation, c.padding = readTruncation(o), readPadding(o)
	if raw, ok := o.need("model"); ok && err == nil {
		if json.Unmarshal(raw, &c.settings) != nil {
			o.fail("file.model: the settings are broken")
		}
	}
	o.end()
	for i, p := range c.pre {
		if _, ok := p.(*byteLevel); !ok {
			continue
		}
		if i < len(c.pre)-1 {
			o.unsupported("unsupported pre_tokenizer: ByteLevel is not the last one")
		}
		c.byteLevel = true
	}
	if kind := c.settings.Kind; c.byteLevel && kind != "BPE" && kind != "WordLevel" {
		o.unsupported("unsupported pre_tokenizer \"ByteLevel\" with the model %q", kind)
	}
	if c.byteLevel && c.settings.ByteFallback {
		o.unsupported("unsupported byte_fallback with the pre_tokenizer \"ByteLevel\"")
	}
	return err
}

// deepest bounds sequences within sequences.
const deepest = 8

func readNormalizer(n *object, maps [][]byte) normalizer {
	var out normalizer
	switch kind := value[string](n, "type"); kind {
	case "BertNormalizer":
		b := bertNormalizer{
			cleanText: value[bool](n, "clean_text"),
			chinese:   value[bool](n, "handle_chinese_chars"),
			lowercase: value[bool](n, "lowercase"),
		}
		b.stripAccents = valueOr(n, "strip_accents", b.lowercase)
		out = b
	case "NFC":
		out = unicodeForm{compose: true}
	case "NFD":
		out = unicodeForm{}
	case "NFKC":
		out = unicodeForm{compose: true, compat: true}
	case "NFKD":
		out = unicodeForm{compat: true}
	case "Lowercase":
		out = lowercase{}
	case "StripAccents":
		out = stripAccents{}
	case "Nmt":
		out = nmt{}
	case "Strip":
		out = strip{left: value[bool](n, "strip_left"), right: value[bool](n, "strip_right")}
	case "Prepend":
		out = prepend{value[string](n, "prepend")}
	case "Replace":
		out = replace{readPattern(n), value[string](n, "content")}
	case "Precompiled":
		name := value[string](n, "precompiled_charsmap")
		i, ok := mapNumber(name)
		if !ok || i < 0 || i >= len(maps) {
			n.fail("%s.precompiled_charsmap: no character map", n.path)
			break
		}
		m, err := newPrecompiled(maps[i])
		if err != nil {
			n.fail("%s: %w", n.path, err)
		}
		out = m
	case spNormalizerType:
		name := value[string](n, "precompiled_charsmap")
		i, ok := mapNumber(name)
		if !ok || i < 0 || i >= len(maps) {
			n.fail("%s.precompiled_charsmap: no character map", n.path)
			break
		}
		sp, err := newSPNormalizer(maps[i], value[[]string](n, "user_defined"), value[bool](n, "add_dummy_prefix"), value[bool](n, "remove_extra_whitespaces"), value[bool](n, "escape_whitespaces"))
		if err != nil {
			n.fail("%s: %w", n.path, err)
		}
		out = sp
	case "Sequence":
		var list normalizers
		if tooDeep(n) {
			break
		}
		for _, x := range n.list("normalizers") {
			list = append(list, readNormalizer(x, maps))
		}
		out = list
	default:
		n.unsupported("unsupported normalizer %q", kind)
		return nil
	}
	n.end()
	return out
}

func tooDeep(o *object) bool {
	if strings.Count(o.path, "[") < deepest {
		return false
	}
	o.unsupported("%s: sequences within sequences, more than %d deep", o.path, deepest)
	return true
}

// readPattern takes {"String": ...} or {"Regex": ...}. Of regular expressions those that published files have are known.
func readPattern(o *object) finder {
	p := o.object("pattern")
	if p == nil {
		o.fail("%s: \"pattern\" is missing", o.path)
		return nil
	}
	defer p.end()
	if _, ok := p.members["Regex"]; ok {
		text := value[string](p, "Regex")
		if f, ok := patterns[text]; ok {
			return f
		}
		p.unsupported("%s: unsupported regular expression %q", p.path, text)
		return nil
	}
	text := value[string](p, "String")
	if text == "" {
		p.unsupported("%s: unsupported empty text", p.path)
	}
	return literal(text)
}

// readPreTokenizer appends one to the list, or the members of a sequence.
func readPreTokenizer(p *object, list []preTokenizer) []preTokenizer {
	cut := func(f finder, b behavior) { list = append(list, &splitter{find: f, behavior: b}) }
	switch kind := value[string](p, "type"); kind {
	case "BertPreTokenizer":
		list = append(list, bertPreTokenizer{})
	case "Whitespace":
		list = append(list, &splitter{find: whitespace{}, behavior: dropped, invert: true})
	case "WhitespaceSplit":
		cut(anyOf(clSpace), dropped)
	case "Digits":
		b := contiguous
		if value[bool](p, "individual_digits") {
			b = isolated
		}
		cut(anyOf(clNumeric), b)
	case "Punctuation":
		cut(anyOf(clPunct), readBehavior(p))
	case "CharDelimiterSplit":
		cut(literal(oneRune(p, "delimiter")), dropped)
	case "FixedLength":
		n := p.count("length", 5, math.MaxInt32)
		if n == 0 {
			p.fail("%s.length: 0 is no length", p.path)
		}
		list = append(list, fixedLength(n))
	case "Split":
		s := &splitter{find: readPattern(p), behavior: readBehavior(p), invert: value[bool](p, "invert")}
		list = append(list, s)
	case "Metaspace":
		mark, scheme, cut := readMetaspace(p)
		list = append(list, &metaspace{mark, scheme, cut})
	case "ByteLevel":
		b := &byteLevel{prefix: value[bool](p, "add_prefix_space"), cut: valueOr(p, "use_regex", true)}
		value[bool](p, "trim_offsets")
		list = append(list, b)
	case "Sequence":
		if tooDeep(p) {
			break
		}
		for _, x := range p.list("pretokenizers") {
			list = readPreTokenizer(x, list)
		}
	default:
		p.unsupported("unsupported pre_tokenizer %q", kind)
		return list
	}
	p.end()
	return list
}

func readBehavior(o *object) behavior {
	return behavior(choice(o, "behavior", valueOr(o, "behavior", "Isolated"), "Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"))
}

func oneRune(o *object, key string) string {
	s := value[string](o, key)
	if *o.err == nil && utf8.RuneCountInString(s) != 1 {
		o.fail("%s.%s: %q is not one character", o.path, key, s)
		return " "
	}
	return s
}

func readMetaspace(o *object) (mark string, scheme prependScheme, cut bool) {
	mark = oneRune(o, "replacement")
	scheme = prependScheme(choice(o, "prepend_scheme", valueOr(o, "prepend_scheme", "always"), "always", "first", "never"))
	if space := valueOr(o, "add_prefix_space", true); !space && scheme != prependNever {
		o.fail("%s: add_prefix_space is false, but prepend_scheme is not never", o.path)
	}
	o.take("str_rep")
	return mark, scheme, valueOr(o, "split", true)
}

// readPostProcessor takes what frames texts, and what trims offsets before that.
func (c *core) readPostProcessor(p *object) {
	if c.post != nil {
		p.unsupported("%s: unsupported post_processor behind the one that adds the special tokens", p.path)
	}
	switch kind := value[string](p, "type"); kind {
	case "TemplateProcessing":
		c.post = readTemplate(p)
	case "BertProcessing":
		cls, sep := readTokenPair(p, "cls"), readTokenPair(p, "sep")
		c.post = bertTemplate(cls, sep)
	case "RobertaProcessing":
		cls, sep := readTokenPair(p, "cls"), readTokenPair(p, "sep")
		trims, prefix := value[bool](p, "trim_offsets"), value[bool](p, "add_prefix_space")
		if trims {
			c.trims = append(c.trims, trim{prefix})
		}
		c.post = newTemplate(pieces{cls, {input: 0}, sep}, pieces{cls, {input: 0}, sep, sep, {input: 1}, sep})
	case "ByteLevel":
		prefix, trims := value[bool](p, "add_prefix_space"), value[bool](p, "trim_offsets")
		valueOr(p, "use_regex", true)
		if trims {
			c.trims = append(c.trims, trim{prefix})
		}
	case "Sequence":
		if tooDeep(p) {
			break
		}
		for _, x := range p.list("processors") {
			c.readPostProcessor(x)
		}
	default:
		p.unsupported("unsupported post_processor %q", kind)
		return
	}
	p.end()
}

func readDecoder(d *object) decoder {
	var out decoder
	switch kind := value[string](d, "type"); kind {
	case "WordPiece":
		out = wordPieceDecoder{prefix: value[string](d, "prefix"), cleanup: value[bool](d, "cleanup")}
	case "ByteLevel":
		valueOr(d, "add_prefix_space", true)
		valueOr(d, "trim_offsets", true)
		valueOr(d, "use_regex", true)
		out = byteLevelDecoder{}
	case "Metaspace":
		mark, scheme, _ := readMetaspace(d)
		r, _ := utf8.DecodeRuneInString(mark)
		out = metaspaceDecoder{r, scheme != prependNever}
	case "ByteFallback":
		out = byteFallbackDecoder{}
	case "Fuse":
		out = fuse{}
	case "Strip":
		out = stripDecoder{oneRune(d, "content"), d.count("start", 0, math.MaxInt32), d.count("stop", 0, math.MaxInt32)}
	case "Replace":
		out = replaceDecoder{replace{readPattern(d), value[string](d, "content")}}
	case "BPEDecoder":
		out = bpeDecoder{value[string](d, "suffix")}
	case "CTC":
		out = ctcDecoder{value[string](d, "pad_token"), value[string](d, "word_delimiter_token"), value[bool](d, "cleanup")}
	case "Sequence":
		var list decoders
		if tooDeep(d) {
			break
		}
		for _, x := range d.list("decoders") {
			list = append(list, readDecoder(x))
		}
		out = list
	default:
		d.unsupported("unsupported decoder %q", kind)
		return nil
	}
	d.end()
	return out
}

// bertTemplate is [CLS] A [SEP], and with a pair [CLS] A [SEP] B [SEP].
func bertTemplate(cls, sep piece) *template {
	second := sep
	second.typeID = 1
	single := pieces{cls, {input: 0}, sep}
	return newTemplate(single, pieces{cls, {input: 0}, sep, {input: 1, typeID: 1}, second})
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
	return newTemplate(readPieces(p, "single", 1, special), readPieces(p, "pair", 2, special))
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
