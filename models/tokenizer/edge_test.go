package tokenizer

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// TestEdges compares with what tokenizers 0.22.2 does in unusual settings: flags of added tokens, every truncation
// strategy and side, overflowing pairs, other post-processors, normalisers with parts switched off. testdata/edge.jsonl
// has a line with the settings, and the results under it; the vocabulary is that of wordpiece-uncased.
func TestEdges(t *testing.T) {
	type edge struct {
		row
		Conf  string
		JSON  map[string]json.RawMessage
		Texts []string
		Error bool
	}
	file, err := os.ReadFile(golden.Tree(t, "tokenizers", "wordpiece-uncased", "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	var base struct{ Model map[string]json.RawMessage }
	if err := json.Unmarshal(file, &base); err != nil {
		t.Fatal(err)
	}
	var tok *Tokenizer
	var name string
	equal := 0
	for i, e := range rows[edge](t, "testdata/edge.jsonl") {
		if e.Conf != "" {
			name = e.Conf
			var model map[string]json.RawMessage
			if err := json.Unmarshal(e.JSON["model"], &model); err != nil {
				t.Fatal(err)
			}
			model["vocab"] = base.Model["vocab"]
			e.JSON["model"], _ = json.Marshal(model)
			b, _ := json.Marshal(e.JSON)
			if tok, err = FromJSON(b); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			tok = tok.WithOverflow(true)
			continue
		}
		got, err := tok.Encode(e.Texts[0], e.Texts[1:]...)
		if e.Error != (err != nil) {
			t.Errorf("%s, line %d: %q: %v, want an error: %v", name, i+1, e.Texts, err, e.Error)
			continue
		}
		if e.Error {
			continue
		}
		checkEncoding(t, got, e.Texts...)
		if !compare(t, tok, got, e.row) {
			t.Errorf("%s, line %d: %q", name, i+1, e.Texts)
		}
		equal++
	}
	if equal < 180 {
		t.Errorf("only %d encodings", equal)
	}
	t.Logf("%d encodings equal", equal)
}
