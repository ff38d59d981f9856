package cpu

import (
	"math"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
)

// operands is rows of x as tiles of a product take them: F32 where the model put them, or rounded to BF16 or quantised
// to 8 bits in memory that is used again from op to op.
type operands struct {
	f      []float32 // bytes of any kind
	ld     int       // elements of f from row to row
	scales []rowScale
}

// room makes room for rows.
func (o *operands) room(p *tileSet, f pack.Form, rows, cols int) {
	// An odd number of lines of the cache from row to row, so that they do not share a few sets.
	o.ld = roundUp(roundUp(cols, lanes)*p.lineBytes/f.Inputs()/4, lanes) | lanes
	o.f = grow(o.f, rows*o.ld)
	if f != pack.Int8 {
		return
	}
	if cap(o.scales) < rows {
		o.scales = make([]rowScale, rows)
	}
	o.scales = o.scales[:rows]
}

// set makes a row of them from a row of x.
func (o *operands) set(p *tileSet, to int, x gpu.Matrix, from int, s *scratch) {
	src := row(floats(x), x, from)
	s.row = operand{src: &src[0], dst: &o.f[to*o.ld], n: len(src)}
	if o.scales != nil {
		s.row.row = &o.scales[to]
	}
	switch {
	case p.row != nil:
		p.row(&s.row)
	case o.scales != nil:
		quantise(int32s(o.f[to*o.ld:]), src, s.row.row)
	default:
		roundPairs(o.f[to*o.ld:], src)
	}
	s.row = operand{}
}

// from is the rows from one on.
func (o *operands) from(i int) operands {
	p := operands{f: o.f[i*o.ld:], ld: o.ld}
	if o.scales != nil {
		p.scales = o.scales[i:]
	}
	return p
}

// operands makes them of all rows of x, for pieces that share them.
func (q *queue) operands(p *tileSet, f pack.Form, x gpu.Matrix) {
	t := &q.rounded
	t.p, t.x, t.o = p, x, &t.forms[f]
	t.o.room(p, f, x.Rows, x.Cols)
	q.eachRow(x, 1, t)
	t.p, t.x, t.o = nil, gpu.Matrix{}, nil
}

// operandsTask makes operands, row by row.
type operandsTask struct {
	p     *tileSet
	x     gpu.Matrix
	o     *operands
	forms [pack.Int8 + 1]operands
}

func (t *operandsTask) row(i int, s *scratch) { t.o.set(t.p, i, t.x, i, s) }

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
	zero := float32(-math.RoundToEven(float64(float32(lo * inv))))
	s.less = -int32(zero)
	for i, v := range x {
		dst[i] = min(int32(math.RoundToEven(float64(fma(v, inv, zero)))), 255)
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
