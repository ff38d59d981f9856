// Command summary reads what `go test -json` prints and tells it to people: a line for each package as go test prints it,
// everything a failed test said, every skipped test with its reason, and the counts. It fails when a test failed, or when
// fewer test cases ran than .ci/min-cases says.
//
//	go test -json ./... | go run .ci/summary.go -min .ci/min-cases -counts FILE
//
// A case is a test or subtest without subtests of its own.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

type key struct{ pkg, test string }

type run struct {
	result   map[key]string   // pass, fail or skip
	output   map[key][]string // of tests; of the package itself under an empty test
	open     map[key]bool     // started, and not ended
	broken   map[string]bool  // packages that failed, whatever their tests did
	packages int
}

func main() {
	minFile := flag.String("min", "", "file with the least number of cases that must run")
	counts := flag.String("counts", "", "file to write \"PASSED FAILED SKIPPED\" to")
	flag.Parse()
	if err := summarize(os.Stdin, os.Stdout, *minFile, *counts); err != nil {
		fmt.Println("FAIL:", err)
		os.Exit(1)
	}
}

func summarize(in io.Reader, out io.Writer, minFile, countsFile string) error {
	r := &run{result: map[key]string{}, output: map[key][]string{}, open: map[key]bool{}, broken: map[string]bool{}}
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Fprintln(out, sc.Text()) // the go command's own words
			continue
		}
		r.take(e, out)
	}
	if err := sc.Err(); err != nil {
		return err
	}
	return r.report(out, minFile, countsFile)
}

func (r *run) take(e event, out io.Writer) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "run":
		r.open[k] = true
	case "output":
		r.output[k] = append(r.output[k], e.Output)
		if e.Test == "" && packageLine.MatchString(e.Output) {
			fmt.Fprint(out, e.Output)
		}
	case "pass", "fail", "skip":
		delete(r.open, k)
		if e.Test != "" {
			r.result[k] = e.Action
			if e.Action == "pass" {
				delete(r.output, k)
			}
			return
		}
		r.packages++
		if e.Action == "fail" {
			r.broken[e.Package] = true
		}
	}
}

// packageLine is what go test says of a whole package.
var packageLine = regexp.MustCompile(`^(ok|FAIL|---|\?)\s+\S+|^panic: `)

func (r *run) report(out io.Writer, minFile, countsFile string) error {
	parent := map[key]bool{} // tests with subtests
	failedChild := map[key]bool{}
	for k := range r.open { // the binary died under it
		r.result[k] = "fail"
	}
	for k, res := range r.result {
		for i := strings.LastIndexByte(k.test, '/'); i > 0; i = strings.LastIndexByte(k.test[:i], '/') {
			p := key{k.pkg, k.test[:i]}
			parent[p] = true
			failedChild[p] = failedChild[p] || res == "fail"
		}
	}
	var failed, skipped []key
	passed := 0
	explained := map[string]bool{}
	for k, res := range r.result {
		switch {
		case res == "fail":
			explained[k.pkg] = true
			if !failedChild[k] {
				failed = append(failed, k)
			}
		case parent[k]:
		case res == "skip":
			skipped = append(skipped, k)
		default:
			passed++
		}
	}
	for p := range r.broken {
		if !explained[p] { // it did not build, or TestMain failed
			failed = append(failed, key{pkg: p})
		}
	}
	byName := func(ks []key) {
		sort.Slice(ks, func(i, j int) bool {
			return ks[i].pkg < ks[j].pkg || ks[i].pkg == ks[j].pkg && ks[i].test < ks[j].test
		})
	}
	byName(failed)
	byName(skipped)
	ran := passed
	for _, k := range failed {
		if k.test != "" {
			ran++
		}
	}
	for _, k := range failed {
		fmt.Fprintf(out, "\nFAILED %s %s\n%s", k.pkg, k.test, strings.Join(r.output[k], ""))
		if k.test != "" {
			fmt.Fprint(out, strings.Join(r.output[key{pkg: k.pkg}], "")) // a panic, a data race, what TestMain found left behind
		}
	}
	if len(skipped) > 0 {
		fmt.Fprintln(out, "\nSkipped:")
	}
	for _, k := range skipped {
		fmt.Fprintf(out, "  %s %s: %s\n", k.pkg, k.test, reason(r.output[k]))
	}
	fmt.Fprintf(out, "\ntests: %d passed, %d failed, %d skipped\n", passed, len(failed), len(skipped))
	if countsFile != "" {
		if err := os.WriteFile(countsFile, fmt.Appendf(nil, "%d %d %d\n", passed, len(failed), len(skipped)), 0o600); err != nil {
			return err
		}
	}
	var errs []error
	if r.packages == 0 {
		errs = append(errs, errors.New("go test reported no package"))
	}
	if len(failed) > 0 {
		errs = append(errs, fmt.Errorf("%d tests failed", len(failed)))
	}
	if minFile != "" {
		least, err := readMin(minFile)
		switch {
		case err != nil:
			errs = append(errs, err)
		case ran < least:
			errs = append(errs, fmt.Errorf("%d test cases ran, %s asks for %d: tests were lost, or are skipped now", ran, minFile, least))
		case ran > least+least/10:
			fmt.Fprintf(out, "%d test cases ran; %s still says %d: raise it\n", ran, minFile, least)
		}
	}
	return errors.Join(errs...)
}

// reason is what a test said when it was skipped.
func reason(output []string) string {
	var said []string
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- SKIP") {
			continue
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return "no reason given"
	}
	return strings.Join(said, " ")
}

func readMin(file string) (int, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		return strconv.Atoi(line)
	}
	return 0, fmt.Errorf("%s has no number", file)
}
