package text_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testdaemon"
)

// Weights that the daemon packed give the very answers of those that were put, bit for bit, and are computed on where they lie.
func TestPackedAnswersAreThePlainOnes(t *testing.T) {
	dir := golden.Path(t, "minilm")
	socket, shmDir := testdaemon.Place(t)
	testdaemon.Start(t, socket, shmDir)
	c := testdaemon.Client(t, socket)
	put(t, c, "minilm", dir+"/model")
	var texts []string
	for _, r := range lines[struct{ Text string }](t, dir+"/texts.jsonl") {
		texts = append(texts, r.Text)
	}
	if testing.Short() {
		texts = texts[:40]
	}
	embed := func(form string) [][]float32 {
		p, err := text.Open(ctx, c, "minilm", client.Form(form))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if p.Stored().Form() != form {
			t.Errorf("asked for %s, got %s", form, p.Stored().Form())
		}
		got, err := p.Embed(ctx, texts)
		if err != nil {
			t.Fatal(err)
		}
		var out [][]float32
		for _, g := range got {
			out = append(out, g.Vector)
		}
		return out
	}
	plain, packed := embed("plain"), embed("packed")
	for i := range texts {
		if !slices.Equal(plain[i], packed[i]) {
			t.Fatalf("text %d differs", i)
		}
	}
	v, err := c.Show(ctx, "minilm")
	if err != nil {
		t.Fatal(err)
	}
	var forms []string
	for _, f := range v.Forms {
		forms = append(forms, fmt.Sprint(f.Form, len(f.Segments)))
	}
	if want := []string{"packed1", "tokenizer1"}; !slices.Equal(forms, want) {
		t.Errorf("in memory are %v, want %v", forms, want)
	}
}
