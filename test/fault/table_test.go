package fault

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	page  = "docs/reliability.md"
	cases = 87
)

// row is one case of the page.
type row struct {
	number int
	tests  []string
	state  string
}

var (
	rowLine  = regexp.MustCompile(`^\| (\d+) \| ([^|]+) \| ([ABC]) \| ([^|]*) \| ([^|]+) \|$`)
	testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(\w+ \*testing\.[TF]\)`)
	caseName = regexp.MustCompile(`^TestCase(\d\d)`)
)

// The page of cases must say what is in the tree: no promise without its test, and no test that nobody finds.
func TestThePageOfCasesIsTrue(t *testing.T) {
	root := filepath.Join("..", "..")
	b, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := testsOf(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range compare(string(b), tests) {
		t.Error(problem)
	}
}

// The check itself finds what it looks for.
func TestThePageIsChecked(t *testing.T) {
	good := ""
	for n := 1; n <= cases; n++ {
		good += fmt.Sprintf("| %d | a case | A | - | not built yet |\n", n)
	}
	line := func(n int) string { return fmt.Sprintf("| %d | a case | A | - | not built yet |\n", n) }
	tests := []string{"TestCase03Stopped", "TestOther"}
	with := strings.Replace(good, line(3), "| 3 | a case | B | `TestCase03Stopped` | pass |\n", 1)
	if got := compare(with, tests); len(got) != 0 {
		t.Errorf("a good page: %q", got)
	}
	for name, page := range map[string]string{
		"a row is missing":             strings.Replace(with, line(40), "", 1),
		"a row stands twice":           strings.Replace(with, line(40), line(40)+line(40), 1),
		"a test that is not there":     strings.Replace(with, line(5), "| 5 | a case | A | `TestGone` | pass |\n", 1),
		"pass without a test":          strings.Replace(with, line(5), "| 5 | a case | A | - | pass |\n", 1),
		"a case's test is in no row":   good,
		"a case's test in another row": strings.Replace(good, line(5), "| 5 | a case | A | `TestCase03Stopped` | pass |\n", 1),
		"a state nobody knows":         strings.Replace(with, line(5), "| 5 | a case | A | `TestOther` | surely |\n", 1),
		"skipped without a reason":     strings.Replace(with, line(5), "| 5 | a case | A | `TestOther` | skipped here |\n", 1),
	} {
		if len(compare(page, tests)) == 0 {
			t.Errorf("%s, and nothing is said", name)
		}
	}
}

// compare gives what is wrong with a page, each with what to do about it.
func compare(text string, tests []string) (problems []string) {
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	var rows []row
	for line := range strings.Lines(text) {
		m := rowLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		r := row{number: n, state: strings.TrimSpace(m[5])}
		for _, name := range testName.FindAllStringSubmatch(m[4], -1) {
			r.tests = append(r.tests, name[1])
		}
		rows = append(rows, r)
	}
	if len(rows) != cases {
		say("%s has %d rows, %d cases are to be there (a row: | 5 | what | A | `TestCase05Name` | pass |)", page, len(rows), cases)
	}
	listed := map[string]int{}
	for i, r := range rows {
		if r.number != i+1 {
			say("%s: row %d has the number %d", page, i+1, r.number)
		}
		for _, name := range r.tests {
			if !slices.Contains(tests, name) {
				say("%s: row %d names %s, which is in no _test.go file: mend the name, or take it away", page, r.number, name)
			}
			if m := caseName.FindStringSubmatch(name); m != nil {
				listed[name] = r.number
			}
		}
		reason, ok := strings.CutPrefix(r.state, "skipped here")
		switch {
		case r.state == "pass" && len(r.tests) == 0:
			say("%s: row %d passes without a test", page, r.number)
		case r.state == "pass", r.state == "not built yet", strings.HasPrefix(r.state, "not built yet: "):
		case ok && len(reason) > len(": "):
		default:
			say("%s: row %d has the state %q; there are: pass, not built yet[: what], skipped here: why", page, r.number, r.state)
		}
	}
	for _, name := range tests {
		m := caseName.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		n, _ := strconv.Atoi(m[1])
		if listed[name] != n {
			say("%s proves case %d: put `%s` into row %d of %s", name, n, name, n, page)
		}
	}
	return problems
}

// testsOf lists the test and fuzz functions of the tree.
func testsOf(root string) (names []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range testFunc.FindAllStringSubmatch(string(b), -1) {
			names = append(names, m[1])
		}
		return nil
	})
	if err == nil && len(names) < 100 {
		err = fmt.Errorf("only %d tests found below %s", len(names), root)
	}
	return names, err
}
