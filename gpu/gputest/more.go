package gputest

import (
	"errors"
	"runtime"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// wantError syncs and expects one typed error, and none after it.
func (b *bench) wantError(kind error, op string) {
	b.t.Helper()
	err := b.s.Sync()
	var e *gpu.OpError
	if !errors.As(err, &e) || !errors.Is(err, kind) || e.Op != op {
		b.t.Errorf("got error %v, want one of %s: %v", err, op, kind)
	}
	if err := b.s.Sync(); err != nil {
		b.t.Errorf("the error came a second time: %v", err)
	}
}

// testRefused: what every backend refuses before it runs anything.
func testRefused(t *testing.T, dev gpu.Device) {
	b := newBench(t, dev)
	w, v, tab := b.random(3, 4, 1), b.random(1, 4, 1), b.random(5, 4, 1)
	weight, gain, table := b.weight(&w, tensor.F32, tensor.Linear), b.weight(&v, tensor.F32, tensor.Other), b.weight(&tab, tensor.F32, tensor.Lookup)
	g, err := gpu.NewGroup([]*gpu.Weight{weight}, nil)
	if err != nil {
		t.Fatal(err)
	}
	x, y, z := b.put(b.random(2, 4, 1), 0), b.room(2, 3, 0), b.room(2, 4, 0)
	ids := b.ints([]int32{0, 1})
	wide := b.room(2, 8, 0)
	outside := x
	outside.Rows = 1000
	s := b.s
	seqs := func() gpu.Ragged { return s.Ragged([]int{0, 2}, nil) }
	for _, c := range []struct {
		name, op string
		kind     error
		do       func()
	}{
		{"inner dimension", "linear", gpu.ErrShape, func() { s.Linear(y, y, g, gpu.Epilogue{}) }},
		{"result", "linear", gpu.ErrShape, func() { s.Linear(z, x, g, gpu.Epilogue{}) }},
		{"residual", "linear", gpu.ErrShape, func() { s.Linear(y, x, g, gpu.Epilogue{Residual: x}) }},
		{"no weights", "linear", gpu.ErrShape, func() { s.Linear(y, x, nil, gpu.Epilogue{}) }},
		{"activation", "linear", gpu.ErrUnsupported, func() { s.Linear(y, x, g, gpu.Epilogue{Act: 99}) }},
		{"overlap", "linear", gpu.ErrAlias, func() { s.Linear(wide.Columns(2, 3), wide.Columns(0, 4), g, gpu.Epilogue{}) }},
		{"dtype", "linear", gpu.ErrUnsupported, func() { s.Linear(y, ids, g, gpu.Epilogue{}) }},
		{"outside", "add", gpu.ErrShape, func() { s.Add(outside, outside, outside) }},
		{"no buffer", "softmax", gpu.ErrShape, func() { s.Softmax(z, gpu.Matrix{Rows: 2, Cols: 4, Stride: 4, DType: tensor.F32}) }},
		{"shapes", "add", gpu.ErrShape, func() { s.Add(x, x, y) }},
		{"shapes", "mul", gpu.ErrShape, func() { s.Mul(y, x, z) }},
		{"partly over itself", "div", gpu.ErrAlias, func() { s.Binary(gpu.Div, wide.Columns(1, 4), wide.Columns(0, 4), x) }},
		{"shape", "relu", gpu.ErrShape, func() { s.Act(y, x, gpu.ReLU) }},
		{"gain", "layernorm", gpu.ErrShape, func() { s.LayerNorm(y, y, gpu.Matrix{}, gain, nil, 1e-5) }},
		{"a matrix as gain", "layernorm", gpu.ErrShape, func() { s.LayerNorm(z, x, gpu.Matrix{}, weight, nil, 1e-5) }},
		{"residual", "rmsnorm", gpu.ErrShape, func() { s.RMSNorm(z, x, y, gain, 1e-5) }},
		{"shape", "softmax", gpu.ErrShape, func() { s.Softmax(y, x) }},
		{"heads", "attention", gpu.ErrShape, func() { s.Attention(z, x, x, x, gpu.Attention{Heads: 3, Seqs: seqs()}) }},
		{"no heads", "attention", gpu.ErrShape, func() { s.Attention(z, x, x, x, gpu.Attention{Seqs: seqs()}) }},
		{"keys", "attention", gpu.ErrShape, func() { s.Attention(z, x, y, x, gpu.Attention{Heads: 2, Seqs: seqs()}) }},
		{"tokens", "attention", gpu.ErrShape, func() { s.Attention(z, x, x, x, gpu.Attention{Heads: 2, Seqs: s.Ragged([]int{0, 1}, nil)}) }},
		{"over its input", "attention", gpu.ErrAlias, func() { s.Attention(x, x, x, x, gpu.Attention{Heads: 2, Seqs: seqs()}) }},
		{"window", "attention", gpu.ErrShape, func() { s.Attention(z, x, x, x, gpu.Attention{Heads: 2, Seqs: seqs(), Window: -1}) }},
		{"bias", "attention", gpu.ErrShape, func() { s.Attention(z, x, x, x, gpu.Attention{Heads: 2, Seqs: seqs(), Bias: y}) }},
		{"keys without numbers", "attention", gpu.ErrShape, func() {
			s.Attention(z, x, x, x, gpu.Attention{Heads: 2, Seqs: seqs(), Relative: gpu.Relative{Keys: x}})
		}},
		{"numbers", "attention", gpu.ErrShape, func() {
			s.Attention(z, x, x, x, gpu.Attention{Heads: 2, Seqs: seqs(), Relative: gpu.Relative{IDs: s.I32(1), Keys: x}})
		}},
		{"even kernel", "unfold", gpu.ErrShape, func() { s.Unfold(z, x, 2, seqs()) }},
		{"result", "unfold", gpu.ErrShape, func() { s.Unfold(z, x, 3, seqs()) }},
		{"heads", "rotate", gpu.ErrShape, func() { s.Rotate(z, x, x, x, 3) }},
		{"cosines", "rotate", gpu.ErrShape, func() { s.Rotate(z, x, y, y, 1) }},
		{"starts fall", "ragged", gpu.ErrShape, func() { s.Ragged([]int{0, 2, 1}, nil) }},
		{"starts at one", "ragged", gpu.ErrShape, func() { s.Ragged([]int{1, 2}, nil) }},
		{"no starts", "ragged", gpu.ErrShape, func() { s.Ragged(nil, nil) }},
		{"mask", "ragged", gpu.ErrShape, func() { s.Ragged([]int{0, 2}, []int32{1}) }},
		{"no tables", "gather", gpu.ErrShape, func() { s.Gather(z, nil) }},
		{"role", "gather", gpu.ErrUnsupported, func() { s.Gather(z, []gpu.Lookup{{Table: weight, IDs: ids}}) }},
		{"row length", "gather", gpu.ErrShape, func() { s.Gather(y, []gpu.Lookup{{Table: table, IDs: ids}}) }},
		{"ids", "gather", gpu.ErrShape, func() { s.Gather(z.Slice(0, 1), []gpu.Lookup{{Table: table, IDs: ids}}) }},
		{"float ids", "gather", gpu.ErrUnsupported, func() { s.Gather(z, []gpu.Lookup{{Table: table, IDs: x.Slice(0, 1).Columns(0, 2)}}) }},
		{"rows", "pick", gpu.ErrShape, func() { s.Pick(z.Slice(0, 1), x, ids) }},
		{"result", "meanpool", gpu.ErrShape, func() { s.MeanPool(z, x, seqs()) }},
		{"shape", "l2normalize", gpu.ErrShape, func() { s.L2Normalize(y, x, 1e-12) }},
		{"host size", "upload", gpu.ErrShape, func() { s.Upload(x, make([]float32, 7)) }},
		{"host size", "download", gpu.ErrShape, func() { s.Download(make([]float32, 9), x) }},
		{"shape", "copy", gpu.ErrShape, func() { s.Copy(y, x) }},
		{"negative", "scratch", gpu.ErrShape, func() { s.F32(-1, 4) }},
	} {
		t.Run(c.op+" "+c.name, func(t *testing.T) {
			b.t = t
			c.do()
			s.Zero(wide) // does nothing after an error
			b.wantError(c.kind, c.op)
		})
	}
	b.t = t
	if got := b.read(wide); got[0] != float32(canary) {
		t.Error("an op ran after a refused one")
	}

	imports := []struct {
		name string
		v    tensor.View
		role tensor.Role
		kind error
	}{
		{"I64", tensor.View{DType: tensor.I64, Shape: tensor.Shape{1, 1}, Data: make([]byte, 8)}, tensor.Linear, gpu.ErrUnsupported},
		{"a vector as linear", tensor.View{DType: tensor.F32, Shape: tensor.Shape{2}, Data: make([]byte, 8)}, tensor.Linear, gpu.ErrShape},
		{"short", tensor.View{DType: tensor.F32, Shape: tensor.Shape{2, 2}, Data: make([]byte, 8)}, tensor.Linear, gpu.ErrShape},
		{"conv", tensor.View{DType: tensor.F32, Shape: tensor.Shape{1, 1}, Data: make([]byte, 4)}, tensor.Conv, gpu.ErrUnsupported},
	}
	for _, c := range imports {
		if _, err := dev.Import(c.v, c.role); !errors.Is(err, c.kind) {
			t.Errorf("import %s: %v, want %v", c.name, err, c.kind)
		}
	}
	other := Async(dev) // any other device
	defer other.Close()
	ob := newBench(t, other)
	foreign := ob.put(b.random(2, 4, 1), 0)
	s.Copy(z, foreign)
	b.wantError(gpu.ErrDevice, "copy")
	s.Linear(ob.room(2, 3, 0), foreign, g, gpu.Epilogue{})
	b.wantError(gpu.ErrDevice, "linear")
	fw := ob.weight(&w, tensor.F32, tensor.Linear)
	if _, err := gpu.NewGroup([]*gpu.Weight{weight, fw}, nil); !errors.Is(err, gpu.ErrDevice) {
		t.Errorf("a group over two devices: %v", err)
	}
	if _, err := gpu.NewGroup([]*gpu.Weight{table}, nil); !errors.Is(err, gpu.ErrUnsupported) {
		t.Errorf("a group of a table: %v", err)
	}
	if _, err := gpu.NewGroup([]*gpu.Weight{weight}, []*gpu.Weight{gain}); !errors.Is(err, gpu.ErrShape) {
		t.Errorf("a bias of another size: %v", err)
	}
}

// testStream: scratch grows to what is needed and is then used again.
func testStream(t *testing.T, dev gpu.Device) {
	s, err := dev.NewStream()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x := make([]float32, 100*300)
	round := func() {
		m := s.Mark()
		a := s.F32(100, 300)
		for range 3 {
			in := s.Mark()
			c := s.F32(100, 300)
			s.Upload(a, x)
			s.Add(c, a, a)
			s.Release(in)
		}
		s.Release(m)
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	round()
	high := s.HighWater()
	if want := 2 * 4 * 100 * 300; high < want || high > want+want/8 {
		t.Errorf("high water is %d bytes, want about %d", high, want)
	}
	round() // the pieces become one
	first := s.F32(1, 1)
	s.Release(gpu.Mark{})
	for range 20 {
		round()
	}
	if again := s.F32(1, 1); again.Buf != first.Buf || again.Off != first.Off {
		t.Error("scratch moved in steady state")
	}
	s.Release(gpu.Mark{})
	if s.HighWater() != high {
		t.Errorf("high water went from %d to %d", high, s.HighWater())
	}
	if dev.Info().Backend != "async" {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 50 {
			round()
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 50*16<<10 {
			t.Errorf("%d bytes allocated by 50 rounds in steady state", n)
		}
	}
}
