package tokenizer

import (
	"fmt"
	"math"
	"sync"
)

// core is what all copies of a Tokenizer share.
type core struct {
	compiled   []byte
	normalizer normalizer     // nil: none
	pre        []preTokenizer // one after the other
	model      model
	cutter     *bpe // the model, if it cuts texts into words itself
	settings   modelSpec
	vocab      vocabulary
	suffix     string // of the vocabulary's key of a whole word
	literalUnk int32  // the id whose tokens show the text that they stand for
	byteLevel  bool
	post       *template // nil: the texts one after the other
	trims      []trim
	decoder    decoder // nil: tokens joined by spaces
	added      *addedVocab
	truncation Truncation
	padding    Padding

	works sync.Pool
}

// Compile reads a tokenizer.json and gives its compiled form: flat tables that Open uses where they lie. Errors are those of
// FromJSON.
func Compile(tokenizerJSON []byte) ([]byte, error) {
	s, err := readSpec(tokenizerJSON)
	if err == nil {
		var b []byte
		if b, err = s.compile(); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("tokenizer.json: %w", err)
}

// Open makes a tokenizer of a compiled form, which it does not copy: it must stay as it is while the tokenizer is used, and
// may be memory that processes share. It must lie on a multiple of 4. Encodings do not point into it. A form that was
// tampered with gives wrong tokens, or an error, but nothing outside of it is read.
func Open(compiled []byte) (*Tokenizer, error) {
	t, err := open(compiled)
	if err != nil {
		return nil, fmt.Errorf("compiled tokenizer: %w", err)
	}
	return t, nil
}

// Compiled is the compiled form of the tokenizer, for Open. It must not be written to.
func (t *Tokenizer) Compiled() []byte { return t.core.compiled }

func open(b []byte) (*Tokenizer, error) {
	sections, err := unseal(b)
	if err != nil {
		return nil, err
	}
	if v, ok := words(b[8:12]); !ok || v[0] != CompiledVersion {
		return nil, fmt.Errorf("the memory is not aligned to 4 bytes, or this machine is not little-endian")
	}
	c := &core{compiled: b}
	if err := c.configure(sections[secConfig], sections[secCharsmap:]); err != nil {
		return nil, err
	}
	table := func(sec int) []uint32 {
		t, ok := words(sections[sec])
		if !ok {
			err = fmt.Errorf("section %d of %d bytes is no table of numbers", sec, len(sections[sec]))
		}
		return t
	}
	v := &c.vocab
	v.count = c.settings.Count
	v.flags = sections[secFlags]
	v.names = textTable{table(secNameEnds), sections[secNameBlob]}
	v.keys = v.names
	if c.byteLevel {
		v.keys = textTable{table(secKeyEnds), sections[secKeyBlob]}
	}
	v.table, v.named = powerOfTwo(table(secTable), 2), powerOfTwo(table(secNamed), 2)
	if v.count < 0 || v.count > len(v.flags) {
		return nil, fmt.Errorf("a vocabulary of %d tokens in a table of %d", v.count, len(v.flags))
	}
	tables := &modelTables{
		merges: powerOfTwo(table(secMerges), 4), glue: table(secGlue), trie: trie(table(secTrie)), scores: table(secScores),
	}
	list, texts := table(secAdded), textTable{table(secAddedEnds), sections[secAddedBlob]}
	raw, normalized := trie(table(secAddedRaw)), trie(table(secAddedNormalized))
	if err != nil {
		return nil, err
	}
	if err := c.buildModel(tables); err != nil {
		return nil, err
	}
	c.added = openAdded(c, list, texts, raw, normalized)
	return &Tokenizer{core: c, truncation: c.truncation, padding: c.padding}, nil
}

// powerOfTwo is the table if it has a power of two of slots of n words, and else nothing.
func powerOfTwo(t []uint32, n int) []uint32 {
	if slots := len(t) / n; len(t)%n != 0 || slots&(slots-1) != 0 {
		return nil
	}
	return t
}

// modelTables are the tables of a model but for its vocabulary.
type modelTables struct {
	merges, glue, scores []uint32
	trie                 trie
}

// buildModel makes the model of its settings and tables.
func (c *core) buildModel(t *modelTables) error {
	m := &c.settings
	unk := int32(-1)
	if m.Unk != nil {
		id, ok := c.vocab.id(*m.Unk)
		if !ok {
			if m.Kind != "WordLevel" {
				return fmt.Errorf("the unknown token %q is not in the vocabulary", *m.Unk)
			}
			id = -1
		}
		unk = id
	}
	c.literalUnk = -2
	switch m.Kind {
	case "WordLevel":
		c.model = &wordLevel{&c.vocab, unk}
	case "WordPiece":
		c.model = newWordPiece(t.trie, unk, m.MaxRunes)
	case "Unigram":
		if m.UnkID != nil {
			if unk = *m.UnkID; unk < 0 || int(unk) >= len(c.vocab.flags) {
				return fmt.Errorf("unk_id %d is not in the vocabulary of %d pieces", unk, len(c.vocab.flags))
			}
			c.literalUnk = unk
		}
		least := math.Inf(1)
		if m.Least != nil {
			least = *m.Least
		}
		c.model = &unigram{v: &c.vocab, pieces: t.trie, scores: t.scores, least: least, unk: unk, bytes: c.byteTokens(), single: m.Single}
	case "BPE":
		b := &bpe{v: &c.vocab, merges: t.merges, glue: t.glue, byteLevel: c.byteLevel, prefix: m.Prefix, suffix: m.Suffix, unk: unk,
			fuse: m.Fuse, ignoreMerges: m.IgnoreMerges, bytes: c.byteTokens()}
		if c.byteLevel {
			if err := b.byteTable(); err != nil {
				return err
			}
		}
		if !m.IgnoreMerges {
			c.suffix = m.Suffix
		}
		c.model = b
		if len(b.glue) == 1<<11 {
			c.cutter = b
		}
	default:
		return &UnsupportedError{fmt.Sprintf("unsupported model %q", m.Kind)}
	}
	return nil
}

// byteTable fills in the tokens of single bytes.
func (m *bpe) byteTable() error {
	var ids [256]int32
	for b := range ids {
		key := []byte{byte(b)}
		if ids[b] = m.v.find(key, hashBytes(key)); ids[b] < 0 && m.unk < 0 {
			return &UnsupportedError{fmt.Sprintf("a byte-level vocabulary without the byte 0x%02x and without an unknown token", b)}
		}
	}
	if m.prefix == "" && m.suffix == "" {
		m.single = &ids
	}
	return nil
}

// byteTokens are the ids of <0x00> to <0xFF>, -1 where there is none; nil without byte fallback.
func (c *core) byteTokens() *[256]int32 {
	if !c.settings.ByteFallback {
		return nil
	}
	ids := new([256]int32)
	for b := range ids {
		id, ok := c.vocab.id(byteToken(byte(b)))
		if !ok {
			id = -1
		}
		ids[b] = id
	}
	return ids
}
