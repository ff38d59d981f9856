package bert

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/gpu/gputest"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/models/nn"
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

func readConfig(t testing.TB, path string) Config {
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

// onDevices runs a test on the real device and on the late, poisoned one.
func onDevices(t *testing.T, f func(t *testing.T, dev gpu.Device)) {
	t.Run("cpu", func(t *testing.T) { f(t, cpu.Default()) })
	t.Run("async", func(t *testing.T) { f(t, gputest.Async(cpu.Default())) })
}

// open loads the model of a folder. On a device that has its own copy of the weights, those on the host are destroyed.
func open(t testing.TB, dev gpu.Device, dir string) *Model {
	t.Helper()
	views := read(t, filepath.Join(dir, "model.safetensors"))
	m, err := Load(dev, readConfig(t, filepath.Join(dir, "config.json")), views)
	if err != nil {
		t.Fatal(err)
	}
	if m.word.Mode != gpu.ZeroCopy {
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
func ragged(b Batch) (Batch, []int) {
	r := Batch{Starts: []int{0}}
	var from []int
	for i := range b.Len() {
		for j := b.Starts[i]; j < b.Starts[i+1]; j++ {
			if b.Mask != nil && b.Mask[j] == 0 {
				continue
			}
			from = append(from, j)
			r.IDs = append(r.IDs, b.IDs[j])
			r.Positions = append(r.Positions, int32(j-b.Starts[i]))
			if b.TypeIDs != nil {
				r.TypeIDs = append(r.TypeIDs, b.TypeIDs[j])
			}
		}
		r.Starts = append(r.Starts, len(r.IDs))
	}
	return r, from
}

func TestTinyGoldens(t *testing.T) {
	for _, name := range []string{"bert", "bert-seqcls"} {
		t.Run(name, func(t *testing.T) {
			onDevices(t, func(t *testing.T, dev gpu.Device) {
				dir := golden.Tree(t, "tiny", name)
				m := open(t, dev, dir)
				g := read(t, filepath.Join(dir, "golden.safetensors"))
				hidden := m.config.HiddenSize
				var seen, of float64
				compare := func(what string, got, want []float32, cols int, counts []int32) {
					t.Helper()
					diff, largest := worst(t, got, want, cols, counts)
					if limit := 2e-5 * max(1, largest); diff > limit {
						t.Errorf("%s: off by %.3g, limit %.3g", what, diff, limit)
					}
					if diff > seen {
						seen, of = diff, largest
					}
				}
				for _, c := range []string{"single", "right", "left", "hole"} {
					b := padded(t, g, c)
					r, from := ragged(b)
					states, err := m.HiddenStates(context.Background(), b)
					if err != nil {
						t.Fatal(err)
					}
					dense, err := m.HiddenStates(context.Background(), r)
					if err != nil {
						t.Fatal(err)
					}
					for i := range states {
						what := fmt.Sprintf("%s.hidden.%d", c, i)
						want := floats(t, g[what])
						compare(what, values(t, states[i], nil), want, hidden, b.Mask)
						var picked []float32
						for _, j := range from {
							picked = append(picked, want[j*hidden:(j+1)*hidden]...)
						}
						compare(what+" without padding", values(t, dense[i], nil), picked, hidden, nil)
					}
					if v, ok := g[c+".pooler_output"]; ok {
						got, err := m.Pooled(context.Background(), b)
						compare(c+".pooler_output", values(t, got, err), floats(t, v), hidden, nil)
					}
					if v, ok := g[c+".logits"]; ok {
						got, err := m.Classify(context.Background(), b)
						compare(c+".logits", values(t, got, err), floats(t, v), m.config.Labels(), nil)
					}
				}
				t.Logf("largest difference %.3g, of values up to %.3g", seen, of)
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
	if testing.Short() || raceEnabled {
		devices = func(t *testing.T, f func(t *testing.T, dev gpu.Device)) { f(t, cpu.Default()) }
	}
	devices(t, func(t *testing.T, dev gpu.Device) {
		m := open(t, dev, filepath.Join(dir, "model"))
		const probes, long = 12, 12
		var seen float64
		check := func(what string, got, want []float32, counts []int32) {
			t.Helper()
			diff, _ := worst(t, got, want, m.config.HiddenSize, counts)
			if diff > 1e-4 {
				t.Errorf("%s: off by %.3g", what, diff)
			}
			seen = max(seen, diff)
		}
		for i := range probes {
			if i > 1 && (raceEnabled || dev != gpu.Device(cpu.Default())) {
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
		if raceEnabled {
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

		texts := texts[:40]
		if dev != gpu.Device(cpu.Default()) {
			texts = texts[:12]
		}
		var ids [][]int32
		for _, x := range texts {
			ids = append(ids, x.IDs)
		}
		got := make([]float32, len(ids)*m.config.HiddenSize)
		if err := m.Embed(context.Background(), got, NewBatch(ids)); err != nil {
			t.Fatal(err)
		}
		diff, _ := worst(t, got, floats(t, g["embeddings"])[:len(got)], m.config.HiddenSize, nil)
		if diff > 1e-5 {
			t.Errorf("embeddings off by %.3g", diff)
		}
		t.Logf("hidden states: largest difference %.3g; %d embeddings: %.3g", seen, len(ids), diff)
	})
}

// A text gets the same bits alone, in any batch and on any number of threads.
func TestBitEquality(t *testing.T) {
	dir := golden.Tree(t, "tiny", "bert")
	var ids [][]int32
	for i := range 17 {
		row := make([]int32, 1+(i*7)%31)
		for j := range row {
			row[j] = int32((i*31 + j*17) % 211)
		}
		ids = append(ids, row)
	}
	var want []float32
	for threads := 1; threads <= 3; threads++ {
		dev, err := cpu.New(gpu.Options{Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		m := open(t, dev, dir)
		for _, size := range []int{1, 2, 5, 13, 17} {
			var got []float32
			for i := 0; i < len(ids); i += size {
				h, err := m.Encode(context.Background(), NewBatch(ids[i:min(i+size, len(ids))]))
				got = append(got, values(t, h, err)...)
			}
			if want == nil {
				want = got
			}
			for i := range want {
				if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
					t.Fatalf("%d threads, batches of %d: value %d is %v, alone %v", threads, size, i, got[i], want[i])
				}
			}
		}
	}
}

// bench is MiniLM on equal texts; it reports sequences per second and GF/s of matrix work.
func BenchmarkMiniLM(b *testing.B) {
	m := open(b, cpu.Default(), filepath.Join(golden.Path(b, "minilm"), "model"))
	for _, shape := range [][2]int{{1, 16}, {1, 128}, {8, 128}, {32, 32}} {
		b.Run(fmt.Sprintf("%dx%d", shape[0], shape[1]), func(b *testing.B) {
			ids := make([][]int32, shape[0])
			for i := range ids {
				ids[i] = make([]int32, shape[1])
				for j := range ids[i] {
					ids[i][j] = int32(1000 + i*97 + j*31)
				}
			}
			batch := NewBatch(ids)
			dst := make([]float32, shape[0]*m.config.HiddenSize)
			b.ReportAllocs()
			for b.Loop() {
				if err := m.Embed(context.Background(), dst, batch); err != nil {
					b.Fatal(err)
				}
			}
			h, f := float64(m.config.HiddenSize), float64(m.config.IntermediateSize)
			flop := float64(m.config.NumHiddenLayers) * 2 * float64(shape[0]*shape[1]) * (4*h*h + 2*h*f + 2*float64(shape[1])*h)
			s := b.Elapsed().Seconds() / float64(b.N)
			b.ReportMetric(flop/s/1e9, "GF/s")
			b.ReportMetric(float64(shape[0])/s, "seq/s")
		})
	}
}
