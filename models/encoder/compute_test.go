package encoder

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/internal/golden"
	"github.com/zcstore/zcstore/shm/tensor"
)

// An encoder with heads of 64 on texts of 200 and 137 tokens, on every tier, packed and late: the tiny ones never fill a tile.
func TestEncoderAgainstTorch(t *testing.T) {
	var doc struct {
		Config  json.RawMessage
		Tensors [][3]json.RawMessage
		Lengths []int
	}
	file, err := os.ReadFile(golden.Tree(t, "compute", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(file, &doc); err != nil {
		t.Fatal(err)
	}
	c, err := ParseConfig(doc.Config)
	if err != nil {
		t.Fatal(err)
	}
	weights := func() Views { // anew for each device: some overwrite what they imported
		views := Views{}
		for _, x := range doc.Tensors {
			var name string
			var shape tensor.Shape
			var seed uint32
			for i, into := range []any{&name, &shape, &seed} {
				if err := json.Unmarshal(x[i], into); err != nil {
					t.Fatal(err)
				}
			}
			n, _ := shape.Elements()
			f := golden.Noise(seed, n, 1./8)
			if len(name) > 16 && name[len(name)-16:] == "LayerNorm.weight" {
				for i := range f {
					f[i]++
				}
			}
			if views[name], err = tensor.FromFloat32s(shape, f); err != nil {
				t.Fatal(err)
			}
		}
		return views
	}
	var ids [][]int32
	for i, n := range doc.Lengths {
		row := make([]int32, n)
		for j := range row {
			row[j] = int32((j*31 + 7*i) % 97)
		}
		ids = append(ids, row)
	}
	want := floats(t, read(t, golden.Tree(t, "compute", "golden.safetensors"))["bert"])
	onDevices(t, func(t *testing.T, dev gpu.Device) {
		m, err := Load(dev, c, weights())
		if err != nil {
			t.Fatal(err)
		}
		h, err := m.Encode(context.Background(), NewBatch(ids))
		got := values(t, h, err)
		into := make([]float32, len(got))
		if err := m.EncodeInto(context.Background(), into, NewBatch(ids)); err != nil || !slices.Equal(into, got) {
			t.Errorf("EncodeInto gives something else, or %v", err)
		}
		worst := 0.0
		for i, w := range want {
			g := got[i/256*16*256+i%256]
			worst = max(worst, math.Abs(float64(g)-float64(w)))
			if g != g {
				t.Fatalf("value %d is NaN", i)
			}
		}
		t.Logf("%d values, largest difference %.2g", len(want), worst)
		if len(want) != 22*256 || worst > 2e-5 {
			t.Errorf("largest difference %.3g of %d values", worst, len(want))
		}
	})
}
