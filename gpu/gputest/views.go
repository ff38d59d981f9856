package gputest

import (
	"errors"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// testViews: a view that has a packed form is computed on in that form, and looked up in the plain bytes. The two have other
// values here, which tells them apart.
func testViews(t *testing.T, dev gpu.Device) {
	const n, k = 37, 21
	view := func(b *bench, plain, packed grid, role tensor.Role) tensor.View {
		t.Helper()
		f := make([]float32, n*k)
		for i := range n {
			for j := range k {
				at := i*k + j
				if role == tensor.LinearT {
					at = j*n + i
				}
				f[at] = float32(plain.at(i, j))
			}
		}
		shape := tensor.Shape{n, k}
		if role == tensor.LinearT {
			shape = tensor.Shape{k, n}
		}
		v, err := tensor.FromFloat32s(shape, f)
		if err != nil {
			t.Fatal(err)
		}
		p, err := pack.Sized(pack.F32, n, k)
		if err != nil {
			t.Fatal(err)
		}
		panels := make([]float32, p.Bytes()/4)
		for i := range n {
			for j := range k {
				panels[(i/16*k+j)*16+i%16] = float32(packed.at(i, j))
			}
		}
		made, err := tensor.FromFloat32s(p.Shape(), panels)
		if err != nil {
			t.Fatal(err)
		}
		layout := gpu.Panels(pack.F32)
		v.Packed = &tensor.Packed{Layout: layout.Name, Version: layout.Version, DType: made.DType, Shape: made.Shape, Data: made.Data}
		return v
	}
	for _, role := range []tensor.Role{tensor.Linear, tensor.LinearT, tensor.LookupLinear, tensor.Lookup} {
		t.Run(role.String(), func(t *testing.T) {
			b := newBench(t, dev)
			plain, packed, x := b.random(n, k, 1), b.random(n, k, 1), b.random(5, k, 1)
			w, err := dev.Import(view(b, plain, packed, role), role)
			if _, ok := dev.(gpu.PackedImporter); !ok && role != tensor.Lookup {
				if err != nil { // it says so, or has it done by another device
					if !errors.Is(err, gpu.ErrUnsupported) {
						t.Errorf("a device that takes no packed weights: %v", err)
					}
					return
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if role != tensor.Lookup {
				if w.Layout != gpu.Panels(pack.F32) || w.N != n || w.K != k {
					t.Errorf("the weight says %+v", w.WeightInfo)
				}
				g, err := gpu.NewGroup([]*gpu.Weight{w}, nil)
				if err != nil {
					t.Fatal(err)
				}
				dst := b.room(5, n, 0)
				b.s.Linear(dst, b.put(x, 0), g, gpu.Epilogue{})
				b.check(dst, linearRef(x, []grid{packed}, nil, gpu.None, nil))
			}
			if role == tensor.LookupLinear || role == tensor.Lookup {
				ids := []int32{0, n - 1, 16, 16}
				other := b.random(4, k, 1)
				dst := b.room(4, k, 1)
				tables := []gpu.Lookup{{Table: b.weight(&other, tensor.F32, tensor.Lookup), IDs: b.ints([]int32{3, 2, 1, 0})}, {Table: w, IDs: b.ints(ids)}}
				b.s.Gather(dst, tables)
				b.check(dst, gatherRef([]grid{other, plain}, [][]int32{{3, 2, 1, 0}, ids}))
				if tables[1].Table != w {
					t.Error("the caller's tables were changed")
				}
			}
		})
	}
	b := newBench(t, dev)
	for name, change := range map[string]func(*tensor.View){
		"another layout":  func(v *tensor.View) { v.Packed.Layout = "p17" },
		"another version": func(v *tensor.View) { v.Packed.Version++ },
		"another size":    func(v *tensor.View) { v.Packed.Shape = tensor.Shape{1, k, 16}; v.Packed.Data = v.Packed.Data[:k*64] },
	} {
		v := view(b, b.random(n, k, 1), b.random(n, k, 1), tensor.Linear)
		change(&v)
		if w, err := dev.Import(v, tensor.Linear); err == nil {
			t.Errorf("%s is taken: %+v", name, w.WeightInfo) // on the plain bytes, which nobody asked for
		}
	}
}
