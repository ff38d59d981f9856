package tokenizer

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/golden"
)

// TestComponents holds settings that the golden tokenizers do not have against tokenizers 0.22.2; testdata/components.py
// says which.
func TestComponents(t *testing.T) {
	type line struct {
		Line   int
		Name   string
		Patch  map[string]json.RawMessage
		Hashes string
	}
	lines := rows[line](t, "testdata/components.json")
	if len(lines) < 35 {
		t.Fatalf("%d lines", len(lines))
	}
	for _, l := range lines {
		patch, _ := json.Marshal(l.Patch)
		t.Run(fmt.Sprintf("%d %s", l.Line, l.Name), func(t *testing.T) {
			t.Parallel()
			path := golden.Path
			if strings.HasPrefix(l.Name, "wordpiece") {
				path = golden.Tree
			}
			file, err := os.ReadFile(path(t, "tokenizers", l.Name, "tokenizer.json"))
			if err != nil {
				t.Fatal(err)
			}
			var parts map[string]json.RawMessage
			if err := json.Unmarshal(file, &parts); err != nil {
				t.Fatal(err)
			}
			for key, raw := range l.Patch {
				parts[key] = raw
			}
			file, _ = json.Marshal(parts)
			tok, err := FromJSON(file)
			if err != nil {
				if strings.Contains(err.Error(), "ByteLevel is not the last") {
					return // refused by name
				}
				t.Fatalf("%s: %v", patch, err)
			}
			m := newTextMaker(t)
			for b, hash := range strings.Fields(l.Hashes) {
				m.x = uint64(1000003*b + 7919*l.Line + 1)
				h := sha256.New()
				var dump strings.Builder
				for k := range 100 {
					texts := []string{m.text()}
					if k%10 == 9 {
						texts = append(texts, m.text())
					}
					e, err := tok.Encode(texts[0], texts[1:]...)
					if err != nil {
						t.Fatalf("%q: %v", texts, err)
					}
					row := truthRow(tok, e)
					h.Write([]byte(row))
					line, _ := json.Marshal([]any{texts, row})
					dump.Write(append(line, '\n'))
				}
				if got := fmt.Sprintf("%x", h.Sum(nil))[:8]; got != hash {
					t.Errorf("block %d differs: %s", b, patch)
					if dir := os.Getenv("FUZZ_DUMP"); dir != "" {
						if err := os.WriteFile(fmt.Sprintf("%s/%d.%d", dir, l.Line, b), []byte(dump.String()), 0o600); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		})
	}
}
