package encoder

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/gpu/gputest"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/internal/testrace"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm/tensor"
)

// read gives the tensors of a safetensors file, on the heap.
func read(t testing.TB, path string) Views {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.Parse(file)
	if err != nil {
		t.Fatal(err)
	}
	views := Views{}
	for _, e := range h.Entries {
		v, err := tensor.New(e.DType, e.Shape, file[h.DataStart+e.Begin:h.DataStart+e.End])
		if err != nil {
			t.Fatal(err)
		}
		views[e.Name] = v
	}
	return views
}

func readConfig(t testing.TB, path string) *Config {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseConfig(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// onDevices runs a test on the real device, on every tier that it can be slowed down to, on packed weights, and on the
// late, poisoned device.
func onDevices(t *testing.T, f func(t *testing.T, dev gpu.Device)) {
	t.Run("cpu", func(t *testing.T) { f(t, cpu.Default()) })
	t.Run("async", func(t *testing.T) { f(t, gputest.Async(cpu.Default())) })
	for _, tier := range cpu.Tiers() {
		if tier != cpu.Default().Tier() {
			t.Run(tier, func(t *testing.T) { f(t, device(t, tier, gpu.Options{})) })
		}
	}
	t.Run("packed", func(t *testing.T) { f(t, device(t, cpu.Default().Tier(), gpu.Options{PackPrivately: pack.F32})) })
}

// device makes a device of a tier.
func device(t testing.TB, tier string, o gpu.Options) *cpu.Device {
	t.Helper()
	t.Setenv("ZCSTORE_CPU", tier)
	d, err := cpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// open loads the model of a folder. On a device that has its own copy of the weights, those on the host are destroyed.
func open(t testing.TB, dev gpu.Device, dir string) *Model {
	t.Helper()
	views := read(t, filepath.Join(dir, "model.safetensors"))
	m, err := Load(dev, readConfig(t, filepath.Join(dir, "config.json")), views)
	if err != nil {
		t.Fatal(err)
	}
	word := func() *gpu.Weight {
		switch n := m.net.(type) {
		case *transformer:
			return n.word
		case albertNet:
			return n.word
		case *modernNet:
			return n.word
		}
		t.Fatalf("a net of type %T", m.net)
		return nil
	}()
	if word.Mode != gpu.ZeroCopy {
		for _, v := range views {
			for i := range v.Data {
				v.Data[i] = 0xff
			}
		}
	}
	return m
}

func ints(t testing.TB, v tensor.View) []int32 {
	t.Helper()
	in, err := v.Int64s()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]int32, len(in))
	for i, x := range in {
		out[i] = int32(x)
	}
	return out
}

func floats(t testing.TB, v tensor.View) []float32 {
	t.Helper()
	f, err := v.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func values(t testing.TB, x *nn.Tensor, err error) []float32 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	f, err := x.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// worst is the largest difference over rows that count, and the largest wanted value.
func worst(t testing.TB, got, want []float32, cols int, counts []int32) (diff, largest float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d values, want %d", len(got), len(want))
	}
	for i := range got {
		if counts != nil && counts[i/cols] == 0 {
			continue
		}
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if math.IsNaN(d) {
			d = math.Inf(1)
		}
		diff = max(diff, d)
		largest = max(largest, math.Abs(float64(want[i])))
	}
	return diff, largest
}

// padded is a batch of a golden as its rows lie, padding included and masked.
func padded(t testing.TB, g Views, name string) Batch {
	ids := g[name+".input_ids"]
	b := Batch{IDs: ints(t, ids)}
	for i := range ids.Shape[0] + 1 {
		b.Starts = append(b.Starts, i*ids.Shape[1])
	}
	if v, ok := g[name+".token_type_ids"]; ok {
		b.TypeIDs = ints(t, v)
	}
	if v, ok := g[name+".attention_mask"]; ok {
		b.Mask = ints(t, v)
	}
	return b
}

// ragged is the batch without its masked tokens, and where in the padded one each token stands.
func (m *Model) ragged(b Batch) (Batch, []int) {
	r := Batch{Starts: []int{0}}
	positions := (&pass{m: m, b: b}).positions()
	var from []int
	for i := range b.Len() {
		for j := b.Starts[i]; j < b.Starts[i+1]; j++ {
			if b.Mask != nil && b.Mask[j] == 0 {
				continue
			}
			from = append(from, j)
			r.IDs = append(r.IDs, b.IDs[j])
			r.Positions = append(r.Positions, positions[j])
			if b.TypeIDs != nil {
				r.TypeIDs = append(r.TypeIDs, b.TypeIDs[j])
			}
		}
		r.Starts = append(r.Starts, len(r.IDs))
	}
	return r, from
}

// tinies are the goldens of all families and heads.
var tinies = []string{"bert", "bert-seqcls", "bert-tokcls", "bert-qa", "bert-mlm", "roberta", "roberta-seqcls", "roberta-mlm", "xlm-roberta-tokcls",
	"distilbert", "distilbert-seqcls", "electra", "electra-seqcls", "electra-disc", "albert", "albert-mlm", "mpnet",
	"deberta-v2", "deberta-v2-seqcls", "modernbert", "modernbert-mlm"}

// headsOnly are the heads of the others, in the tree.
var headsOnly = []string{"roberta-tokcls", "roberta-qa", "xlm-roberta-base", "xlm-roberta-seqcls", "xlm-roberta-qa", "xlm-roberta-mlm",
	"distilbert-tokcls", "distilbert-qa", "distilbert-mlm", "electra-tokcls", "electra-qa", "electra-mlm", "albert-seqcls", "albert-tokcls", "albert-qa",
	"mpnet-seqcls", "mpnet-tokcls", "mpnet-qa", "mpnet-mlm", "deberta-v2-tokcls", "deberta-v2-qa", "deberta-v2-mlm",
	"modernbert-seqcls", "modernbert-tokcls", "modernbert-qa"}

func tinyDir(t testing.TB, name string) string {
	switch {
	case slices.Contains(headsOnly, name):
		return golden.Tree(t, "heads", name)
	case name == "bert", name == "bert-seqcls":
		return golden.Tree(t, "tiny", name)
	}
	return golden.Path(t, "tiny", name)
}

// compared are the largest difference, and the values it is of.
type compared struct{ diff, of float64 }

// againstGolden runs a tiny model on its golden inputs and compares everything that there is.
func againstGolden(t *testing.T, dev gpu.Device, dir string) (worstOf compared) {
	m := open(t, dev, dir)
	g := read(t, filepath.Join(dir, "golden.safetensors"))
	compare := func(what string, got, want []float32, cols int, counts []int32) {
		t.Helper()
		diff, largest := worst(t, got, want, cols, counts)
		if limit := 2e-5 * max(1, largest); diff > limit {
			t.Errorf("%s: off by %.3g, limit %.3g", what, diff, limit)
		}
		if diff > worstOf.diff {
			worstOf = compared{diff, largest}
		}
	}
	ctx := context.Background()
	cases, heads := 0, 0
	for _, c := range []string{"single", "right", "left", "hole"} {
		if _, ok := g[c+".input_ids"]; !ok {
			continue
		}
		cases++
		b := padded(t, g, c)
		states, err := m.HiddenStates(ctx, b)
		if err != nil {
			t.Fatal(err)
		}
		if len(states) != m.sizes.Layers+1 {
			t.Fatalf("%d states of %d layers", len(states), m.sizes.Layers)
		}
		cols := m.sizes.Hidden
		for i := range states {
			compare(fmt.Sprintf("%s.hidden.%d", c, i), values(t, states[i], nil), floats(t, g[fmt.Sprintf("%s.hidden.%d", c, i)]), cols, b.Mask)
		}
		if c != "hole" || m.sizes.Pad < 0 && m.config.family != deberta && m.config.family != modernbert { // without the hidden tokens others are nearer to each other
			r, from := m.ragged(b)
			dense, err := m.HiddenStates(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			for i := range dense {
				want := floats(t, g[fmt.Sprintf("%s.hidden.%d", c, i)])
				var picked []float32
				for _, j := range from {
					picked = append(picked, want[j*cols:(j+1)*cols]...)
				}
				compare(fmt.Sprintf("%s.hidden.%d without padding", c, i), values(t, dense[i], nil), picked, cols, nil)
			}
		}
		if v, ok := g[c+".last_hidden_state"]; ok {
			got, err := m.Encode(ctx, b)
			compare(c+".last_hidden_state", values(t, got, err), floats(t, v), cols, b.Mask)
		}
		if v, ok := g[c+".pooler_output"]; ok {
			got, err := m.Pooled(ctx, b)
			compare(c+".pooler_output", values(t, got, err), floats(t, v), cols, nil)
			heads++
		}
		if v, ok := g[c+".logits"]; ok {
			heads++
			switch m.task {
			case Classify:
				if m.config.family == deberta && b.Mask != nil && slices.Contains([]int32{b.Mask[0], b.Mask[b.Starts[1]]}, 0) {
					continue // there, a hidden class token looks at all tokens alike; a pipeline never hides it
				}
				got, err := m.Classify(ctx, b)
				compare(c+".logits", values(t, got, err), floats(t, v), m.Labels(), nil)
			case FillMask:
				rows := make([]int, len(b.IDs))
				for i := range rows {
					rows[i] = i
				}
				got, err := m.MaskLogits(ctx, b, rows)
				compare(c+".logits", values(t, got, err), floats(t, v), m.sizes.Vocab, b.Mask)
			default:
				got, err := m.TokenLogits(ctx, b)
				compare(c+".logits", values(t, got, err), floats(t, v), m.Labels(), b.Mask)
			}
		}
		if v, ok := g[c+".start_logits"]; ok {
			heads++
			got, err := m.TokenLogits(ctx, b)
			both := values(t, got, err)
			for k, want := range [][]float32{floats(t, v), floats(t, g[c+".end_logits"])} {
				var one []float32
				for i := k; i < len(both); i += 2 {
					one = append(one, both[i])
				}
				compare(fmt.Sprintf("%s logits %d", c, k), one, want, 1, b.Mask)
			}
		}
	}
	if cases < 2 || m.task != Base && heads != cases {
		t.Errorf("%d cases, the head was compared in %d", cases, heads)
	}
	return worstOf
}

func TestTinyGoldens(t *testing.T) {
	for _, name := range slices.Concat(tinies, headsOnly) {
		t.Run(name, func(t *testing.T) {
			dir := tinyDir(t, name)
			onDevices(t, func(t *testing.T, dev gpu.Device) {
				c := againstGolden(t, dev, dir)
				t.Logf("largest difference %.3g, of values up to %.3g", c.diff, c.of)
			})
		})
	}
}

type text struct {
	ID  int     `json:"id"`
	IDs []int32 `json:"ids"`
}

func readTexts(t testing.TB, path string) []text {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []text
	for s := bufio.NewScanner(f); s.Scan(); {
		var x text
		if err := json.Unmarshal(s.Bytes(), &x); err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	return all
}

func TestIntents(t *testing.T) {
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		dir := golden.Tree(t, "intents")
		m := open(t, dev, dir)
		var ids [][]int32
		for _, x := range readTexts(t, filepath.Join(dir, "golden.jsonl")) {
			ids = append(ids, x.IDs)
		}
		got, err := m.Classify(context.Background(), NewBatch(ids))
		diff, _ := worst(t, values(t, got, err), floats(t, read(t, filepath.Join(dir, "golden.safetensors"))["logits"]), 5, nil)
		if diff > 1e-4 {
			t.Errorf("logits off by %.3g", diff)
		}
		t.Logf("%d texts, largest difference %.3g", len(ids), diff)
	})
}

func TestMiniLM(t *testing.T) {
	dir := golden.Path(t, "minilm")
	texts := readTexts(t, filepath.Join(dir, "texts.jsonl"))
	g := read(t, filepath.Join(dir, "golden.safetensors"))
	devices := onDevices
	if testing.Short() || testrace.Enabled {
		devices = func(t *testing.T, f func(t *testing.T, dev gpu.Device)) { f(t, cpu.Default()) }
	}
	devices(t, func(t *testing.T, dev gpu.Device) {
		m := open(t, dev, filepath.Join(dir, "model"))
		const probes, long = 12, 12
		var seen float64
		check := func(what string, got, want []float32, counts []int32) {
			t.Helper()
			diff, _ := worst(t, got, want, m.sizes.Hidden, counts)
			if diff > 1e-4 {
				t.Errorf("%s: off by %.3g", what, diff)
			}
			seen = max(seen, diff)
		}
		for i := range probes {
			if i > 1 && (testrace.Enabled || dev != gpu.Device(cpu.Default())) {
				break
			}
			states, err := m.HiddenStates(context.Background(), NewBatch([][]int32{texts[i].IDs}))
			if err != nil {
				t.Fatal(err)
			}
			for k, h := range states {
				what := fmt.Sprintf("single.%d.hidden.%d", i, k)
				check(what, values(t, h, nil), floats(t, g[what]), nil)
			}
		}
		if testrace.Enabled {
			return
		}
		b := padded(t, g, "batch")
		states, err := m.HiddenStates(context.Background(), b)
		if err != nil {
			t.Fatal(err)
		}
		for k, h := range states {
			what := fmt.Sprintf("batch.hidden.%d", k)
			check(what, values(t, h, nil), floats(t, g[what]), b.Mask)
		}
		pooled, err := m.Pooled(context.Background(), b)
		check("batch.pooler_output", values(t, pooled, err), floats(t, g["batch.pooler_output"]), nil)
		h, err := m.Encode(context.Background(), NewBatch([][]int32{texts[long].IDs}))
		check("long.last_hidden", values(t, h, err), floats(t, g["long.last_hidden"]), nil)

		texts := texts // all of them where that is quick
		if d, ok := dev.(*cpu.Device); !ok || d.Tier() == "go" {
			texts = texts[:12]
		}
		var ids [][]int32
		for _, x := range texts {
			ids = append(ids, x.IDs)
		}
		got := make([]float32, len(ids)*m.sizes.Hidden)
		if err := m.Embed(context.Background(), got, NewBatch(ids)); err != nil {
			t.Fatal(err)
		}
		diff, _ := worst(t, got, floats(t, g["embeddings"])[:len(got)], m.sizes.Hidden, nil)
		if diff > 1e-5 {
			t.Errorf("embeddings off by %.3g", diff)
		}
		t.Logf("hidden states: largest difference %.3g; %d embeddings: %.3g", seen, len(ids), diff)
	})
}

// What forms cost: over all texts, the smallest cosine of an embedding with that of PyTorch in F32.
func TestMiniLMForms(t *testing.T) {
	dir := golden.Path(t, "minilm")
	if testing.Short() || testrace.Enabled {
		t.Skip("takes seconds")
	}
	var ids [][]int32
	for _, x := range readTexts(t, filepath.Join(dir, "texts.jsonl")) {
		ids = append(ids, x.IDs)
	}
	want := floats(t, read(t, filepath.Join(dir, "golden.safetensors"))["embeddings"])
	for _, tier := range cpu.Tiers() {
		for form, bound := range map[pack.Form]float64{pack.BF16: 0.9999, pack.Int8: 0.99} {
			t.Run(fmt.Sprint(tier, " ", form), func(t *testing.T) {
				ids := ids
				if tier == "go" {
					ids = ids[:12]
				}
				m := open(t, device(t, tier, gpu.Options{PackPrivately: form}), filepath.Join(dir, "model"))
				n := m.sizes.Hidden
				got := make([]float32, len(ids)*n)
				if err := m.Embed(context.Background(), got, NewBatch(ids)); err != nil {
					t.Fatal(err)
				}
				least := 1.0
				for i := range ids {
					var dot float64 // both are of length 1
					for j, v := range got[i*n : (i+1)*n] {
						dot += float64(v) * float64(want[i*n+j])
					}
					least = min(least, dot)
				}
				t.Logf("smallest cosine of %d texts: %.6f", len(ids), least)
				if !(least >= bound) {
					t.Errorf("smallest cosine %.6f, want %v", least, bound)
				}
			})
		}
	}
}

// forms are the ways in which a device can have the weights that it multiplies.
var forms = []pack.Form{0, pack.F32, pack.BF16, pack.Int8}

// formName names plain weights, too.
func formName(f pack.Form) string {
	if f == 0 {
		return "plain"
	}
	return f.String()
}

// A text gets the same bits alone and in any batch, on any number of threads, from plain and from packed weights: one order
// of sums for a tier.
func TestBitEquality(t *testing.T) {
	var ids [][]int32
	for i := range 17 {
		row := make([]int32, 1+(i*7)%31)
		for j := range row {
			row[j] = int32((i*31 + j*17) % 201)
		}
		ids = append(ids, row)
	}
	sizes := [][]int{{1, 2, 5, 13, 17}, {1, 2, 5, 13, 17}, {1, 2, 5, 13, 17}}
	for _, tier := range cpu.Tiers() {
		for _, name := range []string{"bert", "mpnet", "deberta-v2", "modernbert"} { // each with its own attention
			t.Run(tier+" "+name, func(t *testing.T) { sameBits(t, tinyDir(t, name), tier, ids, nil, sizes) })
		}
	}
}

// The same of a real model, each batch beside a text that is longer than the others. With ZCSTORE_SOAK=1 the texts are as
// long as they are, and batches go up to 128.
func TestMiniLMBitEquality(t *testing.T) {
	dir := golden.Path(t, "minilm")
	if testing.Short() || testrace.Enabled {
		t.Skip("takes seconds")
	}
	count, length, sizes := 31, 9, [][]int{{1, 13}, {2, 31}, {5}}
	if os.Getenv("ZCSTORE_SOAK") != "" {
		all := []int{1, 2, 5, 13, 31, 128}
		count, length, sizes = 128, math.MaxInt, [][]int{all, all, all}
	}
	var ids [][]int32
	var long []int32
	for _, x := range readTexts(t, filepath.Join(dir, "texts.jsonl"))[:count] {
		ids = append(ids, x.IDs[:min(len(x.IDs), length)])
		if n := min(len(x.IDs), max(length, 18)); n > len(long) {
			long = x.IDs[:n]
		}
	}
	for _, tier := range cpu.Tiers() {
		texts, sizes := ids, sizes
		if tier == "go" && os.Getenv("ZCSTORE_SOAK") == "" {
			texts, sizes = ids[:3], [][]int{{1, 3}, {2}, {3}}
		}
		t.Run(tier, func(t *testing.T) { sameBits(t, filepath.Join(dir, "model"), tier, texts, long, sizes) })
	}
}

// sameBits encodes texts in batches of sizes[threads-1], each with another text before it when there is one.
func sameBits(t *testing.T, dir, tier string, ids [][]int32, other []int32, sizes [][]int) {
	t.Helper()
	var want []float32
	for _, form := range forms {
		if form != pack.F32 { // whose bits are those of plain weights
			want = nil
		}
		for threads := 1; threads <= 3; threads++ {
			m := open(t, device(t, tier, gpu.Options{Threads: threads, PackPrivately: form}), dir)
			for _, size := range sizes[threads-1] {
				var got []float32
				for i := 0; i < len(ids); i += size {
					var batch [][]int32
					if other != nil {
						batch = append(batch, other)
					}
					h, err := m.Encode(context.Background(), NewBatch(append(batch, ids[i:min(i+size, len(ids))]...)))
					got = append(got, values(t, h, err)[len(other)*m.sizes.Hidden:]...)
				}
				if want == nil {
					want = got
				}
				for i := range want {
					if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
						t.Fatalf("%s weights, %d threads, batches of %d: value %d is %v, at first %v", formName(form), threads, size, i, got[i], want[i])
					}
				}
			}
		}
	}
}

// BenchmarkMiniLM is the whole model on equal texts, on one thread (or $ZCSTORE_THREADS): for each tier, on plain weights and
// on packed ones. It reports sequences per second and GF/s of matrix work on average, and of the fastest run the share of
// what the probe of multiply-adds reaches just before and after.
func BenchmarkMiniLM(b *testing.B) {
	dir := filepath.Join(golden.Path(b, "minilm"), "model")
	threads := 1
	if os.Getenv("ZCSTORE_THREADS") != "" {
		threads = 0
	}
	for _, tier := range cpu.Tiers() {
		for _, form := range forms {
			b.Run(tier+"/"+formName(form), func(b *testing.B) {
				dev := device(b, tier, gpu.Options{Threads: threads, PackPrivately: form})
				m := open(b, dev, dir)
				for _, shape := range [][2]int{{1, 16}, {1, 128}, {8, 128}, {32, 128}, {32, 32}} {
					b.Run(fmt.Sprintf("%dx%d", shape[0], shape[1]), func(b *testing.B) { embedBench(b, dev, m, form, shape[0], shape[1]) })
				}
			})
		}
	}
}

func embedBench(b *testing.B, dev *cpu.Device, m *Model, form pack.Form, texts, length int) {
	ids := make([][]int32, texts)
	for i := range ids {
		ids[i] = make([]int32, length)
		for j := range ids[i] {
			ids[i][j] = int32(1000 + i*97 + j*31)
		}
	}
	batch := NewBatch(ids)
	dst := make([]float32, texts*m.sizes.Hidden)
	best := time.Duration(math.MaxInt64)
	before := dev.PeakOf(form)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if err := m.Embed(context.Background(), dst, batch); err != nil {
			b.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	peak := (before + dev.PeakOf(form)) / 2 * float64(dev.Info().Threads)
	h, f := float64(m.sizes.Hidden), float64(m.sizes.Intermediate)
	flop := float64(m.sizes.Layers) * 2 * float64(texts*length) * (4*h*h + 2*h*f + 2*float64(length)*h)
	s := b.Elapsed().Seconds() / float64(b.N)
	b.ReportMetric(flop/s/1e9, "GF/s")
	b.ReportMetric(flop/best.Seconds()/1e9, "best-GF/s")
	b.ReportMetric(float64(texts)/s, "seq/s")
	if peak > 0 {
		b.ReportMetric(100*flop/best.Seconds()/peak, "best-%peak")
	}
}
