package e2e

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/procmem"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// formArgs say which pipeline a worker opens, and in which form.
type formArgs struct{ Socket, Ref, Form string }

// formAnswer is what a worker computed, and what the kernel says of its mappings afterwards.
type formAnswer struct {
	PID           int
	Form          string
	Plain, Made   []uint64 // inodes of segments
	Vectors       []worker.Floats
	PlainPSS, PSS int // of the segments that were put, of those that were made
	MadeRSS       int
	Anonymous     int
}

type formActor struct {
	c *client.Client
	p *text.Pipeline
}

var formed = worker.Define("e2e.form", func(ctx context.Context, a formArgs) (worker.Actor[[]string, formAnswer], error) {
	c, err := client.Dial(ctx, client.Options{Socket: a.Socket})
	if err != nil {
		return nil, err
	}
	p, err := text.Open(ctx, c, a.Ref, client.Form(a.Form))
	if err != nil {
		c.Close()
		return nil, err
	}
	return &formActor{c, p}, nil
})

func (a *formActor) Close() error { return a.c.Close() }

// Call embeds texts, or says what is mapped when there are none.
func (a *formActor) Call(ctx context.Context, texts []string) (out formAnswer, err error) {
	out.PID, out.Form = os.Getpid(), a.p.Stored().Form()
	if len(texts) > 0 {
		got, err := a.p.Embed(ctx, texts)
		for _, g := range got {
			out.Vectors = append(out.Vectors, g.Vector)
		}
		return out, err
	}
	for _, sg := range a.p.Stored().Segments() {
		out.Plain = append(out.Plain, sg.Inode)
	}
	for _, sg := range a.p.Stored().FormSegments() {
		out.Made = append(out.Made, sg.Inode)
	}
	maps, err := procmem.Mappings(out.PID, append(slices.Clone(out.Plain), out.Made...)...)
	for _, m := range maps {
		out.Anonymous += m.Anonymous
		if slices.Contains(out.Made, m.Inode) {
			out.PSS += m.PSS
			out.MadeRSS += m.RSS
		} else {
			out.PlainPSS += m.PSS
		}
	}
	return out, err
}

// Three workers on packed weights have one copy of them between them, and map nearly nothing of the plain bytes behind it; they
// and a worker on the plain weights give the same answers, bit for bit.
func TestThreeWorkersShareOnePackedCopy(t *testing.T) {
	dir := golden.Path(t, "minilm")
	p := start(t)
	im, err := hf.Open(dir + "/model")
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := p.c.Put(ctx, "minilm", im.Draft, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	sentences := []string{"one copy of the weights", "used in place by every worker", "a longer text, so that more than one tile has something to do"}
	plain := pool(t, formed, formArgs{p.socket, "minilm", "plain"}, 1)
	want, err := plain.Each(ctx, sentences)
	if err != nil {
		t.Fatal(err)
	}
	packed := pool(t, formed, formArgs{p.socket, "minilm", "packed"}, 3)
	got, err := packed.Each(ctx, sentences)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range got {
		if a.Form != "packed" {
			t.Errorf("worker %d has the form %s", a.PID, a.Form)
		}
		for i, v := range a.Vectors {
			if !slices.Equal(v, want[0].Vectors[i]) {
				t.Errorf("worker %d: text %d differs from the plain form", a.PID, i)
			}
		}
	}
	maps, err := packed.Each(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.c.Show(ctx, "minilm")
	if err != nil {
		t.Fatal(err)
	}
	made, sum, behind := 0, 0, 0
	for _, f := range v.Forms {
		made += int(f.Bytes)
		if f.Form == "packed" && f.Holders != 3 {
			t.Errorf("%d hold the packed form", f.Holders)
		}
	}
	for _, a := range maps {
		sum += a.PSS
		behind += a.PlainPSS
		if a.Anonymous != 0 || !slices.Equal(a.Made, maps[0].Made) || len(a.Made) != 2 {
			t.Errorf("worker %d: %d bytes of its own, segments %v", a.PID, a.Anonymous, a.Made)
		}
	}
	t.Logf("%d bytes were made; the proportional share of three workers is %d of that, and %d of %d plain bytes", made, sum, behind, v.TensorBytes)
	if sum > made+made/33 || sum < made*2/3 {
		t.Errorf("three workers have %d bytes of forms between them, one copy is %d", sum, made)
	}
	if behind > int(v.TensorBytes)/10 { // rows that were looked up, norms and biases
		t.Errorf("and %d of %d plain bytes", behind, v.TensorBytes)
	}
}

// A daemon that is killed and started again takes over what workers have mapped: their leases come back in their form, they go on
// computing, and nothing is made a second time.
func TestPackedWorkersOutliveTheDaemon(t *testing.T) {
	dir := golden.Path(t, "minilm")
	p := start(t)
	im, err := hf.Open(dir + "/model")
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := p.c.Put(ctx, "minilm", im.Draft, client.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	w := pool(t, formed, formArgs{p.socket, "minilm", "packed"}, 2)
	want, err := w.Each(ctx, []string{"used in place by every worker"})
	if err != nil {
		t.Fatal(err)
	}
	before, err := p.c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p.daemon.Kill()
	p.daemon = testdaemon.StartProcess(t, p.socket, p.dir)
	for begin, n := time.Now(), 0; n < 2; time.Sleep(time.Millisecond) {
		holders, err := p.c.Holders(ctx, "minilm")
		if err != nil && zcerr.KindOf(err) != zcerr.Unavailable {
			t.Fatal(err)
		}
		n = 0
		for _, h := range holders {
			if h.Form == "packed" {
				n++
			}
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%v have leases", holders)
		}
	}
	after, err := p.c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if after.UsedBytes != before.UsedBytes || len(after.Forms) != 2 || after.Segments != before.Segments {
		t.Errorf("before %d bytes in %d segments, after %d in %d, forms %v", before.UsedBytes, before.Segments, after.UsedBytes, after.Segments, after.Forms)
	}
	v, err := p.c.Show(ctx, "minilm")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := w.Each(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	var inodes []uint64
	for _, f := range v.Forms {
		for _, sg := range f.Segments {
			inodes = append(inodes, sg.Inode)
		}
	}
	if !slices.Equal(inodes, maps[0].Made) {
		t.Errorf("the daemon has the segments %v, the workers %v", inodes, maps[0].Made)
	}
	again, err := w.Each(ctx, []string{"used in place by every worker"})
	if err != nil || !slices.Equal(again[0].Vectors[0], want[0].Vectors[0]) {
		t.Errorf("after the restart: %v", err)
	}
}
