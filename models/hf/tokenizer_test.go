package hf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// oldFiles are the files of a family that has no tokenizer.json, by the names that they have in a directory.
func oldFiles(t *testing.T, family string) map[string]string {
	t.Helper()
	switch family {
	case "bert":
		return map[string]string{"vocab.txt": golden.Tree(t, "oldtokenizers", "bert", "vocab.txt")}
	case "roberta":
		return map[string]string{"vocab.json": golden.Tree(t, "oldtokenizers", "roberta", "vocab.json"), "merges.txt": golden.Tree(t, "oldtokenizers", "roberta", "merges.txt")}
	case "xlm-roberta":
		return map[string]string{sentencePieces[family]: golden.Path(t, "tokenizers", "unigram-xlmr", "spiece.model")}
	}
	return map[string]string{sentencePieces[family]: golden.Path(t, "tokenizers", "unigram-albert", "spiece.model")}
}

// Directories without a tokenizer.json give the ids that transformers gives.
func TestOldTokenizers(t *testing.T) {
	b, err := os.ReadFile(golden.Tree(t, "oldtokenizers", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var g struct {
		Texts []string
		Pair  [2]string
		Cases map[string]struct {
			ModelType   string          `json:"model_type"`
			Config      json.RawMessage `json:"config"`
			Fast        [][]int32
			Pair, Types []int32
		}
	}
	if err := json.Unmarshal(b, &g); err != nil {
		t.Fatal(err)
	}
	if len(g.Cases) != 9 || len(g.Texts) < 140 {
		t.Fatalf("%d cases, %d texts", len(g.Cases), len(g.Texts))
	}
	for name, c := range g.Cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for as, from := range oldFiles(t, c.ModelType) {
				b, err := os.ReadFile(from)
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, as), b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			var tc tokenizerConfig
			if err := json.Unmarshal(c.Config, &tc); err != nil {
				t.Fatal(err)
			}
			_, tj, err := tokenizerJSON(dir, &config{ModelType: c.ModelType}, &tc, c.Config)
			if err != nil {
				t.Fatal(err)
			}
			tok, err := tokenizer.FromJSON(tj)
			if err != nil {
				t.Fatal(err)
			}
			wrong := 0
			for i, text := range g.Texts {
				e, err := tok.Encode(text)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(e.IDs, c.Fast[i]) {
					if wrong++; wrong < 4 {
						t.Errorf("%q: %v, want %v", text, e.IDs, c.Fast[i])
					}
				}
			}
			if wrong > 0 {
				t.Errorf("%d of %d texts", wrong, len(g.Texts))
			}
			e, err := tok.Encode(g.Pair[0], g.Pair[1])
			if err != nil || !slices.Equal(e.IDs, c.Pair) {
				t.Errorf("pair: %v, want %v; %v", e.IDs, c.Pair, err)
			}
		})
	}
}

func TestOldTokenizersRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(name, b string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(family string, kind zcerr.Kind, says string) {
		t.Helper()
		_, _, err := tokenizerJSON(dir, &config{ModelType: family}, &tokenizerConfig{}, nil)
		if zcerr.KindOf(err) != kind || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v of kind %v, want %q", family, err, zcerr.KindOf(err), says)
		}
	}
	write("spm.model", "\xff\xff")
	refused("deberta-v2", zcerr.Invalid, "spm.model: SentencePiece model: ")
	write("vocab.json", "{}")
	write("merges.txt", "a b")
	refused("t5", zcerr.Unsupported, "vocab.json and merges.txt of a t5 are not supported")
	refused("roberta", zcerr.Invalid, "the special token")
	write("vocab.txt", "a\n")
	refused("mpnet", zcerr.Unsupported, "vocab.txt of a mpnet is not supported")
	refused("bert", zcerr.Invalid, `unknown token "[UNK]"`)
}
