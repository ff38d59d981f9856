package gputest

import (
	"math"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

// u is half the distance of an F32 to the next, relative: the error of one rounding.
const u = 1.0 / (1 << 24)

// grid is a matrix of float64: the world of the reference. Values have come from F32 unchanged.
type grid struct {
	rows, cols int
	v          []float64
}

func newGrid(rows, cols int) grid { return grid{rows, cols, make([]float64, rows*cols)} }

func (g grid) at(i, j int) float64     { return g.v[i*g.cols+j] }
func (g grid) row(i int) []float64     { return g.v[i*g.cols : (i+1)*g.cols] }
func (g grid) set(i, j int, x float64) { g.v[i*g.cols+j] = x }

// answer is what an op is to give, and how far from it each element may be.
type answer struct{ want, bound grid }

func newAnswer(rows, cols int) answer { return answer{newGrid(rows, cols), newGrid(rows, cols)} }

func (a answer) set(i, j int, want, bound float64) {
	a.want.set(i, j, want)
	a.bound.set(i, j, bound)
}

// actOf is the activation from its definition.
func actOf(a gpu.Act, x float64) float64 {
	switch a {
	case gpu.ReLU:
		if x < 0 {
			return 0
		}
	case gpu.GELUErf:
		return x * math.Erfc(-x/math.Sqrt2) / 2
	case gpu.GELUTanh:
		return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*math.Pow(x, 3))))
	case gpu.SiLU:
		return x / (1 + math.Exp(-x))
	case gpu.Tanh:
		return math.Tanh(x)
	case gpu.Sigmoid:
		return 1 / (1 + math.Exp(-x))
	}
	return x
}

// actBound: none and relu are exact. The others may use F32 polynomials good to a few units of the argument's size:
// 1+erf cancels for negative x, where the result is small and only its absolute error counts.
func actBound(a gpu.Act, x float64) float64 {
	if a == gpu.None || a == gpu.ReLU {
		return 0
	}
	return 8 * u * math.Max(1, math.Abs(x))
}

// linearRef: K products summed in any order lose at most K+1 roundings of the sum of magnitudes; bias and residual are
// one more each. No activation is steeper than 1.13.
func linearRef(x grid, ws []grid, biases []grid, a gpu.Act, residual *grid) answer {
	n := 0
	for _, w := range ws {
		n += w.rows
	}
	out := newAnswer(x.rows, n)
	col := 0
	for g, w := range ws {
		for j := range w.rows {
			for i := range x.rows {
				var sum, size float64
				for k := range x.cols {
					p := x.at(i, k) * w.at(j, k)
					sum += p
					size += math.Abs(p)
				}
				if biases != nil && biases[g].v != nil {
					sum += biases[g].v[j]
					size += math.Abs(biases[g].v[j])
				}
				bound := 1.13*float64(x.cols+3)*u*size + actBound(a, sum)
				y := actOf(a, sum)
				if residual != nil {
					y += residual.at(i, col+j)
				}
				out.set(i, col+j, y, bound+2*u*math.Abs(y)+tiny)
			}
		}
		col += w.rows
	}
	return out
}

// tiny is the smallest normal F32: results below it may be flushed to zero.
const tiny = 1.2e-38

// binaryRef: one rounding, two for a quotient by reciprocal.
func binaryRef(op gpu.Binary, a, b grid) answer {
	out := newAnswer(a.rows, a.cols)
	for i := range a.rows {
		for j := range a.cols {
			x, y := a.at(i, j), b.at(i%b.rows, j%b.cols)
			var z float64
			switch op {
			case gpu.Add:
				z = x + y
			case gpu.Sub:
				z = x - y
			case gpu.Mul:
				z = x * y
			case gpu.Div:
				z = x / y
			case gpu.Min:
				z = math.Min(x, y)
			case gpu.Max:
				z = math.Max(x, y)
			}
			if math.IsNaN(x) || math.IsNaN(y) { // math.Max prefers an infinity
				z = math.NaN()
			}
			out.set(i, j, z, 4*u*math.Abs(z)+tiny)
		}
	}
	return out
}

func actRef(a gpu.Act, x grid) answer {
	out := newAnswer(x.rows, x.cols)
	for i, v := range x.v {
		out.want.v[i], out.bound.v[i] = actOf(a, v), actBound(a, v)
	}
	return out
}

// normRef: mean and variance of n values may each lose n roundings in F32 sums; what is left of x-mean keeps the error
// of both relative to their size.
func normRef(x grid, residual *grid, gamma, beta []float64, eps float64, center bool) answer {
	out := newAnswer(x.rows, x.cols)
	n := float64(x.cols)
	for i := range x.rows {
		t := make([]float64, x.cols)
		var mean, size float64
		for j := range t {
			t[j] = x.at(i, j)
			if residual != nil {
				t[j] += residual.at(i, j)
			}
			mean += t[j] / n
			size += math.Abs(t[j]) / n
		}
		if !center {
			mean = 0
		}
		var variance float64
		for _, v := range t {
			variance += (v - mean) * (v - mean) / n
		}
		inv := 1 / math.Sqrt(variance+eps)
		for j, v := range t {
			g, b := 1.0, 0.0
			if gamma != nil {
				g = gamma[j]
			}
			if beta != nil {
				b = beta[j]
			}
			y := (v-mean)*inv*g + b
			out.set(i, j, y, (n+16)*u*((math.Abs(v)+size)*inv*math.Abs(g)+math.Abs(b))+tiny)
		}
	}
	return out
}

// softmaxRow: exp of a difference of size d, rounded to F32, is off by d roundings; the sum by n.
func softmaxRow(x []float64, hidden func(int) bool) (p, bound []float64) {
	p, bound = make([]float64, len(x)), make([]float64, len(x))
	top := math.Inf(-1)
	any := false
	for j, v := range x {
		if hidden != nil && hidden(j) {
			continue
		}
		any = true
		top = math.Max(top, v)
	}
	if !any {
		return p, bound
	}
	var sum float64
	for j, v := range x {
		if hidden != nil && hidden(j) {
			continue
		}
		p[j] = math.Exp(v - top)
		sum += p[j]
	}
	for j := range p {
		if hidden != nil && hidden(j) {
			continue
		}
		p[j] /= sum
		bound[j] = tiny
		if p[j] > 0 {
			bound[j] += p[j] * u * (float64(len(x)) + 16 + 2*math.Abs(x[j]-top) + 2*math.Abs(top))
		}
	}
	return p, bound
}

func softmaxRef(x grid) answer {
	out := newAnswer(x.rows, x.cols)
	for i := range x.rows {
		p, b := softmaxRow(x.v[i*x.cols:(i+1)*x.cols], nil)
		for j := range p {
			out.set(i, j, p[j], b[j])
		}
	}
	return out
}

// distances is what an attention has for how far a key is from its query.
type distances struct {
	window  int
	bias    *grid // [2n-1, heads] for sequences of up to n tokens
	ids     []int32
	keys    *grid
	more    *grid // queries
	longest int
}

// add is what a score gets, and the sum of the magnitudes of its parts.
func (x *distances) add(q, k grid, i, j, h, d int, scale float64) (sum, size float64) {
	part := func(p float64) { sum, size = sum+p, size+math.Abs(p) }
	if x.bias != nil {
		part(x.bias.at(x.longest-1+j-i, h))
	}
	if x.ids != nil {
		id := int(x.ids[x.longest-1+i-j])
		for c := h * d; c < (h+1)*d; c++ {
			if x.keys != nil {
				part(q.at(i, c) * x.keys.at(id, c) * scale)
			}
			if x.more != nil {
				part(k.at(j, c) * x.more.at(id, c) * scale)
			}
		}
	}
	return sum, size
}

// attentionRef: a score of d products is off by d+2 roundings of its magnitudes, which exp makes relative; then the
// bounds of softmax and of a sum over the keys. Products with what distances have are as many again.
func attentionRef(q, k, v grid, heads int, scale float64, starts []int, mask []int32, causal bool, far *distances) answer {
	out := newAnswer(q.rows, q.cols)
	d := q.cols / heads
	group := q.cols / k.cols // heads that share keys and values
	if scale == 0 {
		scale = 1 / math.Sqrt(float64(d))
	}
	for s := range len(starts) - 1 {
		from, to := starts[s], starts[s+1]
		n := to - from
		for h := range heads {
			shared := h/group*d - h*d // from a column of q to that of k and v
			for i := from; i < to; i++ {
				hidden := func(j int) bool {
					return mask != nil && mask[from+j] == 0 || causal && from+j > i || far != nil && far.window > 0 && max(from+j-i, i-from-j) > far.window
				}
				scores := make([]float64, n)
				var off float64
				for j := range n {
					var size float64
					for c := h * d; c < (h+1)*d; c++ {
						p := q.at(i, c) * k.at(from+j, c+shared) * scale
						scores[j] += p
						size += math.Abs(p)
					}
					terms := d + 2
					if far != nil {
						more, magnitude := far.add(q, k, i, from+j, h, d, scale)
						scores[j], size, terms = scores[j]+more, size+magnitude, 3*d+4
					}
					if !hidden(j) {
						off = math.Max(off, float64(terms)*u*size)
					}
				}
				p, pb := softmaxRow(scores, hidden)
				for c := h * d; c < (h+1)*d; c++ {
					var y, bound float64
					for j := range n {
						if hidden(j) {
							continue
						}
						x := v.at(from+j, c+shared)
						y += p[j] * x
						bound += math.Abs(x) * (pb[j] + p[j]*(2*off+float64(n+2)*u))
					}
					out.set(i, c, y, bound+tiny)
				}
			}
		}
	}
	return out
}

// meanRef: n additions and a division.
func meanRef(x grid, starts []int, mask []int32) answer {
	out := newAnswer(len(starts)-1, x.cols)
	for s := range len(starts) - 1 {
		for c := range x.cols {
			var sum, size, n float64
			for i := starts[s]; i < starts[s+1]; i++ {
				if mask == nil || mask[i] != 0 {
					sum += x.at(i, c)
					size += math.Abs(x.at(i, c))
					n++
				}
			}
			if n > 0 {
				out.set(s, c, sum/n, (n+2)*u*size/n+tiny)
			}
		}
	}
	return out
}

// l2Ref: a sum of n squares, a root and a product.
func l2Ref(x grid, eps float64) answer {
	out := newAnswer(x.rows, x.cols)
	for i := range x.rows {
		var square float64
		for j := range x.cols {
			square += x.at(i, j) * x.at(i, j)
		}
		length := math.Max(math.Sqrt(square), eps)
		for j := range x.cols {
			y := x.at(i, j) / length
			out.set(i, j, y, float64(x.cols+8)*u*math.Abs(y)+tiny)
		}
	}
	return out
}

// gatherRef: one rounding for each table after the first.
func gatherRef(tables []grid, ids [][]int32) answer {
	out := newAnswer(len(ids[0]), tables[0].cols)
	for i := range out.want.rows {
		for j := range out.want.cols {
			var sum, size float64
			for t, g := range tables {
				sum += g.at(int(ids[t][i]), j)
				size += math.Abs(g.at(int(ids[t][i]), j))
			}
			out.set(i, j, sum, float64(len(tables)-1)*u*size)
		}
	}
	return out
}

// narrow rounds a float64 that is an F32 to the dtype and gives its bytes' value again: what the op is to compute with.
func narrow(x float32, d tensor.DType) (bits uint16, back float64) {
	switch d {
	case tensor.BF16:
		b := math.Float32bits(x)
		b += 0x7fff + b>>16&1 // to the nearest, ties to even
		return uint16(b >> 16), float64(math.Float32frombits(b &^ 0xffff))
	case tensor.F16:
		s := uint16(0)
		if math.Signbit(float64(x)) {
			s = 0x8000
		}
		a := math.Abs(float64(x))
		_, e := math.Frexp(a) // a = f * 2^e, 1/2 <= f < 1
		step := math.Ldexp(1, max(e-11, -24))
		n := math.RoundToEven(a / step)
		a = n * step
		switch {
		case a == 0:
			return s, math.Copysign(0, float64(x))
		case a < math.Ldexp(1, -14):
			bits = uint16(a * math.Ldexp(1, 24))
		default:
			f, e := math.Frexp(a)
			bits = uint16((f*2-1)*1024) + uint16(e-1+15)<<10
		}
		return s | bits, math.Copysign(a, float64(x))
	}
	return 0, float64(x)
}

// near says whether got is as close to want as bound allows. NaN is like NaN, an infinity only like itself; a want
// beyond the F32 range is an infinity.
func near(got float32, want, bound float64) bool {
	switch {
	case math.IsNaN(want):
		return got != got
	case math.IsInf(float64(float32(want)), 0) || math.IsInf(want, 0):
		return float64(got) == float64(float32(want))
	}
	return math.Abs(float64(got)-want) <= bound
}
