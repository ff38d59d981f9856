package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/socketpath"
	"github.com/zcstore/zcstore/internal/testleak"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm/tensor"
)

func TestMain(m *testing.M) {
	worker.Main()
	testscript.Main(&suite{M: m}, map[string]func(){
		"zcctl":  main,
		"holder": holder,
		"mute":   mute,
	})
}

// suite runs the tests, with the real daemon's command beside them, and looks for what they leave in shared memory.
type suite struct{ *testing.M }

var zcstored string // path of the command

func (s *suite) Run() int {
	dir, err := os.MkdirTemp("", "zcstored-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	zcstored = filepath.Join(dir, "zcstored")
	if out, err := exec.Command("go", "build", "-o", zcstored, "../zcstored").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build zcstored: %v\n%s", err, out)
		return 1
	}
	before := litter()
	code := testleak.Run(s.M)
	for _, p := range litter() {
		if !slices.Contains(before, p) {
			fmt.Fprintln(os.Stderr, "left behind:", p)
			code = 1
		}
	}
	return code
}

// litter lists what doctor makes in shared memory, and should remove.
func litter() []string {
	found, _ := filepath.Glob("/dev/shm/zcctl-doctor-*")
	return found
}

// wait is how long an event may take before a test fails.
const wait = 20 * time.Second

func TestScripts(t *testing.T) {
	root, err := os.MkdirTemp("/tmp", "zc") // short: a socket path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	golden, err := filepath.Abs("../../test/golden")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", WorkdirRoot: root, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			socket := filepath.Join(env.WorkDir, "s.sock")
			env.Setenv(socketpath.Env, socket)
			env.Setenv("GOLDEN", golden)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector sleeps a second at each exit
			env.Setenv("SEGMENTS", socketpath.SegmentDir(socket))
			env.Setenv("PATH", filepath.Dir(zcstored)+":"+env.Getenv("PATH"))
			env.Defer(func() { // the daemon, in the background, has ended
				if err := os.RemoveAll(socketpath.SegmentDir(socket)); err != nil {
					t.Error(err)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": await, "exit": exit, "field": field, "mksafetensors": mkSafetensors, "nobody": nobody,
			"puttree": putTree, "segments": segments, "dropsegments": dropSegments, "flipbits": flipBits,
			"breakcatalog": breakCatalog, "dropmemory": dropMemory, "flipblobs": flipBlobs, "resident": resident,
		},
	})
}

// exit N CMD ARG...: the command ends with exactly that code.
func exit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit N CMD ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var ee *exec.ExitError
		if !errors.As(err, &ee) {
			ts.Fatalf("%v", err)
		}
		got = ee.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// await PATH: waits for a file to be there, or a socket to answer.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await PATH")
	}
	path := ts.MkAbs(args[0])
	until(ts, path, func() bool {
		st, err := os.Stat(path)
		if err != nil || st.Mode()&os.ModeSocket == 0 {
			return err == nil
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

func until(ts *testscript.TestScript, what string, done func() bool) {
	for end := time.Now().Add(wait); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("%s did not come within %v", what, wait)
		}
	}
}

// nobody: waits until no lease is left.
func nobody(ts *testscript.TestScript, neg bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{Socket: ts.Getenv(socketpath.Env)})
	ts.Check(err)
	defer c.Close()
	until(ts, "the end of all leases", func() bool {
		holders, err := c.Holders(ctx, "")
		ts.Check(err)
		return len(holders) == 0
	})
}

// field [-stderr] PATH WANT: a field of the last JSON output, as in versions.0.tags.1, or versions.len. WANT ? is anything
// but null.
func field(ts *testscript.TestScript, neg bool, args []string) {
	from := "stdout"
	if len(args) > 0 && args[0] == "-stderr" {
		from, args = "stderr", args[1:]
	}
	if len(args) != 2 {
		ts.Fatalf("usage: field [-stderr] PATH WANT")
	}
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(from)))
	d.UseNumber()
	var v any
	ts.Check(d.Decode(&v))
	for key := range strings.SplitSeq(args[0], ".") {
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[key]
			if !ok {
				ts.Fatalf("%s: no %q in %v", args[0], key, in)
			}
			v = next
		case []any:
			if key == "len" {
				v = len(in)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(in) {
				ts.Fatalf("%s: no %s in a list of %d", args[0], key, len(in))
			}
			v = in[i]
		default:
			ts.Fatalf("%s: %q is inside of %v", args[0], key, v)
		}
	}
	got := fmt.Sprint(v)
	if same := got == args[1] || args[1] == "?" && v != nil; same == neg {
		ts.Fatalf("%s is %q, want %q (negated: %v)", args[0], got, args[1], neg)
	}
}

// mksafetensors FILE NAME=DTYPE:SHAPE:SEED...: a file of tensors, with bytes that follow from the seed.
func mkSafetensors(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mksafetensors FILE NAME=DTYPE:SHAPE:SEED...")
	}
	var tensors []safetensors.Named
	for _, a := range args[1:] {
		name, spec, _ := strings.Cut(a, "=")
		parts := strings.Split(spec, ":")
		if len(parts) != 3 {
			ts.Fatalf("%s is no NAME=DTYPE:SHAPE:SEED", a)
		}
		dt, err := tensor.ParseDType(parts[0])
		ts.Check(err)
		v := tensor.View{DType: dt}
		for d := range strings.SplitSeq(parts[1], ",") {
			n, err := strconv.Atoi(d)
			ts.Check(err)
			v.Shape = append(v.Shape, n)
		}
		size, err := tensor.SizeBytes(v.DType, v.Shape)
		ts.Check(err)
		seed, err := strconv.ParseUint(parts[2], 10, 64)
		ts.Check(err)
		r := rand.New(rand.NewPCG(seed, 1))
		v.Data = make([]byte, size)
		for i := range v.Data {
			v.Data[i] = byte(r.Uint32())
		}
		tensors = append(tensors, safetensors.Named{Name: name, View: v})
	}
	var b bytes.Buffer
	ts.Check(safetensors.Write(&b, tensors, nil))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// puttree REF: stores a tree with every kind of node, as pipeline.Put would.
func putTree(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: puttree REF")
	}
	linear := &manifest.Node{
		Kind: manifest.Module, Impl: "nn.Linear", Config: json.RawMessage(`{"in":2,"out":2}`),
		Params: []manifest.Param{{Name: "bias", Tensor: 1}, {Name: "weight", Tensor: 0}},
	}
	root := &manifest.Node{Kind: manifest.Dict, Impl: "struct", Items: []manifest.Item{
		{Key: "Decoder", Node: linear},
		{Key: "Heads", Node: &manifest.Node{Kind: manifest.List, Items: []manifest.Item{{Key: "0", Node: &manifest.Node{Kind: manifest.Ref, Ref: "Decoder"}}}}},
		{Key: "Labels", Node: &manifest.Node{Kind: manifest.Value, MediaType: "application/json", Value: []byte(`["a","b"]`)}},
		{Key: "Notes", Node: &manifest.Node{Kind: manifest.Value, MediaType: "text/plain", Value: []byte("a\x1b[31m\nb")}},
	}}
	data := strings.NewReader(strings.Repeat("0123456789abcdef", 2))
	d := &manifest.Draft{Root: root, Tensors: []manifest.DraftTensor{
		{Names: []string{"Decoder.weight"}, DType: tensor.F32, Shape: tensor.Shape{2, 2}, Role: tensor.Linear, Data: data},
		{Names: []string{"Decoder.bias"}, DType: tensor.F32, Shape: tensor.Shape{2}, Data: data},
	}}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{Socket: ts.Getenv(socketpath.Env)})
	ts.Check(err)
	defer c.Close()
	_, err = c.Put(ctx, args[0], d, client.PutOptions{})
	ts.Check(err)
}

// segments N: the daemon's directory has N segments, each with a name.
func segments(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: segments N")
	}
	got, err := filepath.Glob(filepath.Join(ts.Getenv("SEGMENTS"), "s-*"))
	ts.Check(err)
	if strconv.Itoa(len(got)) != args[0] {
		ts.Fatalf("%d segments are left, want %s", len(got), args[0])
	}
}

// dropsegments: removes the segments behind the daemon's back.
func dropSegments(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.Getenv("SEGMENTS"), "s-*"))
	ts.Check(err)
	for _, f := range files {
		ts.Check(os.Remove(f))
	}
}

// flipbits: changes the last byte of every segment behind the daemon's back.
func flipBits(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(filepath.Join(ts.Getenv("SEGMENTS"), "s-*"))
	ts.Check(err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		ts.Check(err)
		b[len(b)-1] ^= 1
		ts.Check(os.Chmod(name, 0o600))
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		ts.Check(err)
		_, err = f.WriteAt(b[len(b)-1:], int64(len(b)-1))
		ts.Check(errors.Join(err, f.Close()))
	}
}

// dropmemory: empties shared memory, as a reboot does.
func dropMemory(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.RemoveAll(ts.Getenv("SEGMENTS")))
}

// breakcatalog: changes a byte in the middle of the catalog.
func breakCatalog(ts *testscript.TestScript, neg bool, args []string) {
	name := filepath.Join(ts.Getenv("SEGMENTS"), "catalog")
	b, err := os.ReadFile(name)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(name, b, 0o600))
}

// flipblobs: changes the last byte of every large blob in ./data.
func flipBlobs(ts *testscript.TestScript, neg bool, args []string) {
	files, err := filepath.Glob(ts.MkAbs("data/blobs/sha256/*"))
	ts.Check(err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		ts.Check(err)
		if len(b) < 64<<10 {
			continue
		}
		b[len(b)-1] ^= 1
		ts.Check(os.Chmod(name, 0o600))
		ts.Check(os.WriteFile(name, b, 0o600))
	}
}

// resident NAME: waits until every version of a model is in memory.
func resident(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: resident NAME")
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := client.Dial(ctx, client.Options{Socket: ts.Getenv(socketpath.Env)})
	ts.Check(err)
	defer c.Close()
	until(ts, args[0]+" in memory", func() bool {
		versions, err := c.List(ctx, args[0], false)
		ts.Check(err)
		for _, v := range versions {
			if !v.Resident {
				return false
			}
		}
		return true
	})
}

// holder REF FILE attaches REF, writes FILE, and holds until it is interrupted.
func holder() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := client.Dial(ctx, client.Options{})
	if err == nil {
		_, err = c.Attach(ctx, os.Args[1])
	}
	if err == nil {
		err = os.WriteFile(os.Args[2], nil, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-ctx.Done()
	c.Close()
}

// mute SOCKET FILE takes connections and says nothing; it writes FILE for each.
func mute() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ln, err := net.Listen("unix", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_ = os.WriteFile(os.Args[2], nil, 0o600)
		}
	}()
	<-ctx.Done()
}
