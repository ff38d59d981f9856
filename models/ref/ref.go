// Package ref is how versions are named: name[:tag][@sha256:hex].
//
// A name is one or more parts with slashes between them, as on the Hugging Face hub: "minilm",
// "sentence-transformers/all-MiniLM-L6-v2". Tags move, digests do not. Without either, the tag is "latest".
package ref

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models/manifest"
)

// Latest is the tag of a reference that names none; every put to a bare name moves it.
const Latest = "latest"

// Hint is what to do about a reference that cannot be read.
const Hint = "write NAME, NAME:TAG or NAME@sha256:DIGEST, the digest with all its 64 hex digits: zcctl ls -o json has them"

const (
	maxName = 255
	maxPart = 128
)

// Ref is a parsed reference. Tag and Digest are empty when not given.
type Ref struct {
	Name   string
	Tag    string
	Digest *manifest.Digest
}

// Parse reads a reference. The error says which part is wrong and what is accepted.
func Parse(s string) (Ref, error) {
	var r Ref
	rest := s
	if at := strings.IndexByte(rest, '@'); at >= 0 {
		d, err := manifest.ParseDigest(rest[at+1:])
		if err != nil {
			return Ref{}, fmt.Errorf("reference %s: %w", quote(s), err)
		}
		r.Digest = &d
		rest = rest[:at]
	}
	if colon := strings.LastIndexByte(rest, ':'); colon >= 0 {
		r.Tag = rest[colon+1:]
		if err := checkPart(r.Tag); err != nil {
			return Ref{}, fmt.Errorf("reference %s: tag %s: %w", quote(s), quote(r.Tag), err)
		}
		rest = rest[:colon]
	}
	if len(rest) > maxName {
		return Ref{}, fmt.Errorf("reference %s: the name has %d bytes, at most %d are allowed", quote(s), len(rest), maxName)
	}
	for part := range strings.SplitSeq(rest, "/") {
		if err := checkPart(part); err != nil {
			return Ref{}, fmt.Errorf("reference %s: name %s: %w", quote(s), quote(rest), err)
		}
	}
	r.Name = rest
	return r, nil
}

// checkPart takes what is safe in a URL, a shell and a file name in any case: it begins with a letter or digit.
func checkPart(p string) error {
	if p == "" {
		return fmt.Errorf("a part is empty")
	}
	if len(p) > maxPart {
		return fmt.Errorf("a part has %d bytes, at most %d are allowed", len(p), maxPart)
	}
	for i := range len(p) {
		c := p[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '_' || c == '-'):
		default:
			return fmt.Errorf("byte %q at %d is not allowed (letters and digits, and after the first also . _ -)", c, i)
		}
	}
	return nil
}

// String writes the reference as Parse reads it.
func (r Ref) String() string {
	s := r.Name
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != nil {
		s += "@" + r.Digest.String()
	}
	return s
}

// Bare reports whether the reference is only a name.
func (r Ref) Bare() bool { return r.Tag == "" && r.Digest == nil }

func quote(s string) string {
	if len(s) > 128 {
		s = s[:128] + "..."
	}
	return strconv.QuoteToASCII(s)
}
