package tokenizer

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

func load(t testing.TB, path string) *Tokenizer {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := FromJSON(b)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// rows reads JSON lines.
func rows[T any](t testing.TB, path string) []T {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []T
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var r T
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("%s, row %d: %v", path, len(out), err)
		}
		out = append(out, r)
	}
	return out
}

// row is one line of the golden files; each has some of the fields.
type row struct {
	ID             int
	Text           string
	A, B           int
	IDs            []int32 `json:"ids"`
	Offsets        [][2]int
	Tokens         []string
	Decoded        *string
	DecodedSpecial *string   `json:"decoded_special"`
	Mask           []int32   `json:"attention_mask"`
	TypeIDs        []int32   `json:"type_ids"`
	Special        []int32   `json:"special_tokens_mask"`
	Overflowing    [][]int32 `json:"overflowing"`
	Truncated      *bool
}

func spans(pairs [][2]int) []Span {
	out := make([]Span, 0, len(pairs))
	for _, p := range pairs {
		out = append(out, Span{p[0], p[1]})
	}
	return out
}

// compare holds an encoding against a golden row and reports whether they are equal.
func compare(t *testing.T, tok *Tokenizer, e *Encoding, want row) bool {
	t.Helper()
	same := true
	check := func(what string, got, want any, isSet bool) {
		t.Helper()
		if isSet && !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", what, got, want)
			same = false
		}
	}
	check("ids", e.IDs, want.IDs, true)
	check("offsets", e.Offsets, spans(want.Offsets), want.Offsets != nil)
	if want.Tokens == nil && want.Decoded != nil { // the vocabulary entries; pairs have no tokens
		for _, id := range want.IDs {
			s, _ := tok.Token(id)
			want.Tokens = append(want.Tokens, s)
		}
	}
	check("tokens", e.Tokens, want.Tokens, want.Tokens != nil)
	if want.Mask == nil {
		want.Mask = slices.Repeat([]int32{1}, len(want.IDs))
	}
	check("mask", e.Mask, want.Mask, true)
	check("type ids", e.TypeIDs, want.TypeIDs, want.TypeIDs != nil)
	check("special mask", e.SpecialMask, want.Special, want.Special != nil)
	if want.Decoded != nil {
		check("decoded", tok.Decode(e.IDs, true), *want.Decoded, true)
		full := want.Decoded
		if want.DecodedSpecial != nil {
			full = want.DecodedSpecial
		}
		check("decoded with special tokens", tok.Decode(e.IDs, false), *full, true)
		var overflowing [][]int32
		for _, o := range e.Overflowing {
			overflowing = append(overflowing, o.IDs)
		}
		check("overflowing", overflowing, want.Overflowing, true)
	}
	return same
}

// goldenTokenizer holds every text and pair of a golden tokenizer against what tokenizers 0.22.2 made of it.
func goldenTokenizer(t *testing.T, path func(...string) string, name string) {
	corpus := rows[row](t, path("tokenizers", "corpus.jsonl"))
	fromJSON := load(t, path("tokenizers", name, "tokenizer.json"))
	reopened, err := Open(fromJSON.Compiled())
	if err != nil {
		t.Fatal(err)
	}
	texts, pairs := 0, 0
	for _, tok := range []*Tokenizer{fromJSON.WithOverflow(true), reopened.WithOverflow(true)} {
		for _, w := range rows[row](t, path("tokenizers", name, "golden.jsonl")) {
			text := corpus[w.ID].Text
			e, err := tok.Encode(text)
			if err != nil {
				t.Fatal(err)
			}
			checkEncoding(t, e, text, "")
			if !compare(t, tok, e, w) {
				t.Fatalf("text %d: %q", w.ID, text)
			}
			texts++
		}
		for _, w := range rows[row](t, path("tokenizers", name, "pairs.jsonl")) {
			a, b := corpus[w.A].Text, corpus[w.B].Text
			e, err := tok.Encode(a, b)
			if err != nil {
				t.Fatal(err)
			}
			checkEncoding(t, e, a, b)
			if !compare(t, tok, e, w) {
				t.Fatalf("pair %d %d: %q %q", w.A, w.B, a, b)
			}
			pairs++
		}
	}
	if texts < 1200 || pairs < 150 {
		t.Errorf("only %d texts and %d pairs", texts, pairs)
	}
	t.Logf("%d texts and %d pairs equal", texts, pairs)
}

func TestGoldenTokenizers(t *testing.T) {
	for _, name := range []string{"wordpiece-uncased", "wordpiece-cased"} {
		t.Run(name, func(t *testing.T) {
			goldenTokenizer(t, func(p ...string) string { return golden.Tree(t, p...) }, name)
		})
	}
}

func TestGoldenKinds(t *testing.T) {
	for _, name := range []string{
		"bpe-clip", "bpe-gemma", "bpe-gpt2", "bpe-llama2", "bpe-llama2-first", "bpe-llama3", "bpe-qwen2", "bpe-roberta",
		"unigram-albert", "unigram-bytes", "unigram-t5", "unigram-xlmr", "wordlevel",
	} {
		t.Run(name, func(t *testing.T) {
			goldenTokenizer(t, func(p ...string) string { return golden.Path(t, p...) }, name)
		})
	}
}

func TestGoldenIntents(t *testing.T) {
	tok := load(t, golden.Tree(t, "intents", "tokenizer.json"))
	want := rows[row](t, golden.Tree(t, "intents", "golden.jsonl"))
	if len(want) != 300 {
		t.Fatalf("%d rows", len(want))
	}
	for _, w := range want {
		e, err := tok.Encode(w.Text)
		if err != nil {
			t.Fatal(err)
		}
		if !compare(t, tok, e, w) {
			t.Fatalf("text %d: %q", w.ID, w.Text)
		}
	}
}

func TestGoldenMiniLM(t *testing.T) {
	want := rows[row](t, golden.Path(t, "minilm", "texts.jsonl"))
	// sentence-transformers puts its own length and padding in the place of the file's.
	fromJSON := load(t, golden.Path(t, "minilm", "model", "tokenizer.json"))
	if tr, p := fromJSON.Truncation(), fromJSON.Padding(); tr.MaxLength != 128 || p.Strategy != PadFixed || p.Length != 128 || p.Token != "[PAD]" {
		t.Errorf("truncation %+v and padding %+v of the file", tr, p)
	}
	config, err := os.ReadFile(golden.Path(t, "minilm", "model", "tokenizer_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	vocab, err := os.ReadFile(golden.Path(t, "minilm", "model", "vocab.txt"))
	if err != nil {
		t.Fatal(err)
	}
	options, err := VocabOptionsFromConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	fromVocab, err := FromVocab(vocab, options)
	if err != nil {
		t.Fatal(err)
	}
	for name, tok := range map[string]*Tokenizer{"tokenizer.json": fromJSON, "vocab.txt": fromVocab} {
		tok := tok.WithTruncation(Truncation{MaxLength: 256}).WithPadding(Padding{})
		cut := 0
		for _, w := range want {
			e, err := tok.Encode(w.Text)
			if err != nil {
				t.Fatal(err)
			}
			checkEncoding(t, e, w.Text, "")
			if !compare(t, tok, e, w) || *w.Truncated != (e.Truncated > 0) {
				t.Fatalf("%s, text %d: %q, truncated by %d", name, w.ID, w.Text, e.Truncated)
			}
			if e.Truncated > 0 {
				cut++
			}
		}
		if tok.VocabSize() != 30522 {
			t.Errorf("vocabulary of %d", tok.VocabSize())
		}
		t.Logf("%s: %d texts equal, %d of them truncated", name, len(want), cut)
	}
}

// checkEncoding holds what every encoding promises.
func checkEncoding(t *testing.T, e *Encoding, texts ...string) {
	t.Helper()
	n := len(e.IDs)
	if len(e.TypeIDs) != n || len(e.Mask) != n || len(e.SpecialMask) != n || len(e.Tokens) != n || len(e.Offsets) != n || len(e.Bytes) != n || len(e.Input) != n {
		t.Fatal("the slices differ in length")
	}
	last := map[int8]Span{}
	for i, at := range e.Bytes {
		in := e.Input[i]
		if in < 0 {
			if at != (Span{}) || e.Offsets[i] != (Span{}) || e.SpecialMask[i] != 1 {
				t.Fatalf("added token %d has the span %v", i, at)
			}
			continue
		}
		text, before := texts[in], last[in]
		// A token of white space alone may be trimmed to nothing at its end.
		if at.Start < before.Start && before.Start < before.End || at.End < before.End || at.End < at.Start || at.End > len(text) {
			t.Fatalf("token %d: bytes %v after %v, text of %d", i, at, before, len(text))
		}
		last[in] = at
		// Converting to runes counts an invalid byte as one.
		if from, to := len([]rune(text[:at.Start])), len([]rune(text[:at.End])); e.Offsets[i] != (Span{from, to}) {
			t.Fatalf("token %d: code points %v, bytes %v are %d %d", i, e.Offsets[i], at, from, to)
		}
	}
	for i := range e.Overflowing {
		checkEncoding(t, &e.Overflowing[i], texts...)
	}
}
