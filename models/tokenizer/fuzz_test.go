package tokenizer

import (
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// needSeeds fails when the committed corpus of a fuzz target went missing.
func needSeeds(f *testing.F, target string) {
	f.Helper()
	if seeds, err := os.ReadDir("testdata/fuzz/" + target); err != nil || len(seeds) < 3 {
		f.Fatalf("%d committed seeds, %v", len(seeds), err)
	}
}

// FuzzEncode: no text panics, offsets lie within the text and do not go backwards, and decoding takes what it gives.
func FuzzEncode(f *testing.F) {
	needSeeds(f, "FuzzEncode")
	var toks []*Tokenizer
	for _, name := range []string{"wordpiece-uncased", "wordpiece-cased"} {
		toks = append(toks, load(f, golden.Tree(f, "tokenizers", name, "tokenizer.json")).WithOverflow(true))
	}
	toks = append(toks, mustJSON(f, small("normalizer", "null", "pre_tokenizer", "null", "post_processor", "null", "added_tokens", `[`+
		addedJSON(4, "a", "single_word")+`,`+addedJSON(13, " b", "rstrip lstrip")+`,`+addedJSON(14, " ", "rstrip")+`,`+addedJSON(15, "\u0301", "normalized")+`]`)))
	f.Add("The café [CLS] zcstore İ\u0301 New York", "中\xff x")
	f.Add("", " ")
	f.Fuzz(func(t *testing.T, a, b string) {
		if len(a)+len(b) > 1<<12 {
			return
		}
		for _, tok := range toks {
			for _, texts := range [][]string{{a}, {a, b}} {
				e, err := tok.Encode(texts[0], texts[1:]...)
				if err != nil {
					t.Fatal(err)
				}
				checkEncoding(t, e, texts...)
				tok.Decode(e.IDs, true)
				tok.Decode(e.IDs, false)
			}
		}
	})
}

// FuzzFromJSON: no file panics, and a tokenizer that was accepted encodes or says why not.
func FuzzFromJSON(f *testing.F) {
	needSeeds(f, "FuzzFromJSON")
	f.Add([]byte(small()))
	f.Add([]byte(small("truncation", `{"max_length":7,"strategy":"OnlySecond","stride":2,"direction":"Left"}`,
		"padding", `{"strategy":{"Fixed":9},"direction":"Left","pad_to_multiple_of":4,"pad_id":0,"pad_type_id":1,"pad_token":"[PAD]"}`)))
	f.Fuzz(func(t *testing.T, file []byte) {
		tok, err := FromJSON(file)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "tokenizer.json: ") {
				t.Fatal(err)
			}
			return
		}
		if p := tok.Padding(); p.Length > 1000 || p.MultipleOf > 1000 {
			tok = tok.WithPadding(Padding{})
		}
		tok = tok.WithOverflow(true)
		for _, texts := range [][]string{{"abs the café. [CLS]\xff"}, {"", "a"}, {"a b a b a b a b", "aabbaabb 中 a"}} {
			e, err := tok.Encode(texts[0], texts[1:]...)
			if err != nil {
				continue
			}
			checkEncoding(t, e, texts...)
			tok.Decode(e.IDs, true)
		}
	})
}
