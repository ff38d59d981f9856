package text_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/models/tokenizer"
)

// largeVocabulary is how many entries the tokenizers below have.
const largeVocabulary = 150_000

// word is the n-th of as many different words as one wants, of one to five letters or so.
func word(n int) string {
	var b []byte
	for ; ; n = n/26 - 1 {
		b = append(b, byte('a'+n%26))
		if n < 26 {
			slices.Reverse(b)
			return string(b)
		}
	}
}

// largeTokenizers are a tokenizer.json of each kind of model.
func largeTokenizers() map[string]string {
	out := map[string]string{}
	file := func(kind, model string) {
		out[kind] = `{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Whitespace"},` +
			`"post_processor":null,"decoder":null,"model":` + model + `}`
	}
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	vocab, pieces := map[string]int{"[UNK]": 0}, [][]any{{"[UNK]", 0}}
	var merges []string
	for n := range largeVocabulary - 1 {
		w := word(n)
		vocab[w] = n + 1
		pieces = append(pieces, []any{w, -float64(n) / 1000})
		if len(w) > 1 {
			merges = append(merges, w[:len(w)-1]+" "+w[len(w)-1:])
		}
	}
	file("WordPiece", `{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":`+encode(vocab)+`}`)
	file("BPE", `{"type":"BPE","unk_token":"[UNK]","vocab":`+encode(vocab)+`,"merges":`+encode(merges)+`}`)
	file("Unigram", `{"type":"Unigram","unk_id":0,"vocab":`+encode(pieces)+`}`)
	return out
}

// putTokenizer stores a module that has a tokenizer and nothing else.
func putTokenizer(t testing.TB, c *client.Client, name, file string) {
	t.Helper()
	d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage(`{}`), Items: []manifest.Item{
		{Key: "tokenizer.json", Node: &manifest.Node{Kind: manifest.Value, MediaType: "application/octet-stream", Value: []byte(file)}},
	}}}
	if _, err := c.Put(ctx, name, d, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func value(m *client.Model) table.Node { return m.Table().Root().Children()[0] }

// openTables attaches a tokenizer as a worker does.
func openTables(t testing.TB, c *client.Client, name string) (*tokenizer.Tokenizer, *client.Model) {
	t.Helper()
	m, err := c.Attach(ctx, name, client.Tokenizers())
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.TokenizerTables(value(m))
	if err != nil || b == nil {
		t.Fatalf("%d bytes of tables, %v", len(b), err)
	}
	tok, err := tokenizer.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return tok, m
}

// A vocabulary of 150,000 entries is opened where it lies: nothing of it becomes memory of the worker's own, and the tokens are
// those of the file.
func TestLargeVocabularyIsOpenedInPlace(t *testing.T) {
	socket, shmDir := testdaemon.Place(t)
	testdaemon.Start(t, socket, shmDir)
	c := testdaemon.Client(t, socket)
	for kind, file := range largeTokenizers() {
		t.Run(kind, func(t *testing.T) {
			putTokenizer(t, c, kind, file)
			begin := time.Now()
			_, m := openTables(t, c, kind)
			made := time.Since(begin)
			b, err := m.TokenizerTables(value(m))
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begin = time.Now()
			tok, err := tokenizer.Open(b)
			took := time.Since(begin)
			runtime.ReadMemStats(&after)
			if err != nil {
				t.Fatal(err)
			}
			private := after.TotalAlloc - before.TotalAlloc
			t.Logf("tokenizer.json %.1f MB, tables %.1f MB; first attach %v, open %v and %d bytes", float64(len(file))/1e6, float64(len(b))/1e6, made, took, private)
			if private > 1<<20 {
				t.Errorf("opening took %d bytes of memory", private)
			}
			want, err := tokenizer.FromJSON([]byte(file))
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for n := 1; n < largeVocabulary; n = n*3 + 1 {
				fmt.Fprintf(&text, "%s %sq ", word(n), word(n/2))
			}
			g, err := tok.Encode(text.String())
			if err != nil {
				t.Fatal(err)
			}
			w, err := want.Encode(text.String())
			if err != nil || !slices.Equal(g.IDs, w.IDs) || len(g.IDs) < 20 {
				t.Errorf("tokens %v, want %v (%v)", g.IDs, w.IDs, err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Attach and open of a vocabulary of 150,000 entries, which the daemon has compiled, and beside it what every worker would do
// without: read the file.
func BenchmarkOpenLargeVocabulary(b *testing.B) {
	socket, shmDir := testdaemon.Place(b)
	testdaemon.Start(b, socket, shmDir)
	c := testdaemon.Client(b, socket)
	for kind, file := range largeTokenizers() {
		putTokenizer(b, c, kind, file)
		_, m := openTables(b, c, kind)
		defer m.Close()
		tables, err := m.TokenizerTables(value(m))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(kind+"/attach and open", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, m := openTables(b, c, kind)
				_ = m.Close()
			}
		})
		b.Run(kind+"/open", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tokenizer.Open(tables); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(kind+"/FromJSON", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tokenizer.FromJSON([]byte(file)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
