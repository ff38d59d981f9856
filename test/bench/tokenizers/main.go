// Command tokenizers is the side of this project in the benchmark that bench.py runs: it encodes the texts of a folder on
// demand and says how long that took.
//
// A request is a line: the name of a tokenizer, the name of a file of texts, and what to do. "digest" answers a hash of
// the ids and offsets of all texts; "offsets N" and "ids N" encode them all N times, with and without offsets, and answer
// the nanoseconds and the number of allocations.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/zcstore/zcstore/models/tokenizer"
)

func main() {
	runtime.GOMAXPROCS(1)
	if err := serve(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(dir string, in io.Reader, out io.Writer) error {
	encoders := map[string]*tokenizer.Encoder{}
	texts := map[string][]string{}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var name, file, what string
		var times int
		fmt.Sscan(lines.Text(), &name, &file, &what, &times)
		if encoders[name] == nil {
			enc, err := open(filepath.Join(dir, name+".tokenizer.json"))
			if err != nil {
				return err
			}
			encoders[name] = enc
		}
		if texts[file] == nil {
			b, err := os.ReadFile(filepath.Join(dir, file+".json"))
			if err != nil {
				return err
			}
			var list []string
			if err := json.Unmarshal(b, &list); err != nil {
				return err
			}
			texts[file] = list
		}
		answer, err := run(encoders[name], texts[file], what, times)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, answer)
	}
	return lines.Err()
}

// open opens the compiled form, which is what workers do.
func open(path string) (*tokenizer.Encoder, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	compiled, err := tokenizer.Compile(b)
	if err != nil {
		return nil, err
	}
	t, err := tokenizer.Open(compiled)
	if err != nil {
		return nil, err
	}
	return t.WithTruncation(tokenizer.Truncation{}).NewEncoder(), nil
}

func run(enc *tokenizer.Encoder, texts []string, what string, times int) (string, error) {
	if what == "digest" {
		return digest(enc, texts)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	for range times {
		for _, t := range texts {
			var err error
			if what == "ids" {
				_, err = enc.IDs(t)
			} else {
				_, err = enc.Encode(t)
			}
			if err != nil {
				return "", err
			}
		}
	}
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return fmt.Sprint(took.Nanoseconds(), " ", after.Mallocs-before.Mallocs), nil
}

func digest(enc *tokenizer.Encoder, texts []string) (string, error) {
	h := sha256.New()
	for _, t := range texts {
		out, err := enc.Encode(t)
		if err != nil {
			return "", err
		}
		var ids, spans []string
		for i, id := range out.IDs {
			ids = append(ids, fmt.Sprint(id))
			spans = append(spans, fmt.Sprintf("%d:%d", out.Offsets[i].Start, out.Offsets[i].End))
		}
		fmt.Fprintf(h, "%s|%s\n", strings.Join(ids, " "), strings.Join(spans, " "))
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:16], nil
}
