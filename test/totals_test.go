package e2e

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm"
)

// ownMount is a daemon whose segments have a file system to themselves.
func ownMount(t testing.TB, options string) (p *place, mount string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a tmpfs")
	}
	p = &place{}
	mount, _ = mounted(t, options)
	p.socket, _ = testdaemon.Place(t)
	p.dir = filepath.Join(mount, "segments")
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
	p.c = testdaemon.Client(t, p.socket)
	return p, mount
}

func statfsUsed(t testing.TB, path string) uint64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	return (fs.Blocks - fs.Bfree) * uint64(fs.Bsize)
}

// Stack is four layers of 256 KiB each.
type Stack struct{ A, B, C, D *nn.Linear }

func stack(seeds ...uint64) *Stack {
	l := func(i int) *nn.Linear { return nn.NewLinear(256, 256, nn.Seed(seeds[i])) }
	return &Stack{l(0), l(1), l(2), l(3)}
}

func (s *Stack) modules() []models.Module { return []models.Module{s.A, s.B, s.C, s.D} }

// The totals of status are what the file system says, after each step of a version's life; a version costs what changed.
func TestTotalsEqualStatfs(t *testing.T) {
	for _, options := range []string{"size=64m,mode=0700", "size=64m,mode=0700,huge=within_size"} {
		t.Run(options, func(t *testing.T) { totals(t, options) })
	}
}

func totals(t *testing.T, options string) {
	p, mount := ownMount(t, options)
	agree := func(step string) uint64 {
		t.Helper()
		st, used := status(t, p), statfsUsed(t, mount)
		sum := st.UsedBytes + st.OverheadBytes + st.HeldAfterDeleteBytes + st.ReservedBytes + st.OrphanedBytes
		if !st.OwnMount || sum != used {
			t.Errorf("%s: status adds up to %d (used %d, overhead %d, held %d, reserved %d, orphaned %d; own mount: %v), statfs says %d",
				step, sum, st.UsedBytes, st.OverheadBytes, st.HeldAfterDeleteBytes, st.ReservedBytes, st.OrphanedBytes, st.OwnMount, used)
		}
		if st.OrphanedBytes != 0 {
			t.Errorf("%s: %d bytes orphaned", step, st.OrphanedBytes)
		}
		return used
	}
	empty := agree("empty")
	put(t, p, "m", stack(1, 2, 3, 4))
	one := agree("version 1")
	second := stack(1, 2, 3, 99)
	put(t, p, "m", second)
	two := agree("version 2")
	if changed := uint64(256 * 256 * 4); two-one < changed || two-one > changed+64<<10 {
		t.Errorf("version 2 with a changed tensor of %d bytes grew statfs by %d", changed, two-one)
	}
	t.Logf("version 1 takes %d bytes, version 2 %d more", one-empty, two-one)

	m, err := p.c.Attach(ctx, "m:v1")
	if err != nil {
		t.Fatal(err)
	}
	agree("attached")
	rm, err := p.c.Remove(ctx, "m:v1", false)
	if err != nil {
		t.Fatal(err)
	}
	if after := agree("removed while attached"); after != two-rm.FreedBytes || rm.HeldBytes == 0 || rm.PinnedBytes == 0 {
		t.Errorf("rm said %d bytes freed, %d held, %d pinned; statfs went from %d to %d", rm.FreedBytes, rm.HeldBytes, rm.PinnedBytes, two, after)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if after := agree("detached"); after != two-rm.FreedBytes-rm.HeldBytes {
		t.Errorf("rm said %d bytes freed and %d held; after the last lease statfs went from %d to %d", rm.FreedBytes, rm.HeldBytes, two, after)
	}

	var got Stack
	loaded, err := pipeline.Load(ctx, p.c, "m", &got, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(params(got.modules()), params(second.modules()), bytes.Equal) {
		t.Error("version 2 is not bit-equal after version 1 was removed")
	}
	loaded.Close()

	put(t, p, "other", stack(5, 6, 7, 8))
	before := agree("another model")
	if rm, err = p.c.Remove(ctx, "other", true); err != nil {
		t.Fatal(err)
	}
	if after := agree("it is removed"); before-after != rm.FreedBytes || rm.HeldBytes != 0 || rm.PinnedBytes != 0 {
		t.Errorf("rm said %d bytes freed, %d held, %d pinned; statfs says %d", rm.FreedBytes, rm.HeldBytes, rm.PinnedBytes, before-after)
	}

	p.daemon.Kill()
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
	waitFor(t, "an answer", func() bool { _, err := p.c.Status(ctx); return err == nil })
	agree("killed and started again")
	if _, err := p.c.Remove(ctx, "m", true); err != nil {
		t.Fatal(err)
	}
	if after := agree("all removed"); after > empty+4096 { // the catalog is of after the first put
		t.Errorf("%d bytes are in use after all is removed, %d before", after, empty)
	}
}

// A tokenizer's file is shared between versions as weights are: a fine-tuned MiniLM costs its changed tensor.
func TestChangedTensorOfMiniLM(t *testing.T) {
	dir := golden.Path(t, "minilm", "model")
	p, mount := ownMount(t, "size=256m,mode=0700")
	im, err := hf.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := p.c.Put(ctx, "minilm", im.Draft, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	one := statfsUsed(t, mount)
	const name = "encoder.layer.3.attention.self.key.weight"
	changed := 0
	for i := range im.Draft.Tensors {
		dt := &im.Draft.Tensors[i]
		if slices.Contains(dt.Names, name) {
			changed = 4 * dt.Shape[0] * dt.Shape[1]
			b := make([]byte, changed)
			if _, err := dt.Data.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			b[17] ^= 1
			dt.Data = bytes.NewReader(b)
		}
	}
	if changed == 0 {
		t.Fatalf("MiniLM has no tensor %s", name)
	}
	want, err := im.Draft.Seal(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.c.Put(ctx, "minilm", im.Draft, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	grown := int(statfsUsed(t, mount) - one)
	t.Logf("a changed tensor of %d bytes costs %d", changed, grown)
	if grown < changed || grown > changed+64<<10 {
		t.Errorf("a changed tensor of %d bytes grew statfs by %d", changed, grown)
	}
	if _, err := p.c.Remove(ctx, "minilm:v1", false); err != nil {
		t.Fatal(err)
	}
	m, err := p.c.Attach(ctx, "minilm")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Digest() != want.Digest {
		t.Errorf("version 2 is %v, want %v", m.Digest(), want.Digest)
	}
	for i := range want.Manifest.Tensors { // the tokenizer among them
		v, r, err := m.Tensor(i)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(v.Data) != r.SHA256 || r.SHA256 != want.Manifest.Tensors[i].SHA256 {
			t.Errorf("%s is not bit-equal after version 1 was removed", want.Manifest.Tensors[i].Names)
		}
	}
}

// A client that ends its lease and keeps its mapping is seen, and what it keeps is no room for others.
func TestCase05MappingOutlivesConnection(t *testing.T) {
	p, mount := ownMount(t, "size=8m,mode=0700")
	put(t, p, "m", stack(1, 2, 3, 4))
	f, lease := leaseSegment(t, p, "m")
	size := len(readAll(t, f))
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	gone := false
	defer func() {
		if !gone {
			unix.Munmap(b)
		}
	}()
	f.Close()
	lease.Close()
	waitFor(t, "the lease to go", func() bool { return status(t, p).Leases == 0 })
	if _, err := p.c.Remove(ctx, "m", true); err != nil {
		t.Fatal(err)
	}
	st := status(t, p)
	if pages := (uint64(size) + 4095) &^ 4095; st.OrphanedBytes != pages || st.HeldAfterDeleteBytes != 0 || st.UsedBytes != 0 {
		t.Errorf("a mapping of %d bytes outlives its lease: %d orphaned, %d held, %d used", pages, st.OrphanedBytes, st.HeldAfterDeleteBytes, st.UsedBytes)
	}
	if used := statfsUsed(t, mount); used != st.OrphanedBytes+st.OverheadBytes {
		t.Errorf("status: %d orphaned, %d overhead; statfs: %d", st.OrphanedBytes, st.OverheadBytes, used)
	}
	big := &Target{nn.NewLinear(1700, 1024, nn.Seed(1))} // 6.6 MiB: they would fit if nobody had the rest
	if _, err := pipeline.Put(ctx, p.c, "big", big, pipeline.PutOptions{}); zcerr.KindOf(err) != zcerr.NoSpace {
		t.Errorf("a put into what a mapping holds: %v", err)
	}
	if err := unix.Munmap(b); err != nil {
		t.Fatal(err)
	}
	gone = true
	if st := status(t, p); st.OrphanedBytes != 0 {
		t.Errorf("%d bytes are orphaned after the last mapping", st.OrphanedBytes)
	}
	put(t, p, "big", big)
}

// Each segment says what pages it really got.
func TestHugePagesAreMeasured(t *testing.T) {
	for options, huge := range map[string]bool{"size=64m,mode=0700": false, "size=64m,mode=0700,huge=within_size": true} {
		p, _ := ownMount(t, options)
		put(t, p, "m", &Target{nn.NewLinear(2048, 1024, nn.Seed(1))}) // 8 MiB
		put(t, p, "small", &Target{nn.NewLinear(64, 64, nn.Seed(1))})
		for _, ref := range []string{"m", "small"} {
			v, err := p.c.Show(ctx, ref)
			if err != nil {
				t.Fatal(err)
			}
			g := v.Segments[0].Guards
			f := segmentOf(t, p, ref)
			here, err := shm.HugeBytes(f) // this process maps it, too
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s, %s: %d of %d bytes in pages of 2 MiB", options, ref, g.HugeBytes, v.Segments[0].SizeBytes)
			if g.HugePages != huge || g.HugeBytes != here || (!huge || ref == "small") && here != 0 {
				t.Errorf("%s, %s: it says huge pages %v, %d bytes; a worker has %d bytes in them", options, ref, g.HugePages, g.HugeBytes, here)
			}
			if huge && ref == "m" && here == 0 {
				t.Logf("no page of 2 MiB was to be had: memory is fragmented")
			}
		}
		if st := status(t, p); strings.Contains(options, "huge") != st.Guards.HugePages {
			t.Errorf("%s: status says huge pages %v", options, st.Guards.HugePages)
		}
	}
}
