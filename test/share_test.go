package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/client/batch"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/client/worker"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
)

func put(t testing.TB, p *place, ref string, v any) *pipeline.Report {
	t.Helper()
	r, err := pipeline.Put(ctx, p.c, ref, v, pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// each asks every worker.
func each(t testing.TB, w *worker.Pool[[]Row, []Answer], op string) []Answer {
	t.Helper()
	outs, err := w.Each(ctx, []Row{{Op: op}})
	if err != nil {
		t.Fatal(err)
	}
	var all []Answer
	for _, o := range outs {
		all = append(all, o...)
	}
	return all
}

// shared fails unless the workers of a pool have one copy of the weights between them, and the daemon maps none.
func shared(t *testing.T, p *place, w *worker.Pool[[]Row, []Answer], mods []models.Module) {
	t.Helper()
	sums := each(t, w, "sum") // every byte, before anything is computed
	wrong, figures := checkShared(sums, each(t, w, "maps"), sumOf(mods))
	t.Log(figures)
	for _, e := range wrong {
		t.Error(e)
	}
	if m, err := mapsBelow(p.dir, fmt.Sprintf("/proc/%d/smaps", p.daemon.PID())); err != nil || len(m) != 0 {
		t.Errorf("the daemon maps %v, %v", m, err)
	}
	pids := map[int]bool{pid: true, p.daemon.PID(): true}
	for _, a := range sums {
		pids[a.PID] = true
	}
	if len(pids) != 2+len(sums) {
		t.Errorf("%d processes, want %d", len(pids), 2+len(sums))
	}
}

// equal fails unless every answer is within limit of what is wanted.
func equal(t *testing.T, what string, answers []Answer, wants map[string][][]float32, limit float64) {
	t.Helper()
	if d := largest(answers, wants); !(d <= limit) {
		t.Errorf("%s: largest difference %g, limit %g", what, d, limit)
	} else {
		t.Logf("%s: %d rows, largest difference %.2g", what, len(answers), d)
	}
}

func TestTutorial(t *testing.T) {
	p := start(t)
	for _, temperature := range []float32{1, 0.7} {
		t.Run(fmt.Sprint(temperature), func(t *testing.T) {
			model := trainedTutorial(t)
			model.Temperature = temperature
			ref := put(t, p, "tutorial", model).Ref
			w := pool(t, pipes, Args{Socket: p.socket, Ref: ref, Kind: "tutorial", Dir: p.dir}, 3)
			shared(t, p, w, model.modules())
			rows, wants := goldenRows(t, "tutorial", "", []string{"input"}, []string{"latent", fmt.Sprintf("output.temperature_%.1f", temperature)})
			everywhere(t, w, rows, wants)
			inBatches(t, w, rows, wants)
		})
	}
}

// everywhere takes all rows through every worker.
func everywhere(t *testing.T, w *worker.Pool[[]Row, []Answer], rows []Row, wants map[string][][]float32) {
	t.Helper()
	outs, err := w.Each(ctx, rows)
	if err != nil {
		t.Fatal(err)
	}
	for i, answers := range outs {
		equal(t, fmt.Sprintf("worker %d", i), answers, wants, 1e-5)
	}
}

// inBatches takes all rows once over the pool, in batches of 25.
func inBatches(t *testing.T, w *worker.Pool[[]Row, []Answer], rows []Row, wants map[string][][]float32) {
	t.Helper()
	res, err := batch.MapPool(ctx, rows, w, batch.Options{Size: 25})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "in batches of 25", res.Rows, wants, 1e-5)
	if n := (len(rows) + 24) / 25; res.Batches != n {
		t.Errorf("%d batches, want %d", res.Batches, n)
	}
}

func TestComplex(t *testing.T) {
	p := start(t)
	model := trainedComplex(t)
	ref := put(t, p, "complex", model).Ref
	w := pool(t, pipes, Args{Socket: p.socket, Ref: ref, Kind: "complex", Dir: p.dir}, 3)
	shared(t, p, w, model.modules())
	rows, wants := goldenRows(t, "complex", "", []string{"input.text", "input.image"},
		[]string{"preprocessed.text", "preprocessed.image", "encoded.text", "encoded.image", "output.0", "output.1", "output.2"})
	everywhere(t, w, rows, wants)
	inBatches(t, w, rows, wants)
}

func TestStateful(t *testing.T) {
	p := start(t)
	model := trainedStateful(t)
	ref := put(t, p, "stateful", model).Ref
	w := pool(t, pipes, Args{Socket: p.socket, Ref: ref, Kind: "stateful", Dir: p.dir}, 3)
	shared(t, p, w, model.modules())
	for n := range 3 { // in a row through every worker
		rows, wants := goldenRows(t, "stateful", fmt.Sprintf(".%d", n), []string{"input"}, []string{"preprocessed", "output"})
		_, above := goldenRows(t, "stateful", fmt.Sprintf(".%d", n), nil, []string{"above"})
		outs, err := w.Each(ctx, rows)
		if err != nil {
			t.Fatal(err)
		}
		for i, answers := range outs {
			what := fmt.Sprintf("batch %d, worker %d", n, i)
			equal(t, what, answers, wants, 1e-5)
			equal(t, what+", above", answers, above, 0)
			if answers[0].Calls != n+1 {
				t.Errorf("%s has counted %d calls", what, answers[0].Calls)
			}
		}
	}
	rows, wants := goldenRows(t, "stateful", ".2", []string{"input"}, []string{"output"})
	inBatches(t, w, rows, wants) // one worker's fourth call, and nobody else's
	calls := 0
	outs, err := w.Each(ctx, rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, answers := range outs {
		calls += answers[0].Calls
	}
	if calls != 3*3+1+3 {
		t.Errorf("the workers have counted %d calls together, want 13", calls)
	}
	var fresh Stateful // what is stored has not counted
	m, err := pipeline.Load(ctx, p.c, ref, &fresh, pipeline.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if fresh.Stats.Calls != 0 {
		t.Errorf("%d calls are stored", fresh.Stats.Calls)
	}
}

// wide is the tutorial's pipeline with layers so wide that kB do not matter: 4 x 4 MiB of weights.
func wide(seed uint64) *Tutorial { return tutorial(512, 2048, 512, 2048, seed) }

// someRows are inputs for wide, and what this process itself makes of them.
func someRows(t *testing.T, model *Tutorial) ([]Row, map[string][][]float32) {
	t.Helper()
	var in [][]float32
	var rows []Row
	for i := range 7 {
		r := make([]float32, 512)
		for k := range r {
			r[k] = float32((i*31+k*17)%101)/50 - 1
		}
		in, rows = append(in, r), append(rows, Row{X: map[string]worker.Floats{"input": r}})
	}
	x, err := nn.FromRows(in)
	if err != nil {
		t.Fatal(err)
	}
	y, _, err := model.run(map[string]*nn.Tensor{"input": x})
	if err != nil {
		t.Fatal(err)
	}
	v, err := y["output.temperature_1.0"].Float32s()
	if err != nil {
		t.Fatal(err)
	}
	var want [][]float32
	for i := range rows {
		want = append(want, v[i*2048:(i+1)*2048])
	}
	return rows, map[string][][]float32{"output.temperature_1.0": want}
}

func TestMemoryOfThreeWorkers(t *testing.T) {
	p := start(t)
	model := wide(7)
	if r := put(t, p, "wide", model); r.SharedBytes < 16<<20 {
		t.Fatalf("%d bytes are too few for 2 %%", r.SharedBytes)
	}
	rows, want := someRows(t, model)
	w := pool(t, pipes, Args{Socket: p.socket, Ref: "wide", Kind: "tutorial", Dir: p.dir}, 3)
	shared(t, p, w, model.modules())
	outs, err := w.Each(ctx, rows)
	if err != nil {
		t.Fatal(err)
	}
	for i, answers := range outs {
		equal(t, fmt.Sprintf("worker %d", i), answers, want, 0)
	}
	// Computing has changed nothing about it.
	if wrong, _ := checkShared(each(t, w, "sum"), each(t, w, "maps"), sumOf(model.modules())); len(wrong) > 0 {
		t.Errorf("after computing: %s", strings.Join(wrong, "; "))
	}
}

// The check notices workers that copy, in whichever way they do.
func TestCheckNoticesCopies(t *testing.T) {
	p := start(t)
	model := wide(8)
	put(t, p, "wide", model)
	rows, want := someRows(t, model)
	for _, tt := range []struct {
		how  string
		says []string
	}{
		{"heap", []string{"weights outside of shared segments"}},
		{"private mapping", []string{"as rw-p", "Anonymous", "weights outside of shared segments", "adds up to"}},
		{"heap and detach", []string{"maps segment", "0 times", "weights outside of shared segments", "adds up to 0 kB"}},
	} {
		t.Run(tt.how, func(t *testing.T) {
			honest := pool(t, pipes, Args{Socket: p.socket, Ref: "wide", Kind: "tutorial", Dir: p.dir}, 3)
			sums := each(t, honest, "sum")
			honest.Close()
			w := pool(t, pipes, Args{Socket: p.socket, Ref: "wide", Kind: "tutorial", Dir: p.dir, Copy: tt.how}, 3)
			if tt.how != "heap and detach" {
				sums = each(t, w, "sum")
			}
			outs, err := w.Each(ctx, rows)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "its answers are right all the same", outs[0], want, 0)
			wrong, _ := checkShared(sums, each(t, w, "maps"), sumOf(model.modules()))
			all := strings.Join(wrong, "\n")
			t.Log(all)
			for _, s := range tt.says {
				if !strings.Contains(all, s) {
					t.Errorf("the check does not say %q", s)
				}
			}
		})
	}
}
