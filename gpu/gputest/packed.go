package gputest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// packed imports the panels of a weight. They are made here from the definition, by no code of the project.
func (b *bench) packed(g grid) *gpu.Weight {
	b.t.Helper()
	panels := (g.rows + 15) / 16
	f := make([]float32, panels*g.cols*16)
	for n := range g.rows {
		for k := range g.cols {
			f[(n/16*g.cols+k)*16+n%16] = float32(g.at(n, k))
		}
	}
	v, err := tensor.FromFloat32s(tensor.Shape{panels, g.cols, 16}, f)
	if err != nil {
		b.t.Fatal(err)
	}
	w, err := b.dev.(gpu.PackedImporter).ImportPacked(v, gpu.Panels(pack.F32), g.rows, g.cols)
	if err != nil {
		b.t.Fatal(err)
	}
	if w.Layout != gpu.Panels(pack.F32) || w.N != g.rows || w.K != g.cols || w.PadN != panels*16-g.rows {
		b.t.Errorf("the weight says %+v", w.WeightInfo)
	}
	return w
}

// testPacked: panels give the right answers, and the same bits as the plain weight does.
func testPacked(t *testing.T, dev gpu.Device) {
	if _, ok := dev.(gpu.PackedImporter); !ok {
		t.Skipf("%s takes no packed weights", dev.Info().Backend)
	}
	for _, c := range [][3]int{{1, 1, 1}, {1, 100, 67}, {3, 16, 5}, {5, 65, 384}, {13, 31, 33}, {40, 384, 384}, {29, 70, 1536}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			b := newBench(t, dev)
			x, w, second, bias := b.random(c[0], c[2], 1), b.random(c[1], c[2], 1), b.random(3, c[2], 1), b.random(1, c[1], 1)
			bw := b.weight(&bias, tensor.F32, tensor.Other)
			run := func(ws ...*gpu.Weight) gpu.Matrix {
				g, err := gpu.NewGroup(ws, []*gpu.Weight{bw, nil})
				if err != nil {
					t.Fatal(err)
				}
				dst := b.room(c[0], c[1]+3, 1)
				b.s.Linear(dst, b.put(x, 0), g, gpu.Epilogue{Act: gpu.SiLU})
				b.check(dst, linearRef(x, []grid{w, second}, []grid{bias, {}}, gpu.SiLU, nil))
				return dst
			}
			got := run(b.packed(w), b.packed(second))
			want := run(b.weight(&w, tensor.F32, tensor.Linear), b.weight(&second, tensor.F32, tensor.Linear))
			same(t, "packed", b.read(got), b.read(want))
			mixed := run(b.packed(w), b.weight(&second, tensor.F32, tensor.LinearT))
			same(t, "one packed, one turned", b.read(mixed), b.read(want))
		})
	}
	b := newBench(t, dev)
	g := b.random(3, 4, 1)
	v, err := tensor.FromFloat32s(tensor.Shape{1, 4, 16}, make([]float32, 64))
	if err != nil {
		t.Fatal(err)
	}
	p := dev.(gpu.PackedImporter)
	panels := gpu.Panels(pack.F32)
	other := panels
	other.Version++
	for name, try := range map[string]struct {
		v      tensor.View
		layout gpu.Layout
		n, k   int
		kind   error
	}{
		"another version": {v, other, 3, 4, gpu.ErrUnsupported},
		"plain":           {v, gpu.Plain, 3, 4, gpu.ErrUnsupported},
		"too many":        {v, panels, 17, 4, gpu.ErrShape},
		"none":            {v, panels, 0, 4, gpu.ErrShape},
		"negative":        {v, panels, -1, 4, gpu.ErrShape},
		"other depth":     {v, panels, 3, 5, gpu.ErrShape},
		"short":           {tensor.View{DType: v.DType, Shape: v.Shape, Data: v.Data[:252]}, panels, 3, 4, gpu.ErrShape},
		"dtype":           {tensor.View{DType: tensor.BF16, Shape: v.Shape, Data: v.Data[:128]}, panels, 3, 4, gpu.ErrUnsupported},
	} {
		if _, err := p.ImportPacked(try.v, try.layout, try.n, try.k); !errors.Is(err, try.kind) {
			t.Errorf("%s: %v, want %v", name, err, try.kind)
		}
	}
	if w := b.packed(g); w.Role != tensor.Linear {
		t.Errorf("role %v", w.Role)
	}
}
