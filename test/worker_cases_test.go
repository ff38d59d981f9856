package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// rawAttach attaches over the raw channel. The connection is the lease; the caller closes both.
func rawAttach(t testing.TB, socket, ref string) (*net.UnixConn, []*os.File) {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "ZCR1 attach %s\n", ref); err != nil {
		t.Fatal(err)
	}
	var line []byte
	var files []*os.File
	for !bytes.HasSuffix(line, []byte("\n")) {
		buf := make([]byte, 4096)
		n, more, err := fdpass.RecvFDs(conn, buf, 16)
		if err != nil {
			t.Fatal(err)
		}
		line, files = append(line, buf[:n]...), append(files, more...)
	}
	if len(files) < 2 {
		t.Fatalf("%d descriptors: %s", len(files), line)
	}
	return conn, files
}

// forker attaches over the raw channel and leaves the connection to a child that outlives it.
var forker = worker.Define("e2e.forker", func(_ context.Context, socket string) (worker.Actor[string, int], error) {
	return worker.Func[string, int](func(_ context.Context, ref string) (int, error) {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			return 0, err
		}
		if _, err := fmt.Fprintf(conn, "ZCR1 attach %s\n", ref); err != nil {
			return 0, err
		}
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || strings.Contains(line, "error") {
			return 0, fmt.Errorf("%s: %v", line, err)
		}
		f, err := conn.File()
		if err != nil {
			return 0, err
		}
		child := exec.Command("sleep", "600")
		child.ExtraFiles = []*os.File{f}
		err = child.Start()
		if err != nil {
			return 0, err
		}
		return child.Process.Pid, nil
	}), nil
})

// The process that attached dies, a child of it still has the connection: the lease stays until that has gone too.
func TestCase04LeaseOfForkedClient(t *testing.T) {
	p := start(t)
	put(t, p, "m", tutorial(8, 8, 8, 8, 1))
	w, err := worker.Start(ctx, forker, p.socket, worker.Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	parent := w.Workers()[0].PID
	child, err := w.Call(ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(child, syscall.SIGKILL)
	leases := func() int {
		h, err := p.c.Holders(ctx, "m")
		if err != nil {
			t.Fatal(err)
		}
		return len(h)
	}
	if n := leases(); n != 1 {
		t.Fatalf("%d leases", n)
	}
	if err := syscall.Kill(parent, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until it is reaped
		if err := syscall.Kill(parent, 0); errors.Is(err, syscall.ESRCH) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the parent does not die")
		}
	}
	for range 50 { // longer than the death of a client takes to be seen
		if leases() != 1 {
			t.Fatal("the lease went with the parent, and its child still holds it")
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := syscall.Kill(child, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for leases() != 0 {
		if time.Since(begin) > 5*time.Second {
			t.Fatal("the lease stays after its last holder")
		}
	}
	t.Logf("the lease was gone %v after its last holder", time.Since(begin))
}

// Two clients have file descriptions of their own: what one does to its descriptor changes nothing for the other.
func TestCase18DescriptorsAreIndependent(t *testing.T) {
	for _, backing := range []string{"shm", "memfd"} {
		t.Run(backing, func(t *testing.T) {
			p := &place{}
			p.socket, p.dir = testdaemon.Place(t)
			p.daemon = testdaemon.StartProcess(t, p.socket, p.dir, testdaemon.EnvBacking+"="+backing)
			p.c = testdaemon.Client(t, p.socket)
			model := tutorial(8, 8, 8, 8, 1)
			put(t, p, "m", model)
			one, mine := rawAttach(t, p.socket, "m")
			defer one.Close()
			two, theirs := rawAttach(t, p.socket, "m")
			defer two.Close()
			defer func() {
				for _, f := range append(mine, theirs...) {
					f.Close()
				}
			}()
			for i, f := range mine {
				fd, other := int(f.Fd()), int(theirs[i].Fd())
				if _, err := unix.Seek(fd, 77, 0); err != nil {
					t.Fatal(err)
				}
				before, err := unix.FcntlInt(uintptr(other), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, before^(unix.O_NONBLOCK|unix.O_APPEND)); err != nil {
					t.Fatal(err)
				}
				if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
					t.Logf("flock: %v", err)
				}
				if at, err := unix.Seek(other, 0, 1); err != nil || at != 0 {
					t.Errorf("file %d: the other's offset is %d, %v", i, at, err)
				}
				if flags, err := unix.FcntlInt(uintptr(other), unix.F_GETFL, 0); err != nil || flags != before || flags&unix.O_ACCMODE != unix.O_RDONLY {
					t.Errorf("file %d: the other's flags are %#x, were %#x, %v", i, flags, before, err)
				}
			}
			// With everything locked by one client, the daemon and others work as before.
			var got Tutorial
			c := testdaemon.Client(t, p.socket)
			m, err := loadTutorial(c, "m", &got)
			if err != nil {
				t.Fatal(err)
			}
			if sumOf(got.modules()) != sumOf(model.modules()) {
				t.Error("other weights")
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if v, err := p.c.Verify(ctx, "m"); err != nil || len(v.Damaged) != 0 {
				t.Errorf("verify: %v, %v", v, err)
			}
			if _, err := p.c.Remove(ctx, "m", true); err != nil {
				t.Error(err)
			}
			put(t, p, "m", model)
		})
	}
}

// A hundred thousand tensors are as many views on a handful of mappings, far from vm.max_map_count.
func TestCase45ManyTensorsFewMappings(t *testing.T) {
	n := 100_000
	if testrace.Enabled {
		n = 5_000
	}
	p := start(t)
	if _, err := p.c.Put(ctx, "many", many(n), client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	before := lines(t, "/proc/self/maps")
	m, views, err := viewsOf(p.c, "many", n)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	mine, err := mapsBelow(p.dir, "/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	if len(mine) != 1+len(m.Segments()) {
		t.Errorf("%d mappings for a table and %d segments", len(mine), len(m.Segments()))
	}
	for i := 0; i < len(views); i += 37 {
		v, row, err := m.Lookup(fmt.Sprintf("layer.%06d", i))
		if err != nil {
			t.Fatal(err)
		}
		if want := []byte{byte(i), byte(i >> 8), byte(i >> 16), 1}; !bytes.Equal(v.Data, want) || !v.Shape.Equal(tensor.Shape{2, 2}) {
			t.Fatalf("tensor %d: %v %v, row %v", i, v.Data, v.Shape, row)
		}
	}
	t.Logf("%d tensors: %d mappings before, %d with them (vm.max_map_count is 65,530 by default)", n, before, lines(t, "/proc/self/maps"))

	// Case 49's other half: what lists it does not grow with the tensors.
	begin := time.Now()
	all, err := p.c.List(ctx, "", true)
	if err != nil || len(all) != 1 || all[0].Tensors != uint32(n) {
		t.Errorf("list: %v, %v", all, err)
	}
	t.Logf("listed in %v", time.Since(begin))
}

func lines(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("\n"))
}

// Listing, showing, attaching and reading every name of 100,000 tensors: each within a second. A race build only shows that it works.
func TestCase49HundredThousandTensors(t *testing.T) {
	n := 100_000
	if testrace.Enabled {
		n = 5_000
	}
	p := start(t)
	if _, err := p.c.Put(ctx, "many", many(n), client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"list": func() error { _, err := p.c.List(ctx, "", false); return err },
		"show": func() error { _, err := p.c.Show(ctx, "many"); return err },
		"attach": func() error {
			m, _, err := viewsOf(p.c, "many", n)
			if err == nil {
				err = m.Close()
			}
			return err
		},
		"names": func() error {
			m, err := p.c.Attach(ctx, "many")
			if err != nil {
				return err
			}
			defer m.Close()
			return m.Read(func() error {
				root := m.Table().Root()
				for k := range root.Params() {
					if name, row, err := root.Param(k); err != nil || name != fmt.Sprintf("layer.%06d", k) || row >= n {
						return fmt.Errorf("parameter %d is %q in row %d: %v", k, name, row, err)
					}
				}
				return nil
			})
		},
	} {
		best := time.Hour
		for range 3 { // the machine is shared
			begin := time.Now()
			if err := f(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			best = min(best, time.Since(begin))
		}
		t.Logf("%s: %v", name, best)
		if best > time.Second && !testrace.Enabled {
			t.Errorf("%s took %v", name, best)
		}
	}
}

// Versions without tensors, and tensors without elements or dimensions, are stored and come back; nothing maps 0 bytes. More
// dimensions than the limit are refused.
func TestCase51EmptyTensorsAndRanks(t *testing.T) {
	p := start(t)
	deep := func(rank int) tensor.Shape {
		s := make(tensor.Shape, rank)
		for i := range s {
			s[i] = 1
		}
		return s
	}
	draft := func(shapes ...tensor.Shape) *manifest.Draft {
		d := &manifest.Draft{Root: &manifest.Node{Kind: manifest.Module, Impl: "test", Config: json.RawMessage("{}")}}
		for i, s := range shapes {
			n, _ := s.Elements()
			name := fmt.Sprintf("t%d", i)
			d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{name}, DType: tensor.F32, Shape: s, Data: bytes.NewReader(make([]byte, 4*n))})
			d.Root.Params = append(d.Root.Params, manifest.Param{Name: name, Tensor: i})
		}
		return d
	}
	for name, shapes := range map[string][]tensor.Shape{
		"none":   nil,
		"empty":  {{0}, {3, 0, 5}, {0, 0}},
		"scalar": {{}},
		"rank64": {deep(64)},
		"all":    {{}, {0}, {2, 3}, deep(64), {1 << 40, 0}},
	} {
		if _, err := p.c.Put(ctx, name, draft(shapes...), client.PutOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m, err := p.c.Attach(ctx, name, client.Prefault(client.PrefaultWait))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		views, err := m.Views()
		if err != nil || len(views) > len(shapes) { // equal tensors are one row
			t.Errorf("%s: %d views, %v", name, len(views), err)
		}
		for i, s := range shapes {
			v, _, err := m.Lookup(fmt.Sprintf("t%d", i))
			size, _ := tensor.SizeBytes(tensor.F32, s)
			if err != nil || !v.Shape.Equal(s) || len(v.Data) != size {
				t.Errorf("%s: %v came back as %v with %d bytes, %v", name, s, v.Shape, len(v.Data), err)
			}
		}
		if err := m.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]tensor.Shape{"rank 65": deep(65), "negative": {-1}, "overflow": {1 << 40, 1 << 40}} {
		d := draft(tensor.Shape{})
		d.Tensors[0].Shape = s
		if _, err := p.c.Put(ctx, "refused", d, client.PutOptions{}); !errors.Is(err, zcerr.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// hostileNames are names that must not become one, in a few hundred forms.
func hostileNames() []string {
	names := []string{"", " ", ".", "..", "/", "//", "a/", "/a", "a//b", "a/./b", "a/../b", "../a", "a/..", "./a", "~", "~root", "-a", "--all",
		"a\\b", "a:b:c", "a:", ":a", "a@", "@a", "a@sha256:", "a@sha256:xyz", "a@sha256:" + strings.Repeat("0", 63), "a@sha256:" + strings.Repeat("0", 65),
		"a@md5:" + strings.Repeat("0", 32), strings.Repeat("a", 129), strings.Repeat("a/", 128) + "a", strings.Repeat("a", 256), strings.Repeat("a", 1<<16),
		"a:" + strings.Repeat("t", 129), "a b", "a\tb", "a*", "?", "[a]", "{a}", "$(id)", "`id`", "a;b", "a|b", "a&b", "a>b", "a'b", "a\"b", "a%00", "a#b", "a!b", "a,b", "a=b", "a+b", "a^b"}
	for b := range 0x20 { // every control character, at the start, inside and at the end
		names = append(names, string(rune(b))+"a", "a"+string(rune(b))+"b", "a"+string(rune(b)))
	}
	for _, r := range []rune{0x7f, 0x85, 0xa0, 0xad, 0x200b, 0x200c, 0x200d, 0x200e, 0x200f, 0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2060, 0x2066, 0x2067, 0x2068,
		0x2069, 0xfeff, 0xfffd, 0x00e9, 0x0301, 0x0430, 0x03bf, 0xff41, 0x2024, 0x2025, 0x2215, 0x2044, 0x1f600, 0xe0041, 0x10ffff} {
		names = append(names, "a"+string(r)+"b", string(r))
	}
	names = append(names, "e\u0301", "\u00e9") // the same letter, composed and not
	for _, bad := range []string{"\xff", "\xc0\xaf", "\xed\xa0\x80", "a\x80", "\xf5\x80\x80\x80", "\xff\n"} {
		names = append(names, bad, "a"+bad+"b")
	}
	return names
}

// None of over 200 hostile names gets through any call that takes one, and none leaves a trace.
func TestCase52HostileNames(t *testing.T) {
	names := hostileNames()
	if len(names) < 200 {
		t.Fatalf("only %d names", len(names))
	}
	p := start(t)
	put(t, p, "good", tutorial(4, 4, 4, 4, 1))
	files := len(filesOf(t, p.dir))
	for _, n := range names {
		calls := map[string]func() error{
			"put":    func() error { _, err := p.c.Put(ctx, n, marked(1), client.PutOptions{}); return err },
			"attach": func() error { _, err := p.c.Attach(ctx, n); return err },
			"show":   func() error { _, err := p.c.Show(ctx, n); return err },
			"tag":    func() error { _, err := p.c.Tag(ctx, "good", n, true); return err },
			"source": func() error { _, err := p.c.Tag(ctx, n, "good:x", true); return err },
			"rm":     func() error { _, err := p.c.Remove(ctx, n, true); return err },
			"verify": func() error { _, err := p.c.Verify(ctx, n); return err },
		}
		for op, f := range calls {
			err := f()
			if !errors.Is(err, zcerr.Invalid) {
				t.Errorf("%s %q: %v", op, n, err)
				continue
			}
			for _, r := range err.Error() {
				if r < 0x20 || r == 0x7f || r == 0x202e || r == 0x200b {
					t.Errorf("%s %q: the error would do something to a terminal: %q", op, n, err.Error())
				}
			}
		}
		// Past the SDK's own check, on the raw channel.
		if !strings.Contains(n, "\n") && len(n) < 1000 {
			conn, err := net.Dial("unix", p.socket)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "ZCR1 attach %s\n", n)
			line, err := bufio.NewReader(conn).ReadString('\n')
			conn.Close()
			if err != nil || !strings.Contains(line, `"kind":"invalid"`) {
				t.Errorf("raw attach %q: %s, %v", n, line, err)
			}
		}
	}
	if all, err := p.c.List(ctx, "", true); err != nil || len(all) != 1 || len(filesOf(t, p.dir)) != files {
		t.Errorf("left: %v, %v, %d files of %d", all, err, len(filesOf(t, p.dir)), files)
	}
}

// A program that has attached starts another: that gets what it would have got without the store, and nothing of the store.
func TestCase71ChildrenInheritNothing(t *testing.T) {
	child := func() []string {
		t.Helper()
		// The numbers of the shell's descriptors, and of the directory that it reads to list them.
		out, err := exec.Command("sh", "-c", "for f in /proc/$$/fd/*; do echo ${f##*/}; done").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))
	}
	without := child() // 0 to 2, and what this test was given by whoever runs it
	p := start(t)
	put(t, p, "m", tutorial(8, 8, 8, 8, 1))
	m, err := p.c.Attach(ctx, "m", client.Prefault(client.PrefaultWait))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	conn, files := rawAttach(t, p.socket, "m")
	defer conn.Close()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if with := child(); !slices.Equal(with, without) {
		t.Errorf("the child has the descriptors %v, and without the store %v", with, without)
	}
	// The check sees a descriptor that is inherited.
	if _, err := unix.FcntlInt(files[0].Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	if with := child(); slices.Equal(with, without) {
		t.Error("a descriptor without close-on-exec is not noticed")
	}
}
