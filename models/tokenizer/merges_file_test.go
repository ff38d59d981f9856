package tokenizer

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// olderFiles are the vocab.json and merges.txt that a tokenizer.json was made of; its added tokens that are not in the
// vocabulary stay behind.
func olderFiles(t *testing.T, path string) (vocab, merges []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := readSpec(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range s.added {
		s.vocab[a.content] = a.id
	}
	if vocab, err = json.Marshal(s.vocab); err != nil {
		t.Fatal(err)
	}
	lines := []string{"#version: 0.2"}
	for _, m := range s.merges {
		lines = append(lines, m[0]+" "+m[1])
	}
	return vocab, []byte(strings.Join(lines, "\n") + "\n")
}

// TestFromMerges: the older files give what the tokenizer.json of the same vocabulary gives.
func TestFromMerges(t *testing.T) {
	corpus := rows[row](t, golden.Tree(t, "tokenizers", "corpus.jsonl"))
	roberta, gpt2 := RobertaOptions(), GPT2Options()
	roberta.AddPrefixSpace = true
	for name, o := range map[string]MergesOptions{"bpe-roberta": roberta, "bpe-gpt2": gpt2} {
		t.Run(name, func(t *testing.T) {
			path := golden.Path(t, "tokenizers", name, "tokenizer.json")
			want := load(t, path)
			vocab, merges := olderFiles(t, path)
			got, err := FromMerges(vocab, merges, o)
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range corpus {
				if strings.Contains(c.Text, "<|tool|>") {
					continue // a token that the older files of GPT-2 do not know
				}
				texts := []string{c.Text, corpus[len(corpus)-1-i].Text}
				if strings.Contains(texts[1], "<|tool|>") {
					texts = texts[:1]
				}
				for n := 1; n <= len(texts); n++ {
					a, err := want.Encode(texts[0], texts[1:n]...)
					if err != nil {
						t.Fatal(err)
					}
					b, err := got.Encode(texts[0], texts[1:n]...)
					if err != nil || !reflect.DeepEqual(a, b) {
						t.Fatalf("%q: got %v, %v, want %v", texts[:n], b, err, a)
					}
					if x, y := want.Decode(a.IDs, true), got.Decode(b.IDs, true); x != y {
						t.Fatalf("decoded %q, want %q", y, x)
					}
				}
			}
		})
	}
}

func TestFromMergesRefuses(t *testing.T) {
	vocab := `{"a":0,"b":1,"ab":2}`
	for name, bad := range map[string][3]string{
		"no vocabulary":         {`[]`, "", "vocab.json: file.vocab: want an object"},
		"a line of three":       {vocab, "a b\na b c\n", `merges.txt: line 2: "a b c" is not two tokens`},
		"a line of one":         {vocab, "ab\n", `merges.txt: line 1: "ab" is not two tokens`},
		"not in the vocabulary": {vocab, "a c\n", `merges[0]: "c" is not in the vocabulary`},
		"bytes":                 {vocab, "\xff", "merges.txt: not UTF-8"},
		"vocabulary of bytes":   {"{\"\xff\":0}", "", "vocab.json: not UTF-8"},
		"bytes are missing":     {vocab, "a b\n", "a byte-level vocabulary without the byte 0x00"},
		"an id that is a text":  {`{"a":"b"}`, "", `the id of "a": found the string "b", want a whole number`},
	} {
		if _, err := FromMerges([]byte(bad[0]), []byte(bad[1]), MergesOptions{}); err == nil || !strings.Contains(err.Error(), bad[2]) {
			t.Errorf("%s: got %v, want %s", name, err, bad[2])
		}
	}
	if _, err := FromMerges([]byte(vocab), nil, GPT2Options()); err == nil || !strings.Contains(err.Error(), `the special token "<|endoftext|>" is missing`) {
		t.Errorf("got %v", err)
	}
}
