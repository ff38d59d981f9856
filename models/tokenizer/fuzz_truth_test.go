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

// textMaker generates the texts of testdata/fuzz.py.
type textMaker struct {
	Words  []string
	Ranges [][2]int
	x      uint64
}

func (m *textMaker) next(n int) int {
	m.x = m.x*6364136223846793005 + 1442695040888963407
	return int(m.x >> 33 % uint64(n))
}

func (m *textMaker) text() string {
	var b strings.Builder
	word := func() string { return m.Words[m.next(len(m.Words))] }
	for range 1 + m.next(14) {
		switch k := m.next(10); {
		case k < 6:
			b.WriteString(word())
		case k < 8:
			r := m.Ranges[m.next(len(m.Ranges))]
			b.WriteRune(rune(r[0] + m.next(r[1]-r[0]+1)))
		case k == 8:
			w := word()
			b.WriteString(strings.Repeat(w, 1+m.next(5)))
		default:
			c := string(rune('a' + m.next(26)))
			b.WriteString(strings.Repeat(c, 1+m.next(3)))
		}
		if m.next(3) == 0 {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

func newTextMaker(t testing.TB) *textMaker {
	b, err := os.ReadFile("testdata/fragments.json")
	if err != nil {
		t.Fatal(err)
	}
	m := &textMaker{}
	if err := json.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// truthRow is what fuzz.py hashes.
func truthRow(tok *Tokenizer, e *Encoding) string {
	var ids, offsets, types []string
	for i, id := range e.IDs {
		ids = append(ids, fmt.Sprint(id))
		offsets = append(offsets, fmt.Sprintf("%d:%d", e.Offsets[i].Start, e.Offsets[i].End))
		types = append(types, fmt.Sprint(e.TypeIDs[i]))
	}
	return strings.Join([]string{
		strings.Join(ids, ","), strings.Join(offsets, ","), strings.Join(e.Tokens, "\x00"), strings.Join(types, ","),
		tok.Decode(e.IDs, true), tok.Decode(e.IDs, false),
	}, "|") + "\n"
}

// TestFuzzTruth holds 10,000 generated texts per tokenizer against tokenizers 0.22.2: ids, offsets, tokens, type ids and both
// decoded texts, by hashes of blocks of 100 texts.
func TestFuzzTruth(t *testing.T) {
	b, err := os.ReadFile("testdata/fuzz.json")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]string
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if len(want) != 15 {
		t.Fatalf("%d tokenizers", len(want))
	}
	for _, name := range sortedKeys(want) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newTextMaker(t)
			path := golden.Path
			if strings.HasPrefix(name, "wordpiece") {
				path = golden.Tree
			}
			tok := load(t, path(t, "tokenizers", name, "tokenizer.json"))
			for i, hash := range strings.Fields(want[name]) {
				m.x = uint64(1000003*i + len(name))
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
					if k%10 == 0 {
						checkEncoding(t, e, append(texts, "")...)
					}
					row := truthRow(tok, e)
					h.Write([]byte(row))
					if os.Getenv("FUZZ_DUMP") != "" {
						line, _ := json.Marshal([]any{texts, row})
						dump.Write(append(line, '\n'))
					}
				}
				if got := fmt.Sprintf("%x", h.Sum(nil))[:8]; got != hash {
					t.Errorf("block %d differs", i)
					if dir := os.Getenv("FUZZ_DUMP"); dir != "" {
						if err := os.WriteFile(fmt.Sprintf("%s/%s.%d", dir, name, i), []byte(dump.String()), 0o600); err != nil {
							t.Fatal(err)
						}
					}
					if dump.Len() > 0 && t.Failed() && i > 20 {
						t.FailNow()
					}
				}
			}
		})
	}
}
