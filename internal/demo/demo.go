// Package demo is `zcctl demo`: the project's main job, from nothing to answers, on a daemon of its own.
//
// It starts a daemon on a private socket, stores two pipelines, starts worker processes that map the same segments, runs the
// data through them and tells what happened, from the kernel's own accounting. It leaves nothing behind; what an earlier run
// left that was killed, it removes first.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/batch"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/internal/procmem"
	"github.com/zcstore/zcstore/models/hf"
	"github.com/zcstore/zcstore/test/golden"
)

// Options are the choices of a run. The zero value is the tutorial on three workers.
type Options struct {
	Workers int  // processes; 0: 3
	Size    int  // bytes of weights of the encoder-decoder, seeded; 0: the tutorial's own
	Compare bool // also run with a private copy in each worker, and measure that

	// StartDaemon starts a daemon process that ends when stop is called or this process ends.
	StartDaemon func(ctx context.Context, socket, dir string) (pid int, stop func() error, err error)
	// Say is told each step as it happens; nil is silent.
	Say func(format string, args ...any)
}

// Report is what happened.
type Report struct {
	Schema   int        `json:"schema"`
	Swept    int        `json:"swept"` // directories of killed demos that were removed
	Daemon   Daemon     `json:"daemon"`
	Stored   []Stored   `json:"stored"`
	EncDec   EncDec     `json:"encdec"`
	Text     Text       `json:"text"`
	Shared   Pool       `json:"shared"`
	Private  *Pool      `json:"private,omitempty"` // with Compare
	Weights  WeightsUse `json:"weights"`
	Duration float64    `json:"duration_seconds"`
}

// Daemon is where the store was.
type Daemon struct {
	PID      int    `json:"pid"`
	Socket   string `json:"socket"`
	Segments string `json:"segments"`
}

// Stored is a pipeline in the store.
type Stored struct {
	Ref         string  `json:"ref"`
	Digest      string  `json:"digest"`
	Tensors     int     `json:"tensors"`
	TensorBytes int     `json:"tensor_bytes"`
	Seconds     float64 `json:"put_seconds"`
}

// EncDec is the tutorial's run.
type EncDec struct {
	Samples         int           `json:"samples"`
	BatchSize       int           `json:"batch_size"`
	FirstShape      []int         `json:"first_prediction_shape"`
	First           []float32     `json:"first_prediction"`
	Workers         []batch.Share `json:"workers"`
	Segment         Segment       `json:"segment"`
	SameSegment     bool          `json:"same_segment"`      // every worker has that very file mapped, read-only and shared
	AgainstPyTorch  *float64      `json:"against_pytorch"`   // largest difference; null when the weights are not the tutorial's
	AgainstHeapCopy float64       `json:"against_heap_copy"` // largest difference from the same pipeline on private weights
	Seconds         float64       `json:"seconds"`
}

// Segment is a file of shared memory.
type Segment struct {
	Inode uint64 `json:"inode"`
	Bytes int    `json:"bytes"`
}

// Text is the classifier's run.
type Text struct {
	Texts    int           `json:"texts"`
	Agree    int           `json:"agree_with_pytorch"` // labels that are PyTorch's
	Examples []Example     `json:"examples"`
	Workers  []batch.Share `json:"workers"`
	Seconds  float64       `json:"seconds"`
}

// Example is one text and its answer.
type Example struct {
	Text        string  `json:"text"`
	Label       string  `json:"label"`
	Probability float32 `json:"probability"`
}

// Pool is one way to run the workers.
type Pool struct {
	Workers []Worker `json:"workers"`
	PSS     int      `json:"pss_bytes"` // of all workers: each page counted once
	Rows    float64  `json:"rows_per_second"`
}

// Worker is one process, as the kernel has it.
type Worker struct {
	PID      int               `json:"pid"`
	Ready    float64           `json:"ready_seconds"` // from its start until it could take a batch
	Memory   procmem.Usage     `json:"memory"`
	Segments []procmem.Mapping `json:"segments"`
}

// WeightsUse says where the weights are.
type WeightsUse struct {
	Once int `json:"segment_bytes"`     // of all segments, from the kernel's block count
	PSS  int `json:"workers_pss_bytes"` // of the workers' mappings of them
}

const (
	batchSize = 25
	modelRef  = "encdec"
	textRef   = "intents"
)

// Run does it all.
func Run(ctx context.Context, opt Options) (rep *Report, err error) {
	if opt.Workers == 0 {
		opt.Workers = 3
	}
	if opt.Say == nil {
		opt.Say = func(string, ...any) {}
	}
	start := time.Now()
	rep = &Report{Schema: 1}
	if rep.Swept, err = sweep(); err != nil {
		return nil, err
	}
	if rep.Swept > 0 {
		opt.Say("swept      %d directories of shared memory that killed demos had left", rep.Swept)
	}
	pl, err := newPlace()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pl.remove()) }()
	pid, stop, err := opt.StartDaemon(ctx, pl.socket(), pl.segments())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	rep.Daemon = Daemon{PID: pid, Socket: pl.socket(), Segments: pl.segments()}
	opt.Say("daemon     pid %d on %s", pid, pl.socket())
	r := run{opt: opt, rep: rep, place: pl}
	if err := r.all(ctx); err != nil {
		return nil, err
	}
	rep.Duration = time.Since(start).Seconds()
	return rep, nil
}

type run struct {
	opt   Options
	rep   *Report
	place *place
	heap  *EncoderDecoder // the pipeline that was put, on private weights
	want  [][]float32     // what heap says of the first batch
}

func (r *run) all(ctx context.Context) error {
	c, err := client.Dial(ctx, client.Options{Socket: r.place.socket()})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := r.put(ctx, c); err != nil {
		return err
	}
	rows, err := r.reference()
	if err != nil {
		return err
	}
	r.heap = nil // from here on this process keeps no copy
	runtime.GC()
	pool, err := worker.Start(ctx, worker3, job{Socket: r.place.socket(), EncDec: modelRef, Text: textRef}, worker.Options{Workers: r.opt.Workers})
	if err != nil {
		return err
	}
	defer pool.Close()
	r.opt.Say("workers    %d processes, ready in %s", r.opt.Workers, readies(pool.Workers()))
	if err := r.decode(ctx, pool, rows); err != nil {
		return err
	}
	if err := r.classify(ctx, pool); err != nil {
		return err
	}
	if err := r.measure(ctx, c, pool); err != nil {
		return err
	}
	if err := pool.Close(); err != nil {
		return err
	}
	if r.opt.Compare {
		return r.compare(ctx, rows)
	}
	return nil
}

func readies(ws []worker.Info) string {
	var s []string
	for _, w := range ws {
		s = append(s, fmt.Sprintf("%d", w.Ready.Milliseconds()))
	}
	return strings.Join(s, ", ") + " ms"
}

// put stores both pipelines.
func (r *run) put(ctx context.Context, c *client.Client) error {
	heap, err := build(r.opt.Size)
	if err != nil {
		return err
	}
	r.heap = heap
	start := time.Now()
	report, err := pipeline.Put(ctx, c, modelRef, heap, pipeline.PutOptions{})
	if err != nil {
		return err
	}
	r.stored(Stored{Ref: report.Ref, Digest: report.Digest.String(), Tensors: report.SharedTensors, TensorBytes: report.SharedBytes, Seconds: time.Since(start).Seconds()})
	dir, err := unpack(r.place.dir)
	if err != nil {
		return err
	}
	start = time.Now()
	im, err := hf.Open(dir)
	if err != nil {
		return err
	}
	defer im.Close()
	done, err := c.Put(ctx, textRef, im.Draft, client.PutOptions{})
	if err != nil {
		return err
	}
	r.stored(Stored{Ref: done.Version.Name + ":" + done.Version.Tags[0], Digest: client.Digest(done.Version.Digest).String(), Tensors: int(done.Version.Tensors), TensorBytes: int(done.Version.TensorBytes), Seconds: time.Since(start).Seconds()})
	return os.RemoveAll(dir)
}

func (r *run) stored(s Stored) {
	r.rep.Stored = append(r.rep.Stored, s)
	r.opt.Say("put        %-10s %2d tensors, %d bytes, in %.0f ms", s.Ref, s.Tensors, s.TensorBytes, s.Seconds*1e3)
}

// reference gives the inputs, and keeps what the heap copy says of the first batch.
func (r *run) reference() ([]item, error) {
	in, err := golden.Read("tutorial/golden.safetensors")
	if err != nil {
		return nil, err
	}
	rows, err := golden.Rows(in["input"])
	if err != nil {
		return nil, err
	}
	items := make([]item, len(rows))
	for i := range rows {
		items[i].X = rows[i]
	}
	local := resident{encdec: *r.heap}
	got, err := local.decode(items[:batchSize])
	if err != nil {
		return nil, err
	}
	for _, a := range got {
		r.want = append(r.want, a.Y)
	}
	return items, nil
}

// decode maps the 500 rows over the workers and compares.
func (r *run) decode(ctx context.Context, pool *worker.Pool[[]item, []answer], rows []item) error {
	res, err := batch.MapPool(ctx, rows, pool, batch.Options{Size: batchSize})
	if err != nil {
		return err
	}
	e := &r.rep.EncDec
	e.Samples, e.BatchSize, e.Workers, e.Seconds = len(res.Rows), batchSize, res.Workers, res.Wall.Seconds()
	e.First = res.Rows[0].Y
	e.FirstShape = []int{len(e.First)}
	r.rep.Shared.Rows = float64(len(rows)) / res.Wall.Seconds()
	for i, w := range r.want {
		e.AgainstHeapCopy = math.Max(e.AgainstHeapCopy, largest(res.Rows[i].Y, w))
	}
	if r.opt.Size != 0 {
		return nil
	}
	in, err := golden.Read("tutorial/golden.safetensors")
	if err != nil {
		return err
	}
	want, err := golden.Rows(in["output.temperature_1.0"])
	if err != nil {
		return err
	}
	worst := 0.0
	for i := range want {
		worst = math.Max(worst, largest(res.Rows[i].Y, want[i]))
	}
	e.AgainstPyTorch = &worst
	if worst > 1e-5 {
		return fmt.Errorf("the answers differ from PyTorch's by %g", worst)
	}
	return nil
}

func largest(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	d := 0.0
	for i := range got {
		if diff := math.Abs(float64(got[i]) - float64(want[i])); !(diff <= d) { // NaN is a difference
			d = diff
		}
	}
	return d
}

// classify runs the texts of the sample over the same workers.
func (r *run) classify(ctx context.Context, pool *worker.Pool[[]item, []answer]) error {
	b, err := fs.ReadFile(golden.Files, "intents/golden.jsonl")
	if err != nil {
		return err
	}
	var items []item
	var want []string
	for line := range strings.Lines(string(b)) {
		var g struct{ Text, Predicted string }
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			return err
		}
		items, want = append(items, item{Text: g.Text}), append(want, g.Predicted)
	}
	res, err := batch.MapPool(ctx, items, pool, batch.Options{Size: batchSize})
	if err != nil {
		return err
	}
	t := &r.rep.Text
	t.Texts, t.Workers, t.Seconds = len(items), res.Workers, res.Wall.Seconds()
	shown := map[string]bool{}
	for i, a := range res.Rows {
		if a.Label == want[i] {
			t.Agree++
		}
		if !shown[a.Label] && len(items[i].Text) < 60 {
			shown[a.Label] = true
			t.Examples = append(t.Examples, Example{items[i].Text, a.Label, a.Score})
		}
	}
	if t.Agree != t.Texts {
		return fmt.Errorf("%d of %d labels are not PyTorch's", t.Texts-t.Agree, t.Texts)
	}
	return nil
}

// measure asks the kernel about every worker, while all of them are there.
func (r *run) measure(ctx context.Context, c *client.Client, pool *worker.Pool[[]item, []answer]) error {
	var inodes []uint64
	var main Segment
	for _, ref := range []string{modelRef, textRef} {
		m, err := c.Attach(ctx, ref)
		if err != nil {
			return err
		}
		for _, s := range m.Segments() {
			inodes = append(inodes, s.Inode)
			if ref == modelRef {
				main = Segment{Inode: s.Inode, Bytes: len(s.Bytes)}
			}
		}
		if err := m.Close(); err != nil { // or this process would count as one more that shares
			return err
		}
	}
	if err := measure(&r.rep.Shared, pool.Workers(), inodes); err != nil {
		return err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	r.rep.Weights.Once = int(st.UsedBytes)
	e := &r.rep.EncDec
	e.Segment, e.SameSegment = main, true
	for _, w := range r.rep.Shared.Workers {
		here := false
		for _, s := range w.Segments {
			r.rep.Weights.PSS += s.PSS
			here = here || s.Inode == main.Inode && s.Perms == "r--s" && s.Anonymous == 0
		}
		e.SameSegment = e.SameSegment && here
	}
	if !e.SameSegment {
		return errors.New("a worker has weights of its own: not every one has the segment mapped read-only and shared")
	}
	return nil
}

func measure(p *Pool, workers []worker.Info, inodes []uint64) error {
	for _, w := range workers {
		u, err := procmem.Of(w.PID)
		if err != nil {
			return err
		}
		maps, err := procmem.Mappings(w.PID, inodes...)
		if err != nil {
			return err
		}
		p.PSS += u.PSS
		p.Workers = append(p.Workers, Worker{PID: w.PID, Ready: w.Ready.Seconds(), Memory: u, Segments: maps})
	}
	slices.SortFunc(p.Workers, func(a, b Worker) int { return a.PID - b.PID })
	return nil
}

// compare runs the same rows on workers that each keep a private copy, as without a store.
func (r *run) compare(ctx context.Context, rows []item) error {
	pool, err := worker.Start(ctx, worker3, job{Private: true, Size: r.opt.Size}, worker.Options{Workers: r.opt.Workers})
	if err != nil {
		return err
	}
	defer pool.Close()
	r.opt.Say("compare    %d processes with a private copy each, ready in %s", r.opt.Workers, readies(pool.Workers()))
	res, err := batch.MapPool(ctx, rows, pool, batch.Options{Size: batchSize})
	if err != nil {
		return err
	}
	r.rep.Private = &Pool{Rows: float64(len(rows)) / res.Wall.Seconds()}
	if err := measure(r.rep.Private, pool.Workers(), nil); err != nil {
		return err
	}
	return pool.Close()
}
