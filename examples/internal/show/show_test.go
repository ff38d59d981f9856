package show

import (
	"math"
	"testing"
)

func TestLargest(t *testing.T) {
	nan := float32(math.NaN())
	for _, tt := range []struct {
		name      string
		got, want [][]float32
		largest   float64
	}{
		{"equal", [][]float32{{1, 2}, {3}}, [][]float32{{1, 2}, {3}}, 0},
		{"one off", [][]float32{{1, 2}}, [][]float32{{1, 2.5}}, 0.5},
		{"a row missing", [][]float32{{1}}, [][]float32{{1}, {2}}, math.Inf(1)},
		{"a value missing", [][]float32{{1}}, [][]float32{{1, 2}}, math.Inf(1)},
		{"NaN got", [][]float32{{nan}}, [][]float32{{1}}, math.Inf(1)},
		{"NaN wanted", [][]float32{{1}}, [][]float32{{nan}}, math.Inf(1)},
	} {
		if got := Largest(tt.got, tt.want); got != tt.largest {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.largest)
		}
	}
	if Difference(2e-5) == nil || Difference(math.NaN()) == nil || Difference(1e-6) != nil {
		t.Error("the limit does not hold")
	}
}
