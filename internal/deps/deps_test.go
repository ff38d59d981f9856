// Package deps holds the rules about who may import whom, and nothing else: each rule stands beside its reason, and a
// broken one is reported with the chain of imports that breaks it.
//
// Imports of test files are not looked at. A rule that no package matches any more fails too, so that a renamed package
// does not silently lose its rule.
package deps

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/zcstore/zcstore"
	grpc   = "google.golang.org/grpc"
)

// A rule forbids imports. Patterns are paths in this module ("shm") or whole import paths; one that ends in "/..." matches
// the package before it and everything below.
type rule struct {
	from   string
	except []string // packages that from matches and the rule leaves out
	direct bool     // only what from imports itself; else also what its imports import
	never  []edge
}

type edge struct {
	to     string
	except []string // packages that to matches and that are fine
	reason string
}

var rules = []rule{
	{from: "cmd/zcstored", never: []edge{
		{to: "gpu/...", reason: "the daemon stores bytes and computes nothing; a backend brings a driver and its crashes into the process that everybody depends on"},
		{to: "models/nn", reason: "layers compute; the daemon does not"},
		{to: "models/encoder", reason: "the daemon knows no architecture, so a new one needs no new daemon"},
		{to: "models/arch", reason: "the table of architectures links every one of them"},
		// models/tokenizer is allowed: the daemon compiles tokenizer.json into tables that all workers share, by models/derive.
		{to: "models/text", reason: "the daemon makes tables of a tokenizer's file; texts are the worker's business"},
		{to: "models/pickle", reason: "the daemon reads rows of files, and no format that could be a program"},
		{to: "models/hf", reason: "source files are opened by the client, with the client's rights: the daemon must be no confused deputy"},
		{to: "client/...", reason: "the daemon is never its own client"},
	}},
	{from: "shm", never: []edge{
		{to: module + "/...", except: []string{"shm", "shm/region"}, reason: "shared memory is bytes: it must be readable, and provable, without knowing anything else of the project"},
	}},
	{from: "shm/tensor", never: []edge{
		{to: module + "/...", except: []string{"shm/tensor"}, reason: "the vocabulary stands below everything; an import here would be an import everywhere"},
		{to: "golang.org/...", reason: "only the standard library: pure data, no system calls"},
		{to: "google.golang.org/...", reason: "only the standard library"},
		{to: "github.com/...", except: []string{"shm/tensor"}, reason: "only the standard library"},
		{to: "go.uber.org/...", reason: "only the standard library"},
	}},
	{from: "shm/region", never: []edge{
		{to: module + "/...", except: []string{"shm/region"}, reason: "every reader of weights needs it, on both sides of the seam"},
		{to: "golang.org/...", reason: "only the standard library: it knows addresses and makes no system call"},
	}},
	{from: "gpu", never: []edge{
		{to: module + "/...", except: []string{"gpu", "shm/tensor", "shm/region", "models/pack"}, reason: "the seam between models and backends knows tensors and how their bytes lie, and neither side"},
	}},
	{from: "models/...", never: []edge{
		{to: "client/...", reason: "a model runs on weights from anywhere; client/pipeline is where models and daemon meet"},
		{to: "internal/store", reason: "models are in every worker; the store is in the daemon alone"},
		{to: "internal/server", reason: "models are in every worker; the server is in the daemon alone"},
		{to: "internal/daemon", reason: "models are in every worker; the daemon is a process of its own"},
	}},
	{from: "internal/store", never: []edge{
		// proto/zcerr is allowed, and with it grpc/codes and grpc/status, which it imports: they are numbers and messages.
		{to: grpc, reason: "the store is a plain Go interface; internal/server alone puts it on a socket"},
		{to: "proto/zcstore/...", reason: "the store does not think in wire messages; internal/server translates"},
		{to: "client/...", reason: "the store is below the socket, the client above it"},
		{to: "models/hf", reason: "no importer of foreign files in the daemon"},
	}},
	{from: "models/derive", never: []edge{
		{to: "gpu/...", reason: "recipes run in the daemon, which computes nothing"},
		{to: "models/nn", reason: "recipes know roles and names, not layers"},
		{to: "shm", reason: "recipes are pure: bytes in, bytes out"},
	}},
	{from: "internal/store", direct: true, never: []edge{
		{to: "models/pack", reason: "the store knows forms by their names; models/derive has the recipes"},
		{to: "models/tokenizer", reason: "the store knows forms by their names; models/derive has the recipes"},
		{to: grpc + "/...", reason: "errors get their gRPC code in proto/zcerr, in one place"},
		{to: "google.golang.org/protobuf/...", reason: "what is on the file system is not the wire's format"},
	}},
	{from: "client", never: []edge{
		{to: "gpu/...", reason: "attaching must not link a backend: tools, and workers that compute elsewhere, use client too; client/pipeline joins the two"},
		{to: "internal/store", reason: "the SDK speaks to a daemon and does not carry one"},
		{to: "internal/server", reason: "the SDK speaks to a daemon and does not carry one"},
		{to: "internal/daemon", reason: "the SDK speaks to a daemon and does not carry one"},
	}},
	{from: "client/...", never: []edge{
		{to: "internal/daemon", reason: "a worker never serves"},
		{to: "internal/store", reason: "a worker never stores"},
	}},
	{from: module + "/...", direct: true, never: []edge{
		{to: "cmd/...", reason: "a command is wiring; what two need is a package"},
		{to: "C", reason: "no cgo: the tree builds static with CGO_ENABLED=0, and faults in C code cannot be recovered"},
		{to: "testing", reason: "it registers flags in every program that links it; test kits are listed below"},
	}, except: []string{"gpu/gputest", "internal/store/storetest", "examples/internal/exampletest", "internal/testdaemon", "test/supervisor", "internal/testleak", "internal/golden", "internal/deps"}},
}

func TestImports(t *testing.T) {
	g := load(t)
	for _, r := range rules {
		matched := false
		for _, from := range g.ours {
			if !match(r.from, from) || matchAny(r.except, from) {
				continue
			}
			matched = true
			chains := g.reach(from, r.direct)
			for _, e := range r.never {
				if c := broken(chains, e); c != nil {
					t.Errorf("%s must not import %s: %s\n\t%s", short(from), e.to, e.reason, strings.Join(c, "\n\t-> "))
				}
			}
		}
		if !matched {
			t.Errorf("no package matches the rule for %s: was it renamed?", r.from)
		}
	}
}

// TestBroken proves that the checker finds what it looks for.
func TestBroken(t *testing.T) {
	p := func(s string) string { return module + "/" + s }
	g := &graph{imports: map[string][]string{
		p("cmd/zcstored"):       {p("internal/store"), "fmt"},
		p("internal/store"):     {p("models/safetensors"), grpc + "/codes"},
		p("models/safetensors"): {p("gpu/cpu")},
	}}
	for _, c := range []struct {
		from, to string
		except   []string
		direct   bool
		want     string // the chain, short; empty when nothing is broken
	}{
		{from: "cmd/zcstored", to: "gpu/...", want: "cmd/zcstored internal/store models/safetensors gpu/cpu"},
		{from: "cmd/zcstored", to: "gpu/...", direct: true},
		{from: "cmd/zcstored", to: "gpu"},
		{from: "cmd/zcstored", to: "gpu/...", except: []string{"gpu/cpu"}},
		{from: "internal/store", to: grpc},
		{from: "internal/store", to: grpc + "/...", direct: true, want: "internal/store " + grpc + "/codes"},
		{from: "cmd/zcstored", to: "fmt", want: "cmd/zcstored fmt"},
		{from: "models/safetensors", to: "gp/..."},
	} {
		var got []string
		for _, s := range broken(g.reach(p(c.from), c.direct), edge{to: c.to, except: c.except}) {
			got = append(got, short(s))
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s to %s (direct %v, except %v): got %q, want %q", c.from, c.to, c.direct, c.except, g, c.want)
		}
	}
}

// graph is who imports whom, without test files.
type graph struct {
	ours    []string
	imports map[string][]string
}

// load asks the go command for this module and everything it depends on.
func load(t *testing.T) *graph {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	// The go command caches a passed test by the files that the test itself opens. It cannot know what `go list` reads, so
	// look at every folder here: a changed file changes its folder's listing, and the test runs again.
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // somebody else's temporary file
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Imports,Standard", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	g := &graph{imports: map[string][]string{}}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
			Standard   bool
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Standard { // what the standard library imports breaks no rule of ours
			continue
		}
		g.imports[p.ImportPath] = p.Imports
		if p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/") {
			g.ours = append(g.ours, p.ImportPath)
		}
	}
	if len(g.ours) < 10 {
		t.Fatalf("go list found only %d packages of ours\n%s", len(g.ours), stderr.Bytes())
	}
	return g
}

// reach gives every package that from imports, each with the shortest chain that leads there.
func (g *graph) reach(from string, direct bool) map[string][]string {
	chains := map[string][]string{}
	for queue := [][]string{{from}}; len(queue) > 0; queue = queue[1:] {
		chain := queue[0]
		for _, to := range g.imports[chain[len(chain)-1]] {
			if chains[to] != nil || to == from {
				continue
			}
			chains[to] = append(slices.Clone(chain), to)
			if !direct {
				queue = append(queue, chains[to])
			}
		}
	}
	return chains
}

// broken gives the shortest chain that an edge forbids.
func broken(chains map[string][]string, e edge) []string {
	var worst []string
	for to, chain := range chains {
		if !match(e.to, to) || matchAny(e.except, to) {
			continue
		}
		if worst == nil || len(chain) < len(worst) || len(chain) == len(worst) && to < worst[len(worst)-1] {
			worst = chain
		}
	}
	return worst
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

func match(pattern, path string) bool {
	prefix, tree := strings.CutSuffix(pattern, "/...")
	for _, p := range []string{prefix, module + "/" + prefix} {
		if path == p || tree && strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return false
}

func short(path string) string { return strings.TrimPrefix(path, module+"/") }
