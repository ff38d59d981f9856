package main

import "math"

// fit is the polynomial, constant first, that meets f at the Chebyshev points of an interval: within a few per cent of the
// best of its degree.
func fit(f func(float64) float64, from, to float64, degree int) []float32 {
	n := degree + 1
	xs, diff := make([]float64, n), make([]float64, n)
	for i := range n {
		xs[i] = (from+to)/2 + (to-from)/2*math.Cos(math.Pi*(float64(i)+.5)/float64(n))
		diff[i] = f(xs[i])
	}
	for k := 1; k < n; k++ { // divided differences, as Newton has them
		for i := n - 1; i >= k; i-- {
			diff[i] = (diff[i] - diff[i-1]) / (xs[i] - xs[i-k])
		}
	}
	c := make([]float64, n) // ((d2 (x-x1) + d1) (x-x0) + d0), multiplied out
	for k := n - 1; k >= 0; k-- {
		for i := n - 1; i > 0; i-- {
			c[i] = c[i-1] - xs[k]*c[i]
		}
		c[0] = diff[k] - xs[k]*c[0]
	}
	out := make([]float32, n)
	for i := range c {
		out[i] = float32(c[i])
	}
	return out
}

// halfErf is fits of erf(x/sqrt 2)/2 on as many pieces as a register has lanes: columns[d][j] is the coefficient of degree d
// about the point j*step, for arguments in units of step. The last point is where F32 sees no difference from 1/2 any more.
func halfErf(lanes int) (columns [][]float32, step float64) {
	degree := 4 // to about 1e-7 either way
	if lanes == 8 {
		degree = 6
	}
	const last = 5.6
	step = last / float64(lanes-1)
	columns = make([][]float32, degree+1)
	for j := range lanes {
		f := func(r float64) float64 { return math.Erf((float64(j)+r)*step/math.Sqrt2) / 2 }
		c := make([]float32, degree+1)
		switch j {
		case 0: // odd, and so 0 at 0
			copy(c[1:], fit(func(r float64) float64 { return f(r) / r }, 0, .5, degree-1))
		case lanes - 1:
			c[0] = .5
		default:
			c = fit(f, -.5, .5, degree)
		}
		for d := range c {
			columns[d] = append(columns[d], c[d])
		}
	}
	return columns, step
}

// powers is 2^(j/lanes) for each lane, less what [isa.expRows] adds for j.
func powers(lanes, shift int) []float32 {
	out := make([]float32, lanes)
	for j := range out {
		bits := math.Float32bits(float32(math.Exp2(float64(j) / float64(lanes))))
		out[j] = math.Float32frombits(bits - uint32(j)<<shift)
	}
	return out
}
