package tokenizer

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/golden"
)

// small is a tokenizer.json with a few pieces; the arguments replace members of it.
func small(members ...string) string {
	m := map[string]string{
		"version": `"1.0"`, "truncation": "null", "padding": "null",
		"added_tokens":   `[` + addedJSON(0, "[PAD]", "") + `,` + addedJSON(1, "[UNK]", "") + `,` + addedJSON(2, "[CLS]", "") + `,` + addedJSON(3, "[SEP]", "") + `]`,
		"normalizer":     `{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}`,
		"pre_tokenizer":  `{"type":"BertPreTokenizer"}`,
		"post_processor": `{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]}`,
		"decoder":        `{"type":"WordPiece","prefix":"##","cleanup":true}`,
		"model": `{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,
			"vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,"a":4,"b":5,"##a":6,"##b":7,"cafe":8,"##s":9,".":10,"中":11,"the":12}}`,
	}
	for i := 0; i+1 < len(members); i += 2 {
		m[members[i]] = members[i+1]
	}
	var b []string
	for _, k := range sortedKeys(m) {
		b = append(b, fmt.Sprintf("%q:%s", k, m[k]))
	}
	return "{" + strings.Join(b, ",") + "}"
}

// addedJSON is an added token, special unless changes say otherwise.
func addedJSON(id int, content, changes string) string {
	flags := `"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true`
	for _, c := range strings.Fields(changes) {
		flags = strings.Replace(flags, fmt.Sprintf("%q:false", c), fmt.Sprintf("%q:true", c), 1)
	}
	return fmt.Sprintf(`{"id":%d,"content":%q,%s}`, id, content, flags)
}

func mustJSON(t testing.TB, file string) *Tokenizer {
	t.Helper()
	tok, err := FromJSON([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestFromJSONRefuses(t *testing.T) {
	model := func(fields string) string { return `{"vocab":{"a":0,"[UNK]":1}` + fields + `}` }
	tests := []struct {
		name, file, want string
	}{
		{"empty", "", "want an object"},
		{"a list", "[]", "want an object"},
		{"cut off", small()[:100], "unexpected EOF"},
		{"something behind", small() + "}", "something follows"},
		{"not UTF-8", "{\"\xff\":1}", "not UTF-8"},
		{"version", small("version", `"2.0"`), `unsupported version "2.0"`},
		{"unknown member", small("extra", "1"), `unsupported field "extra"`},
		{"case of a member", strings.Replace(small(), `"decoder"`, `"Decoder"`, 1), `unsupported field "Decoder"`},
		{"member twice", strings.Replace(small(), `{`, `{"version":"1.0",`, 1), `duplicate key "version"`},
		{"no model", small("model", "null"), `"model" is missing`},

		{"normalizer", small("normalizer", `{"type":"NFKX"}`), `unsupported normalizer "NFKX"`},
		{"normalizer field", small("normalizer", `{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true,"x":1}`), `unsupported field "x"`},
		{"normalizer without flag", small("normalizer", `{"type":"BertNormalizer"}`), `"clean_text" is missing`},
		{"pre_tokenizer", small("pre_tokenizer", `{"type":"UnicodeScripts"}`), `unsupported pre_tokenizer "UnicodeScripts"`},
		{"pre_tokenizer sequence", small("pre_tokenizer", `{"type":"Sequence","pretokenizers":[{"type":"X"}]}`), `unsupported pre_tokenizer "X"`},
		{"post_processor", small("post_processor", `{"type":"Other"}`), `unsupported post_processor "Other"`},
		{"decoder", small("decoder", `{"type":"Other"}`), `unsupported decoder "Other"`},
		{"model type", small("model", `{"type":"MorphPiece"}`), `unsupported model "MorphPiece"`},
		{"merge of what is not there", small("model", model(`,"merges":["a b"]`)), `merges[0]: "b" is not in the vocabulary`},
		{"merge to what is not there", small("model", model(`,"merges":["a a"]`)), `merges[0]: "aa", which "a" and "a" make, is not`},
		{"merge of three", small("model", model(`,"merges":[["a","a","a"]]`)), `merges[0]: 3 tokens, want two`},
		{"merge of numbers", small("model", model(`,"merges":[1]`)), `merges[0]: found the number 1, want two tokens`},
		{"Unigram without pieces", small("model", `{"vocab":[],"unk_id":0}`), `unk_id 0 is not in the vocabulary of 0 pieces`},
		{"piece without score", small("model", `{"vocab":[["a"]],"unk_id":0}`), `vocab[0]: found a list, want a text and its score`},
		{"score that is a text", small("model", `{"vocab":[["a","b"]],"unk_id":0}`), `vocab[0]: found the string "b", want a number`},
		{"dropout", small("model", model(`,"merges":[],"dropout":0.5`)), `unsupported dropout 0.5`},
		{"regular expression", small("pre_tokenizer", `{"type":"Split","pattern":{"Regex":"[a-z]+"},"behavior":"Isolated","invert":false}`), `unsupported regular expression "[a-z]+"`},
		{"ByteLevel in the middle", small("pre_tokenizer", `{"type":"Sequence","pretokenizers":[{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true},{"type":"Whitespace"}]}`), `ByteLevel is not the last`},
		{"ByteLevel for WordPiece", small("pre_tokenizer", `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true}`), `unsupported pre_tokenizer "ByteLevel" with the model "WordPiece"`},
		{"character map", small("normalizer", `{"type":"Precompiled","precompiled_charsmap":"AAA"}`), `precompiled_charsmap`},
		{"character map that lies", small("normalizer", `{"type":"Precompiled","precompiled_charsmap":"/////w=="}`), `says that its table has 4294967295`},
		{"character map by number", small("normalizer", `{"type":"Precompiled","precompiled_charsmap":"@0"}`), `precompiled_charsmap`},
		{"template in front", small("post_processor", `{"type":"Sequence","processors":[{"type":"BertProcessing","sep":["[SEP]",3],"cls":["[CLS]",2]},{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true}]}`), `behind the one that adds`},
		{"text for a flag", small("normalizer", `{"type":"Strip","strip_left":"yes","strip_right":true}`), `file.normalizer.strip_left: found the string "yes", want true or false`},
		{"list for a text", small("decoder", `{"type":"WordPiece","prefix":["##"],"cleanup":true}`), `file.decoder.prefix: found a list, want a string`},
		{"text for a number", small("truncation", `{"max_length":"5","strategy":"LongestFirst","stride":0}`), `file.truncation.max_length: found the string "5", want a whole number`},
		{"nothing to infer from", small("model", model("")), `unsupported model "of unknown type"`},

		{"no unknown token", small("model", `{"type":"WordPiece","unk_token":"[X]","continuing_subword_prefix":"##","vocab":{"a":0}}`), `the unknown token "[X]" is not in the vocabulary`},
		{"id twice", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":0,"b":0}}`), `"a" and "b" both have the id 0`},
		{"token twice", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":0,"a":1}}`), `duplicate key "a"`},
		{"negative id", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":-1}}`), `the id of "a"`},
		{"null id", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":null}}`), `the id of "a"`},
		{"large id", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":2147483648}}`), `the id of "a": found the number 2147483648, want a whole number`},
		{"id over the limit", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":2147483647}}`), `"a" has the id 2147483647, the largest`},
		{"model field", small("model", `{"type":"WordPiece","unk_token":"a","continuing_subword_prefix":"##","vocab":{"a":0},"dropout":1}`), `unsupported field "dropout"`},

		{"added token with another id", small("added_tokens", `[`+addedJSON(7, "[CLS]", "")+`]`), `added token "[CLS]" has the id 7, it should be 2`},
		{"added token that leaves a hole", small("added_tokens", `[`+addedJSON(20, "new", "")+`]`), `added token "new" has the id 20, it should be 13`},
		{"added token twice", small("added_tokens", `[`+addedJSON(2, "[CLS]", "")+`,`+addedJSON(2, "[CLS]", "")+`]`), `added token "[CLS]" stands there twice`},
		{"empty added token", small("added_tokens", `[`+addedJSON(13, "", "")+`]`), `added token with the id 13 is empty`},
		{"added token without a flag", small("added_tokens", `[{"id":2,"content":"[CLS]"}]`), `"single_word" is missing`},

		{"template without input", small("post_processor", `{"type":"TemplateProcessing","single":[],"pair":[],"special_tokens":{}}`), `sequence A stands there 0 times, not 1`},
		{"template with B alone", small("post_processor", `{"type":"TemplateProcessing","single":[{"Sequence":{"id":"B","type_id":0}}],"pair":[],"special_tokens":{}}`), `single: sequence A stands there 0 times`},
		{"template sequence C", small("post_processor", `{"type":"TemplateProcessing","single":[{"Sequence":{"id":"C","type_id":0}}],"pair":[],"special_tokens":{}}`), `neither A nor B`},
		{"template token", small("post_processor", `{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"X","type_id":0}}],"pair":[],"special_tokens":{}}`), `special token "X" is not among`},
		{"template piece", small("post_processor", `{"type":"TemplateProcessing","single":[{"Other":{}}],"pair":[],"special_tokens":{}}`), `unsupported piece`},
		{"template lengths", small("post_processor", `{"type":"TemplateProcessing","single":[],"pair":[],"special_tokens":{"X":{"id":"X","ids":[1,2],"tokens":["X"]}}}`), `2 ids, but 1 tokens`},
		{"BertProcessing pair", small("post_processor", `{"type":"BertProcessing","sep":["[SEP]"],"cls":["[CLS]",2]}`), `sep: want a token and its id`},

		{"truncation strategy", small("truncation", `{"max_length":5,"strategy":"Middle","stride":0}`), `unsupported strategy "Middle"`},
		{"truncation direction", small("truncation", `{"max_length":5,"strategy":"LongestFirst","stride":0,"direction":"Up"}`), `unsupported direction "Up"`},
		{"truncation to nothing", small("truncation", `{"max_length":0,"strategy":"LongestFirst","stride":0}`), `0 is no length`},
		{"negative stride", small("truncation", `{"max_length":5,"strategy":"LongestFirst","stride":-1}`), `stride: -1 is not between`},
		{"padding strategy", small("padding", `{"strategy":"Longest","pad_id":0,"pad_type_id":0,"pad_token":""}`), `unsupported strategy "Longest"`},
		{"padding to a billion", small("padding", `{"strategy":{"Fixed":1000000000},"pad_id":0,"pad_type_id":0,"pad_token":""}`), `1000000000 is not between`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := FromJSON([]byte(tt.file)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %s", err, tt.want)
			}
		})
	}
}

func TestInferredModel(t *testing.T) {
	file := strings.Replace(small(), `"type":"WordPiece","unk_token"`, `"unk_token"`, 1)
	if file == small() {
		t.Fatal("nothing was replaced")
	}
	if e, err := mustJSON(t, file).Encode("abs"); err != nil || !slices.Equal(e.Tokens, []string{"[CLS]", "a", "##b", "##s", "[SEP]"}) {
		t.Errorf("got %v, %v", e, err)
	}
}

func TestInvalidUTF8(t *testing.T) {
	tok := mustJSON(t, small("normalizer", "null"))
	tests := []struct {
		name, text string
		tokens     []string
		runes      []Span
		bytes      []Span
	}{
		{"alone", "\xff", []string{"[UNK]"}, []Span{{0, 1}}, []Span{{0, 1}}},
		{"each byte counts", "a \xe4\xb8 b", []string{"a", "[UNK]", "b"}, []Span{{0, 1}, {2, 4}, {5, 6}}, []Span{{0, 1}, {2, 4}, {5, 6}}},
		{"after wide runes", "中 \xc0 .", []string{"中", "[UNK]", "."}, []Span{{0, 1}, {2, 3}, {4, 5}}, []Span{{0, 3}, {4, 5}, {6, 7}}},
		{"surrogate", "\xed\xa0\x80", []string{"[UNK]"}, []Span{{0, 3}}, []Span{{0, 3}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := tok.WithSpecialTokens(false).Encode(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(e.Tokens, tt.tokens) || !slices.Equal(e.Offsets, tt.runes) || !slices.Equal(e.Bytes, tt.bytes) {
				t.Errorf("got %v %v %v", e.Tokens, e.Offsets, e.Bytes)
			}
			again, err := tok.WithSpecialTokens(false).Encode(string([]rune(tt.text)))
			if err != nil || !slices.Equal(again.IDs, e.IDs) || !slices.Equal(again.Offsets, e.Offsets) {
				t.Errorf("U+FFFD itself gives %v %v, %v", again.Tokens, again.Offsets, err)
			}
		})
	}
	// clean_text removes U+FFFD, and so invalid bytes.
	if e, err := mustJSON(t, small()).Encode("a\xffb"); err != nil || !slices.Equal(e.Tokens, []string{"[CLS]", "a", "##b", "[SEP]"}) {
		t.Errorf("got %v, %v", e, err)
	}
}

func TestBatch(t *testing.T) {
	tok := mustJSON(t, small("padding", `{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"[PAD]"}`,
		"truncation", `{"max_length":6,"strategy":"LongestFirst","stride":0}`))
	e, err := tok.Encode("a b")
	if err != nil || len(e.IDs) != 9 {
		t.Fatalf("fixed padding gave %d tokens, %v", len(e.IDs), err)
	}
	p := tok.Padding()
	p.Strategy = PadLongest
	longest := tok.WithPadding(p).WithTruncation(Truncation{MaxLength: 8})
	batch, err := longest.EncodeBatch([]string{"a", "a b a b a b a b", ""})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]int32{{2, 4, 3, 0, 0, 0, 0, 0}, {2, 4, 5, 4, 5, 4, 5, 3}, {2, 3, 0, 0, 0, 0, 0, 0}}
	for i, e := range batch {
		if !slices.Equal(e.IDs, want[i]) {
			t.Errorf("text %d: %v, want %v", i, e.IDs, want[i])
		}
		mask := slices.Repeat([]int32{1}, 8)
		for j, id := range e.IDs {
			if id == 0 {
				mask[j] = 0
			}
		}
		if !slices.Equal(e.Mask, mask) {
			t.Errorf("text %d: mask %v, want %v", i, e.Mask, mask)
		}
	}
	if batch[1].Truncated != 2 || batch[0].Truncated != 0 {
		t.Errorf("truncated %d and %d", batch[1].Truncated, batch[0].Truncated)
	}
	pairs, err := longest.EncodePairs([][2]string{{"a", "b"}, {"the", "a b"}})
	if err != nil || !slices.Equal(pairs[0].IDs, []int32{2, 4, 3, 5, 3, 0}) || !slices.Equal(pairs[1].TypeIDs, []int32{0, 0, 0, 1, 1, 1}) {
		t.Errorf("got %+v, %v", pairs, err)
	}
	if !slices.Equal(pairs[1].Input, []int8{-1, 0, -1, 1, 1, -1}) {
		t.Errorf("inputs %v", pairs[1].Input)
	}
	if tok.Padding().Strategy != PadFixed || tok.Truncation().MaxLength != 6 {
		t.Error("a copy changed the original")
	}
	if out, err := longest.EncodeBatch(nil); err != nil || len(out) != 0 {
		t.Errorf("an empty batch: %v, %v", out, err)
	}
}

func TestEncodeErrors(t *testing.T) {
	tok := mustJSON(t, small())
	long := strings.Repeat("a ", 60_000)
	tests := []struct {
		name string
		tok  *Tokenizer
		text []string
		want string
	}{
		{"three texts", tok, []string{"a", "b", "c"}, "3 texts, at most two"},
		{"no room", tok.WithTruncation(Truncation{MaxLength: 2}), []string{"a", "b"}, "leaves no room for the 3 special tokens"},
		{"stride", tok.WithTruncation(Truncation{MaxLength: 6, Stride: 4}), []string{"a b a b a b"}, "the stride of 4 must be less than the 4 tokens"},
		{"only second of one", tok.WithTruncation(Truncation{MaxLength: 4, Strategy: OnlySecond}), []string{"a b a b"}, "there is none"},
		{"first is too short", tok.WithTruncation(Truncation{MaxLength: 6, Strategy: OnlyFirst}), []string{"a", "b b b b b b"}, "does not have more"},
		{"negative", tok.WithTruncation(Truncation{MaxLength: -1}), []string{"a"}, "is invalid"},
		{"padding", tok.WithPadding(Padding{Strategy: 9}), []string{"a"}, "is invalid"},
		{"huge padding", tok.WithPadding(Padding{Strategy: PadFixed, Length: MaxPadding + 1}), []string{"a"}, "is invalid"},
		{"overflow of two long texts", tok.WithOverflow(true).WithTruncation(Truncation{MaxLength: 24}), []string{long, long}, "overflowing parts"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.tok.Encode(tt.text[0], tt.text[1:]...); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %s", err, tt.want)
			}
		})
	}
	if _, err := tok.WithTruncation(Truncation{MaxLength: 1}).EncodeBatch([]string{"a"}); err == nil || !strings.HasPrefix(err.Error(), "text 0: ") {
		t.Errorf("a batch does not say which text: %v", err)
	}
}

func TestFromVocab(t *testing.T) {
	vocab := "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncafe\ncafé\nA\na\n##b\n"
	yes, no := true, false
	tests := []struct {
		name   string
		vocab  string
		change func(*VocabOptions)
		tokens []string
	}{
		{"uncased", vocab, func(o *VocabOptions) {}, []string{"[CLS]", "cafe", "a", "##b", "[SEP]"}},
		{"Windows line ends", strings.ReplaceAll(vocab, "\n", "\r\n"), func(o *VocabOptions) {}, []string{"[CLS]", "cafe", "a", "##b", "[SEP]"}},
		{"cased", vocab, func(o *VocabOptions) { o.Lowercase = false }, []string{"[CLS]", "café", "A", "##b", "[SEP]"}},
		{"cased without accents", vocab, func(o *VocabOptions) { o.Lowercase, o.StripAccents = false, &yes }, []string{"[CLS]", "cafe", "A", "##b", "[SEP]"}},
		{"uncased with accents", vocab, func(o *VocabOptions) { o.StripAccents = &no }, []string{"[CLS]", "café", "a", "##b", "[SEP]"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := DefaultVocabOptions()
			tt.change(&o)
			tok, err := FromVocab([]byte(tt.vocab), o)
			if err != nil {
				t.Fatal(err)
			}
			e, err := tok.Encode("café Ab")
			if err != nil || !slices.Equal(e.Tokens, tt.tokens) {
				t.Errorf("got %v, %v", e.Tokens, err)
			}
			if got := tok.Decode(e.IDs, true); got != strings.Join(tt.tokens[1:3], " ")+"b" {
				t.Errorf("decoded %q", got)
			}
			if id, ok := tok.ID("[MASK]"); id != 4 || !ok || tok.VocabSize() != 10 {
				t.Errorf("[MASK] is %d, %v, vocabulary of %d", id, ok, tok.VocabSize())
			}
		})
	}
	for name, bad := range map[string][2]string{
		"duplicate":  {vocab + "cafe\n", `lines 6 and 11 are both "cafe"`},
		"no [MASK]":  {strings.Replace(vocab, "[MASK]", "x", 1), `the special token "[MASK]" is missing`},
		"no [UNK]":   {strings.Replace(vocab, "[UNK]", "x", 1), `the unknown token "[UNK]"`},
		"bytes":      {vocab + "\xff", "not UTF-8"},
		"empty file": {"", "the unknown token"},
	} {
		if _, err := FromVocab([]byte(bad[0]), DefaultVocabOptions()); err == nil || !strings.Contains(err.Error(), bad[1]) {
			t.Errorf("%s: got %v, want %s", name, err, bad[1])
		}
	}
}

func TestVocabOptionsFromConfig(t *testing.T) {
	o, err := VocabOptionsFromConfig([]byte(`{"do_lower_case":false,"strip_accents":true,"tokenize_chinese_chars":false,"unk_token":{"content":"<unk>","lstrip":false},"sep_token":"<s>","model_max_length":512}`))
	want := DefaultVocabOptions()
	yes := true
	want.Lowercase, want.StripAccents, want.Chinese, want.Unk, want.Sep = false, &yes, false, "<unk>", "<s>"
	if err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, bad := range []string{"", "[]", `{"do_lower_case":1}`, `{"do_basic_tokenize":false}`, `{"never_split":["x"]}`, `{"pad_token":3}`} {
		if _, err := VocabOptionsFromConfig([]byte(bad)); err == nil {
			t.Errorf("took %s", bad)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	tok := load(t, golden.Tree(t, "tokenizers", "wordpiece-uncased", "tokenizer.json"))
	text := "The encoder's café in New York keeps 中文 zcstore."
	want, err := tok.Encode(text)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			own := tok.WithTruncation(Truncation{MaxLength: 3 + i})
			for range 50 {
				if e, err := tok.Encode(text); err != nil || !reflect.DeepEqual(e, want) {
					t.Errorf("got %v, %v", e, err)
				}
				if e, err := own.Encode(text); err != nil || len(e.IDs) != 3+i {
					t.Errorf("got %v, %v", e, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestLinear: a megabyte may cost per byte about what a kilobyte does. The factor of 20 leaves room for a busy
// machine; anything quadratic would be a thousand times slower.
func TestLinear(t *testing.T) {
	tok := mustJSON(t, small("added_tokens", `[`+addedJSON(0, "[PAD]", "")+`,`+addedJSON(13, " ", "rstrip")+`,`+addedJSON(14, "aaaaaaab", "lstrip")+`,`+addedJSON(15, "x", "single_word")+`]`))
	plain := mustJSON(t, small())
	for name, unit := range map[string]string{
		"words": "the cafes. ", "one word": "a", "spaces": " ", "marks": "\u0301\u0323", "ideographs": "中", "capital dotted i": "İ",
		"invalid": "\xff", "punctuation": ".", "special tokens": "[CLS]", "x": "xx x",
	} {
		for _, tok := range []*Tokenizer{tok, plain} {
			perByte := func(n int) float64 {
				text := strings.Repeat(unit, n/len(unit))
				best := time.Duration(1 << 62)
				for range max(1, min(20, 1<<16/n)) {
					start := time.Now()
					if _, err := tok.Encode(text); err != nil {
						t.Fatal(err)
					}
					best = min(best, time.Since(start))
				}
				return float64(best.Nanoseconds()) / float64(n)
			}
			small, large := perByte(1<<10), perByte(1<<20)
			if large > 20*small {
				t.Errorf("%s: %.0f ns a byte of a kilobyte, %.0f of a megabyte", name, small, large)
			}
			t.Logf("%s: %.0f and %.0f ns", name, small, large)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	tok := load(b, golden.Tree(b, "tokenizers", "wordpiece-uncased", "tokenizer.json"))
	text := "The store keeps one copy of every weight, and each worker reads it in place."
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tok.Encode(text); err != nil {
			b.Fatal(err)
		}
	}
}

// The rule for half a surrogate pair in tokenizer.json, which is no character: it reads as U+FFFD, as everywhere in Go. A whole
// pair is its character.
func TestLoneSurrogates(t *testing.T) {
	for escaped, want := range map[string]string{`\ud83d`: "\ufffd", `\ude00`: "\ufffd", `\ude00\ud83d`: "\ufffd\ufffd", `\ud83d\ude00`: "😀", `a\ud83db`: "a\ufffdb"} {
		tok := mustJSON(t, small("added_tokens", `[{"id":13,"content":"`+escaped+`","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}]`))
		if got, ok := tok.Token(13); !ok || got != want {
			t.Errorf("%s reads as %q, want %q", escaped, got, want)
		}
		enc, err := tok.Encode("the " + want)
		if err != nil || !slices.Contains(enc.IDs, 13) {
			t.Errorf("%s: %v, %v", escaped, enc, err)
		}
	}
}
