package tokenizer

import (
	"fmt"
	"strings"
	"testing"
)

// A few bytes that would make gigabytes, or hours, are refused; what real files do is not.
func TestFilesThatBlowUpAreRefused(t *testing.T) {
	replace := func(n int) string {
		one := `{"type":"Replace","pattern":{"String":"a"},"content":"` + strings.Repeat("a", 100) + `"}`
		return `{"type":"Sequence","normalizers":[` + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + `]}`
	}
	level := func(vocab string) string { return `{"type":"WordLevel","unk_token":"u","vocab":{"u":0,` + vocab + `}}` }
	var many, added []string
	for i := range 200_000 {
		many = append(many, `{"type":"Strip","strip_left":true,"strip_right":true}`)
		if i < 20_000 {
			added = append(added, addedJSON(i+2, fmt.Sprint("q", i), "normalized"))
		}
	}
	for name, c := range map[string]struct {
		file, says string
	}{
		"an id far away":        {small("added_tokens", "[]", "post_processor", "null", "model", level(`"a":4194303`)), "of no token"},
		"a token that explodes": {small("added_tokens", "["+addedJSON(2, "aaaa", "normalized")+"]", "post_processor", "null", "normalizer", replace(40), "model", level(`"b":1`)), "could make"},
		"a long replacement": {small("added_tokens", "["+addedJSON(2, strings.Repeat("a", 1000), "normalized")+"]", "post_processor", "null",
			"normalizer", `{"type":"Replace","pattern":{"String":"a"},"content":"`+strings.Repeat("b", 1<<16)+`"}`, "model", level(`"b":1`)), "could make"},
		"normalizers without end": {small("added_tokens", "["+strings.Join(added, ",")+"]", "post_processor", "null",
			"normalizer", `{"type":"Sequence","normalizers":[`+strings.Join(many[:30_000], ",")+`]}`, "model", level(`"b":1`)), "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Compile([]byte(c.file)); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%.300v: %q is not in it", err, c.says)
			}
		})
	}
	real := small("added_tokens", "["+addedJSON(2, "<|a special token of some length|>", "normalized")+"]", "post_processor", "null",
		"normalizer", `{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Lowercase"},{"type":"Replace","pattern":{"String":" "},"content":"▁"},{"type":"Prepend","prepend":"▁"}]}`,
		"model", level(`"b":1`))
	if _, err := Compile([]byte(real)); err != nil {
		t.Error(err)
	}
}
