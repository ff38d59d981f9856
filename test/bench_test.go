package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/tokenizer"
)

// Each benchmark measures its subject and its baseline in turn, so that both see the same machine, and reports the median
// of each and their ratio. docs/benchmarks.md has the commands; -benchtime=9x is the number of turns.

// samples are durations by name, in the order in which the names came.
type samples struct {
	names []string
	of    map[string][]time.Duration
}

func (s *samples) time(name string, f func() error) error {
	begin := time.Now()
	err := f()
	s.add(name, time.Since(begin))
	return err
}

func (s *samples) add(name string, d ...time.Duration) {
	if s.of == nil {
		s.of = map[string][]time.Duration{}
	}
	if s.of[name] == nil {
		s.names = append(s.names, name)
	}
	s.of[name] = append(s.of[name], d...)
}

func (s *samples) median(name string) time.Duration {
	d := slices.Clone(s.of[name])
	slices.Sort(d)
	return d[len(d)/2]
}

// report gives the medians to the benchmark, and for all but the baseline how many times as long the baseline takes.
func (s *samples) report(b *testing.B, baseline string) {
	b.ReportMetric(0, "ns/op") // of one whole turn: means nothing
	for _, n := range s.names {
		b.ReportMetric(float64(s.median(n).Nanoseconds())/1e6, n+"-ms")
		if n != baseline {
			b.ReportMetric(float64(s.median(baseline))/float64(s.median(n)), n+"-x-"+baseline)
		}
	}
}

// Big is a model of 200 tensors and 420 MB.
type Big struct{ Layers []*nn.Linear }

const bigBytes = 100 * (1024*1024 + 1024) * 4

func big() *Big {
	p := &Big{Layers: make([]*nn.Linear, 100)}
	var wg sync.WaitGroup
	for i := range p.Layers {
		wg.Go(func() { p.Layers[i] = nn.NewLinear(1024, 1024, nn.Seed(uint64(i))) })
	}
	wg.Wait()
	return p
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkAttachLoad is Attach and Load of 420 MB in 200 tensors: by a new client (its connection is made too), by one that
// is connected, and with every page mapped in at once; against a private copy of the same bytes from the page cache.
func BenchmarkAttachLoad(b *testing.B) {
	p := start(b)
	put(b, p, "big", big())
	m, err := p.c.Attach(ctx, "big")
	must(b, err)
	segments, err := filepath.Glob(p.dir + "/*")
	must(b, err)
	m.Close()
	load := func(c *client.Client, populate bool) error {
		var got Big
		m, err := pipeline.Load(ctx, c, "big", &got, pipeline.LoadOptions{})
		if err != nil {
			return err
		}
		if len(got.Layers) != 100 {
			return fmt.Errorf("%d layers", len(got.Layers))
		}
		if populate {
			err = m.Populate()
		}
		return err
	}
	var s samples
	for b.Loop() {
		cold, err := client.Dial(ctx, client.Options{Socket: p.socket})
		must(b, err)
		must(b, s.time("cold", func() error { return load(cold, false) }))
		must(b, s.time("connected", func() error { return load(cold, false) }))
		must(b, cold.Close())
		mapped, err := client.Dial(ctx, client.Options{Socket: p.socket})
		must(b, err)
		must(b, s.time("populated", func() error { return load(mapped, true) }))
		must(b, mapped.Close())
		must(b, s.time("copy", func() error {
			n := 0
			for _, path := range segments {
				file, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				n += len(file)
			}
			if n < bigBytes {
				return fmt.Errorf("copied %d bytes", n)
			}
			return nil
		}))
	}
	s.report(b, "copy")
}

// BenchmarkPut is a put of 420 MB, from the heap until it is published, against copying and hashing the same tensors once in
// this process, on all cores. The daemon hashes what arrives, and nothing is hashed twice.
func BenchmarkPut(b *testing.B) {
	p := start(b)
	model := big()
	weights := params(modulesOf(model))
	var s samples
	for b.Loop() {
		must(b, s.time("put", func() error {
			_, err := pipeline.Put(ctx, p.c, "big", model, pipeline.PutOptions{})
			return err
		}))
		_, err := p.c.Remove(ctx, "big", true)
		must(b, err)
		must(b, s.time("copy+sha256", func() error {
			copies := make([][]byte, len(weights))
			next := make(chan int)
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for i := range next {
						copies[i] = slices.Clone(weights[i])
						_ = sha256.Sum256(copies[i])
					}
				})
			}
			for i := range weights {
				next <- i
			}
			close(next)
			wg.Wait()
			return nil
		}))
	}
	s.report(b, "copy+sha256")
	b.ReportMetric(bigBytes/1e6/s.median("put").Seconds(), "put-MB/s")
}

// benchArgs say where a worker has its MiniLM from: the store, or its own copy of the directory.
type benchArgs struct{ Socket, Dir string }

// benchActor embeds with the stored weights, or with those on its heap.
type benchActor struct {
	c     *client.Client
	tok   func([]string) ([]*tokenizer.Encoding, error)
	model *encoder.Model
}

var benchDef = worker.Define("e2e.bench", func(ctx context.Context, a benchArgs) (worker.Actor[[]string, time.Duration], error) {
	w := &benchActor{}
	if a.Dir == "" {
		var err error
		if w.c, err = client.Dial(ctx, client.Options{Socket: a.Socket}); err != nil {
			return nil, err
		}
		p, err := text.Open(ctx, w.c, "minilm")
		if err != nil {
			return nil, err
		}
		w.tok, w.model = p.Tokenize, p.Model().(*encoder.Model)
		return w, nil
	}
	return w, w.private(a.Dir)
})

// private loads the directory as a program without a store would.
func (w *benchActor) private(dir string) error {
	config, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	c, err := encoder.ParseConfig(config)
	if err != nil {
		return err
	}
	views, err := readTensors(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		return err
	}
	if w.model, err = encoder.Load(nn.Default(), c, encoder.Views(views)); err != nil {
		return err
	}
	file, err := os.ReadFile(filepath.Join(dir, "tokenizer.json"))
	if err != nil {
		return err
	}
	tok, err := tokenizer.FromJSON(file)
	if err != nil {
		return err
	}
	w.tok = tok.WithTruncation(tokenizer.Truncation{MaxLength: 256}).WithPadding(tokenizer.Padding{}).EncodeBatch
	return nil
}

// Call embeds the texts as one batch and says how long it took.
func (w *benchActor) Call(ctx context.Context, texts []string) (time.Duration, error) {
	begin := time.Now()
	enc, err := w.tok(texts)
	if err != nil {
		return 0, err
	}
	var ids [][]int32
	for _, e := range enc {
		ids = append(ids, e.IDs)
	}
	vectors := make([]float32, len(texts)*384)
	err = w.model.Embed(ctx, vectors, encoder.NewBatch(ids))
	return time.Since(begin), err
}

func (w *benchActor) Close() error {
	if w.c == nil {
		return nil
	}
	return w.c.Close()
}

// minilm stores MiniLM and gives the golden texts.
func minilm(b *testing.B) (p *place, dir string, batch []string) {
	dir = golden.Path(b, "minilm", "model")
	for _, l := range goldenTexts(b, golden.Path(b, "minilm", "texts.jsonl")) {
		batch = append(batch, l.Text)
	}
	p = start(b)
	importDir(b, p.c, "minilm", dir)
	return p, dir, batch
}

// BenchmarkMiniLM is embeddings per second of a worker process, over the 300 golden texts in batches of 32, with stored and
// with private weights.
func BenchmarkMiniLM(b *testing.B) {
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			p, dir, texts := minilm(b)
			env := []string{fmt.Sprintf("ZCSTORE_THREADS=%d", threads)}
			open := func(a benchArgs) *worker.Pool[[]string, time.Duration] {
				w, err := worker.Start(ctx, benchDef, a, worker.Options{Env: env})
				must(b, err)
				b.Cleanup(func() { w.Close() })
				_, err = w.Call(ctx, texts[:32]) // pages and caches are warm
				must(b, err)
				return w
			}
			stored, private := open(benchArgs{Socket: p.socket}), open(benchArgs{Dir: dir})
			var s samples
			pass := func(name string, w *worker.Pool[[]string, time.Duration]) {
				total := time.Duration(0)
				for batch := range slices.Chunk(texts, 32) {
					d, err := w.Call(ctx, batch)
					must(b, err)
					total += d
				}
				s.add(name, total)
			}
			for b.Loop() {
				pass("stored", stored)
				pass("private", private)
			}
			s.report(b, "private")
			b.ReportMetric(float64(len(texts))/s.median("stored").Seconds(), "embeddings/s")
		})
	}
}

// nothing is a worker that does nothing: what a process costs.
var nothing = worker.Define("e2e.nothing", func(context.Context, int) (worker.Actor[int, int], error) {
	return worker.Func[int, int](func(_ context.Context, n int) (int, error) { return n, nil }), nil
})

// BenchmarkFirstEmbedding is a worker process from its start to its first embedding of a short text: with stored weights, with
// a private copy of the directory (from the page cache), and a process that only answers.
func BenchmarkFirstEmbedding(b *testing.B) {
	p, dir, texts := minilm(b)
	var s samples
	for b.Loop() {
		for _, how := range []struct {
			name string
			args benchArgs
		}{{"stored", benchArgs{Socket: p.socket}}, {"private", benchArgs{Dir: dir}}} {
			begin := time.Now()
			w, err := worker.Start(ctx, benchDef, how.args, worker.Options{})
			must(b, err)
			compute, err := w.Call(ctx, texts[:1])
			must(b, err)
			s.add(how.name, time.Since(begin))
			if how.name == "stored" {
				s.add("of-it-computing", compute)
			}
			must(b, w.Close())
		}
		begin := time.Now()
		w, err := worker.Start(ctx, nothing, 0, worker.Options{})
		must(b, err)
		_, err = w.Call(ctx, 1)
		must(b, err)
		s.add("empty", time.Since(begin))
		must(b, w.Close())
	}
	s.report(b, "private")
}
