package encoder

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/gpu/cpu"
)

var update = flag.Bool("update", false, "write docs/models.md anew, with what the goldens measure here")

const (
	page  = "../../docs/models.md"
	intro = `# Models

` + "`go test ./models/encoder -run ModelsPage -update`" + ` makes this page: from the table of families that programs use, and from a run of
the goldens. A model_type that is not here is refused by name.

The last column is how far hidden states of every layer, pooled states and logits are at most from those of transformers
4.57.6 with torch 2.15.0, and the largest value that they are compared with; the tests allow 2e-5 of that.

| model_type | task | class in architectures | largest difference |
|---|---|---|---|
`
	outro = `
Text that goes in and comes out: [text.md](text.md). Layers for models of your own are in models/nn.
`
)

// goldenOf names the golden of a family's head.
func goldenOf(t *testing.T) map[string]string {
	t.Helper()
	by := map[string]string{}
	for _, name := range slices.Concat(tinies, headsOnly) {
		c := readConfig(t, tinyDir(t, name)+"/config.json")
		by[c.family.name+"/"+string(c.task)] = name
	}
	return by
}

// The page says what the program has.
func TestModelsPage(t *testing.T) {
	by := goldenOf(t)
	var b strings.Builder
	b.WriteString(intro)
	for _, f := range families {
		for _, task := range f.tasks {
			class := f.class
			for s, of := range suffixes {
				if of == task {
					class += s
				}
			}
			name, ok := by[f.name+"/"+string(task)]
			if !ok {
				t.Errorf("%s has no golden", class)
				continue
			}
			c := againstGolden(t, cpu.Default(), tinyDir(t, name))
			delete(by, f.name+"/"+string(task))
			fmt.Fprintf(&b, "| %s | %s | %s | %.1e of %.1f |\n", f.name, task, class, c.diff, c.of)
		}
	}
	b.WriteString(outro)
	for head := range by {
		t.Errorf("the golden of %s is on no line", head)
	}
	if *update {
		if err := os.WriteFile(page, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	numbers := regexp.MustCompile(`[0-9.]+e-[0-9]+ of [0-9.]+`) // another processor has other ones, within the bound
	if numbers.ReplaceAllString(string(file), "N") != numbers.ReplaceAllString(b.String(), "N") {
		t.Errorf("%s is not what the program has: go test ./models/encoder -run ModelsPage -update", page)
	}
}
