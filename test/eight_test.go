package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/internal/procmem"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// bertBase is an encoder of BERT-base's size, of random weights: 420 MB.
func bertBase(b *testing.B) *encoder.Model {
	c, err := encoder.ParseConfig([]byte(`{"architectures":["BertModel"],"max_position_embeddings":512}`))
	must(b, err)
	r := rand.New(rand.NewPCG(1, 2))
	views := encoder.Views{}
	add := func(name string, shape ...int) {
		n, _ := tensor.Shape(shape).Elements()
		f := make([]float32, n)
		for i := range f {
			f[i] = (r.Float32() - .5) / 15
		}
		v, err := tensor.FromFloat32s(shape, f)
		must(b, err)
		views[name] = v
	}
	z := c.Sizes()
	h, inner := z.Hidden, z.Intermediate
	layer := func(name string, out, in int) {
		add(name+".weight", out, in)
		add(name+".bias", out)
	}
	norm := func(name string) {
		add(name+".weight", h)
		add(name+".bias", h)
	}
	add("embeddings.word_embeddings.weight", z.Vocab, h)
	add("embeddings.position_embeddings.weight", z.Positions, h)
	add("embeddings.token_type_embeddings.weight", z.Types, h)
	norm("embeddings.LayerNorm")
	for i := range z.Layers {
		at := fmt.Sprintf("encoder.layer.%d", i)
		for _, n := range []string{"query", "key", "value"} {
			layer(at+".attention.self."+n, h, h)
		}
		layer(at+".attention.output.dense", h, h)
		norm(at + ".attention.output.LayerNorm")
		layer(at+".intermediate.dense", inner, h)
		layer(at+".output.dense", h, inner)
		norm(at + ".output.LayerNorm")
	}
	m, err := encoder.Load(nn.Default(), c, views)
	must(b, err)
	return m
}

// eightArgs say whether a worker has a packed copy of its own, in place of the one that all share.
type eightArgs struct {
	Socket  string
	Private bool
}

// eightAnswer is how long a pass took, and the memory of the worker after it.
type eightAnswer struct {
	Took         time.Duration
	Weights, Own int // bytes: proportional share of the weights' segments; Private_Clean and Private_Dirty
}

type eightActor struct {
	c *client.Client
	m *client.Model
	e *encoder.Model
}

var eight = worker.Define("e2e.eight", func(ctx context.Context, a eightArgs) (worker.Actor[[2]int, eightAnswer], error) {
	opt, form := gpu.Options{Threads: 1}, "packed"
	if a.Private {
		opt.PackPrivately, form = pack.F32, "plain"
	}
	d, err := cpu.New(opt)
	if err != nil {
		return nil, err
	}
	w := &eightActor{}
	if w.c, err = client.Dial(ctx, client.Options{Socket: a.Socket}); err != nil {
		return nil, err
	}
	if w.m, err = w.c.Attach(ctx, "bert", client.Form(form)); err != nil {
		return nil, err
	}
	mod, err := pipeline.Build(w.m, pipeline.LoadOptions{Device: d})
	if err != nil {
		return nil, err
	}
	w.e = mod.(*encoder.Model)
	return w, nil
})

func (w *eightActor) Close() error { return w.c.Close() }

// Call embeds texts of one length, both given by shape.
func (w *eightActor) Call(ctx context.Context, shape [2]int) (out eightAnswer, err error) {
	ids := make([][]int32, shape[0])
	for i := range ids {
		ids[i] = make([]int32, shape[1])
		for j := range ids[i] {
			ids[i][j] = int32((i*shape[1] + j) * 7919 % 30522)
		}
	}
	dst := make([]float32, shape[0]*w.e.Sizes().Hidden)
	begin := time.Now()
	if err := w.e.Embed(ctx, dst, encoder.NewBatch(ids)); err != nil {
		return out, err
	}
	out.Took = time.Since(begin)
	u, err := procmem.Of(os.Getpid())
	if err != nil {
		return out, err
	}
	out.Own = u.Private
	var inodes []uint64
	for _, s := range append(w.m.Segments(), w.m.FormSegments()...) {
		inodes = append(inodes, s.Inode)
	}
	maps, err := procmem.Mappings(os.Getpid(), inodes...)
	for _, m := range maps {
		out.Weights += m.PSS
	}
	return out, err
}

// BenchmarkEightWorkers is eight workers of one thread each on a BERT-base, packed: on the one copy that they share, and each
// on a packed copy of its own. A turn is a pass of 1x128 in all eight at once, of the one kind and then of the other; reported are
// the median of the turns' ratios and the quartiles. The weights of those that share are to take no more than 1.03 copies, and
// what else a worker has while it runs 8x128 no more than 22 MB.
func BenchmarkEightWorkers(b *testing.B) {
	p := start(b)
	func() {
		_, err := pipeline.Put(ctx, p.c, "bert", bertBase(b), pipeline.PutOptions{})
		must(b, err)
	}()
	runtime.GC()
	open := func(a eightArgs) *worker.Pool[[2]int, eightAnswer] {
		w, err := worker.Start(ctx, eight, a, worker.Options{Workers: 8})
		must(b, err)
		b.Cleanup(func() { w.Close() })
		return w
	}
	pass := func(w *worker.Pool[[2]int, eightAnswer], shape [2]int) (time.Duration, []eightAnswer) {
		begin := time.Now()
		out, err := w.Each(ctx, shape)
		must(b, err)
		return time.Since(begin), out
	}
	sharing := open(eightArgs{p.socket, false})
	pass(sharing, [2]int{8, 128})
	_, answers := pass(sharing, [2]int{8, 128})
	weights, own := 0, 0
	for _, a := range answers {
		weights += a.Weights
		own = max(own, a.Own)
	}
	v, err := p.c.Show(ctx, "bert")
	must(b, err)
	one := int(v.TensorBytes)
	b.Logf("weights of eight workers together: %.1f MB, %.3f of the %.1f MB that are stored; each beside them: %.1f MB at most",
		float64(weights)/1e6, float64(weights)/float64(one), float64(one)/1e6, float64(own)/1e6)
	if float64(weights) > 1.03*float64(one) {
		b.Errorf("the weights take %d bytes, one copy is %d", weights, one)
	}
	if own > 22e6 {
		b.Errorf("a worker has %d bytes of its own", own)
	}
	private := open(eightArgs{p.socket, true})
	pass(private, [2]int{1, 128})
	var ratios []float64
	for b.Loop() {
		shared, _ := pass(sharing, [2]int{1, 128})
		copies, _ := pass(private, [2]int{1, 128})
		ratios = append(ratios, copies.Seconds()/shared.Seconds())
	}
	slices.Sort(ratios)
	n := len(ratios)
	b.ReportMetric(0, "ns/op") // of one whole turn: means nothing
	b.ReportMetric(ratios[n/2], "sharing-x-private")
	b.ReportMetric(ratios[n/4], "quartile-1")
	b.ReportMetric(ratios[n*3/4], "quartile-3")
	b.ReportMetric(float64(weights)/float64(one), "copies")
	b.ReportMetric(float64(own)/1e6, "own-MB")
}
