package ref

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0f", 32)
	for _, tt := range []struct{ in, name, tag string }{
		{"minilm", "minilm", ""},
		{"minilm:v2", "minilm", "v2"},
		{"sentence-transformers/all-MiniLM-L6-v2:prod", "sentence-transformers/all-MiniLM-L6-v2", "prod"},
		{"a@" + digest, "a", ""},
		{"a:b@" + digest, "a", "b"},
		{"0", "0", ""},
	} {
		r, err := Parse(tt.in)
		if err != nil || r.Name != tt.name || r.Tag != tt.tag || r.String() != tt.in {
			t.Errorf("Parse(%q) = %+v, %v", tt.in, r, err)
		}
	}
	for _, tt := range []struct{ in, want string }{
		{"", "empty"},
		{":v1", "empty"},
		{"a:", "tag"},
		{"a/", "empty"},
		{"/a", "empty"},
		{"a//b", "empty"},
		{"..", `'.' at 0`},
		{"a/../b", `'.' at 0`},
		{".hidden", `'.' at 0`},
		{"-flag", `'-' at 0`},
		{"a b", `' ' at 1`},
		{"a\x00", `'\x00' at 1`},
		{"a\n", `'\n' at 1`},
		{"ä", "at 0"},
		{"a:b:c", `':'`},
		{"a:b/c", `'/'`},
		{"a@sha256:12", "digest"},
		{"a@md5:" + strings.Repeat("0", 64), "digest"},
		{"a@" + strings.ToUpper(digest), "digest"},
		{strings.Repeat("x", 129), "129 bytes"},
		{strings.Repeat("xxxx/", 60) + "x", "301 bytes"},
		{"a:" + strings.Repeat("x", 129), "129 bytes"},
	} {
		if _, err := Parse(tt.in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%q) = %v, want an error with %q", tt.in, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a/b:c")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := Parse(s); err == nil && r.String() != s {
			t.Fatalf("%q came back as %q", s, r.String())
		}
	})
}
