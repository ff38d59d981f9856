package cpu

import (
	"math"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
)

// operands is rows of x as tiles of a product take them: F32 where the model put them, or rounded to BF16 or quantised
// to 8 bits in memory of the queue.
type operands struct {
	f      []float32 // bytes of any kind
	ld     int       // elements of f from row to row
	rows   int
	scales []rowScale // of each row, in 8 bits
}

// operands makes them of x. It is done once for an op: each row takes part in every chunk of columns.
func (q *queue) operands(p *tileSet, f pack.Form, x gpu.Matrix) operands {
	// An odd number of lines of the cache from row to row, so that they do not share a few sets.
	ld := roundUp(roundUp(x.Cols, lanes)*p.lineBytes/f.Inputs()/4, lanes) | lanes
	t := &q.rounded
	t.p, t.x = p, x
	t.o = operands{f: grow(t.own[f], x.Rows*ld), ld: ld, rows: x.Rows}
	t.own[f] = t.o.f
	if f == pack.Int8 {
		if cap(t.scales) < x.Rows {
			t.scales = make([]rowScale, x.Rows)
		}
		t.scales = t.scales[:x.Rows]
		t.o.scales = t.scales
	}
	q.eachRow(x, 1, t)
	o := t.o
	t.p, t.x, t.o = nil, gpu.Matrix{}, operands{}
	return o
}

// operandsTask makes operands, row by row.
type operandsTask struct {
	p      *tileSet
	x      gpu.Matrix
	o      operands
	own    [pack.Int8 + 1][]float32 // used again from op to op
	scales []rowScale
}

func (t *operandsTask) row(i int, s *scratch) {
	s.row = operand{src: &floats(t.x)[i*t.x.Stride], dst: &t.o.f[i*t.o.ld], n: t.x.Cols}
	if t.o.scales != nil {
		s.row.row = &t.o.scales[i]
	}
	switch {
	case t.p.row != nil:
		t.p.row(&s.row)
	case t.o.scales != nil:
		quantise(int32s(t.o.f[i*t.o.ld:]), row(floats(t.x), t.x, i), s.row.row)
	default:
		roundPairs(t.o.f[i*t.o.ld:], row(floats(t.x), t.x, i))
	}
	s.row = operand{}
}

// roundPairs makes BF16 of a row and writes the second of each two before the first, the order in which they are added.
func roundPairs(dst, x []float32) {
	if len(x)%2 == 1 {
		dst[len(x)-1] = 0
	}
	for i, v := range x {
		dst[i^1] = widenBF16(pack.RoundBF16(v))
	}
}

// quantise is rowInt8 of internal/asmgen in plain Go, to the last bit.
func quantise(dst []int32, x []float32, s *rowScale) {
	var lo, hi, bad float32
	for _, v := range x {
		lo, hi = min(lo, v), max(hi, v)
		bad += v * 0 // 0, or NaN
	}
	const part = float32(1.0 / 255)
	s.scale = float32(hi*part) - float32(lo*part) + bad
	s.less = 0
	var inv float32
	switch {
	case s.scale != s.scale:
		clear(dst[:len(x)])
		return
	case s.scale < 0x1p-126: // subnormal
		s.scale = 0
	default:
		inv = 1 / s.scale
	}
	round := func(v float32) int32 { return int32(math.RoundToEven(float64(float32(v * inv)))) }
	s.less = round(lo)
	for i, v := range x {
		dst[i] = min(max(round(v)-s.less, 0), 255)
	}
}

// fma is a*b + c with one rounding, as the instruction has it. The product of two F32 is exact in F64; the sum is rounded to
// odd, so that rounding it again gives what rounding once would have.
func fma(a, b, c float32) float32 {
	p, z := float64(a)*float64(b), float64(c)
	sum := p + z
	bp := sum - z
	rest := (p - bp) + (z - (sum - bp)) // what the sum lost, exactly
	if bits := math.Float64bits(sum); rest != 0 && rest == rest && bits&1 == 0 {
		if (rest > 0) == (sum > 0) {
			bits++
		} else {
			bits--
		}
		sum = math.Float64frombits(bits)
	}
	return float32(sum)
}
