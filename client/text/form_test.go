package text_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/procmem"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/proto/zcerr"
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
		defer func() { // its tables are no longer mapped, and nobody reads them
			_ = p.Close()
			if _, err := p.Tokenize(texts[:1]); !errors.Is(err, zcerr.Canceled) {
				t.Errorf("tokenizing after Close: %v", err)
			}
		}()
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
	// A prefault maps in what the form is computed on, and leaves out the plain bytes of the same weights.
	p, err := text.Open(ctx, c, "minilm", client.Form("packed"), client.Prefault(client.PrefaultWait))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	mapped := func(segs []client.Segment) (rss, size int) {
		for _, sg := range segs {
			maps, err := procmem.Mappings(os.Getpid(), sg.Inode)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range maps {
				rss, size = rss+m.RSS, size+m.Size
			}
		}
		return rss, size
	}
	if rss, size := mapped(p.Stored().FormSegments()); rss != size || size == 0 {
		t.Errorf("%d of %d bytes of forms are mapped in", rss, size)
	}
	// Of MiniLM, 43 MB of 91 are multiplied; a page that is used in part, and those around it, are used.
	if rss, size := mapped(p.Stored().Segments()); rss < 47_000_000 || rss > 52_000_000 {
		t.Errorf("%d of %d plain bytes are mapped in", rss, size)
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

// Opening MiniLM, which everybody has open already: the lease, the mappings, the modules and the tokenizer.
func BenchmarkOpen(b *testing.B) {
	dir := golden.Path(b, "minilm")
	socket, shmDir := testdaemon.Place(b)
	testdaemon.Start(b, socket, shmDir)
	c := testdaemon.Client(b, socket)
	put(b, c, "minilm", dir+"/model")
	for _, form := range []string{"plain", "packed", "bf16", "int8"} {
		b.Run(form, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := text.Open(ctx, c, "minilm", client.Form(form))
				if err != nil {
					b.Fatal(err)
				}
				_ = p.Close()
			}
		})
	}
}
