package gputest

import (
	"math"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// testBits: a row of a result does not depend on how many others there are, nor on which.
func testBits(t *testing.T, dev gpu.Device) {
	const rows, k = 131, 131
	for _, n := range []int{103, 16, 64} {
		b := newBench(t, dev)
		x, w, bias := b.random(rows, k, 1), b.random(n, k, 1), b.random(1, n, 1)
		for _, d := range []tensor.DType{tensor.F32, tensor.BF16} {
			for _, role := range []tensor.Role{tensor.Linear, tensor.LinearT} {
				g, err := gpu.NewGroup([]*gpu.Weight{b.weight(&w, d, role)}, []*gpu.Weight{b.weight(&bias, d, tensor.Other)})
				if err != nil {
					t.Fatal(err)
				}
				inBatches(b, g, b.put(x, 0), n)
			}
		}
	}
	for _, size := range []int{11, 32} {
		b := newBench(t, dev)
		starts := []int{0, 3, 4, 40, rows}
		const heads = 3
		mask := make([]int32, rows)
		for i := range mask {
			mask[i] = int32(boolInt(i < 4 || i%7 != 0)) // in the first two nothing is hidden
		}
		q := b.put(b.random(rows, heads*size*3, 1), 0)
		at := func(m gpu.Matrix, i int) gpu.Matrix { return m.Columns(i*heads*size, heads*size) }
		for _, hidden := range [][]int32{nil, mask} {
			dst := b.room(rows, heads*size, 0)
			b.s.Attention(dst, at(q, 0), at(q, 1), at(q, 2), gpu.Attention{Heads: heads, Seqs: b.s.Ragged(starts, hidden)})
			want := b.read(dst)
			for i := range len(starts) - 1 {
				from, n := starts[i], starts[i+1]-starts[i]
				var own []int32
				if hidden != nil && from >= 4 {
					own = hidden[from : from+n]
				}
				alone, part := q.Slice(from, n), b.s.F32(n, heads*size)
				b.s.Attention(part, at(alone, 0), at(alone, 1), at(alone, 2), gpu.Attention{Heads: heads, Seqs: b.s.Ragged([]int{0, n}, own)})
				same(t, "attention", b.read(part), want[from*heads*size:(from+n)*heads*size])
			}
		}
	}
}

// inBatches: a product of all rows has, for each batch of them, the bits that the product of the batch has.
func inBatches(b *bench, g *gpu.Group, x gpu.Matrix, n int) {
	b.t.Helper()
	e := gpu.Epilogue{Act: gpu.GELUErf}
	dst := b.room(x.Rows, n, 0)
	b.s.Linear(dst, x, g, e)
	want := b.read(dst)
	for _, m := range []int{1, 2, 3, 5, 13, 31, 64, 128} {
		for from := 0; from+m <= x.Rows; from += m {
			part := b.s.F32(m, n)
			b.s.Linear(part, x.Slice(from, m), g, e)
			same(b.t, "linear", b.read(part), want[from*n:(from+m)*n])
		}
	}
}

func same(t testing.TB, op string, got, want []float32) {
	t.Helper()
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d is %v, of the whole or in another form it is %v", op, i, got[i], want[i])
		}
	}
}
