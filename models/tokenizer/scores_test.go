package tokenizer

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"
)

// TestLibraryFloat holds numbers against what tokenizers 0.22.2 reads them as; testdata/scores.py asked it.
func TestLibraryFloat(t *testing.T) {
	b, err := os.ReadFile("testdata/scores.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases [][2]string
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	differ := 0
	for _, c := range cases {
		exact, err := strconv.ParseFloat(c[0], 64)
		if err != nil {
			t.Fatal(err)
		}
		want, err := strconv.ParseFloat(c[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		if got := libraryFloat([]byte(c[0]), exact); math.Float64bits(got) != math.Float64bits(want) {
			t.Errorf("%s: %v, want %v", c[0], got, want)
		}
		if exact != want {
			differ++
		}
	}
	if len(cases) < 250 || differ < 20 {
		t.Errorf("%d numbers, %d of them are not the nearest", len(cases), differ)
	}
}

// TestScoresDecide: two ways to cut a word whose scores have equal sums, but for the rounding of the library.
func TestScoresDecide(t *testing.T) {
	tok := mustJSON(t, small("added_tokens", "[]", "normalizer", "null", "pre_tokenizer", "null", "post_processor", "null", "decoder", "null",
		"model", `{"type":"Unigram","unk_id":0,"vocab":[["u",0],["x",-7.13580434467867],["yyyy",-9.313201598761271],["yyy",-11.03306679147948]]}`))
	e, err := tok.Encode("xyyyyyyy")
	if want := []int32{1, 2, 3}; err != nil || !slices.Equal(e.IDs, want) {
		t.Fatalf("got %v, %v, want %v", e, err, want)
	}
}
