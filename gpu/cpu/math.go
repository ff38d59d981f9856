package cpu

import (
	"math"

	"github.com/zcstore/zcstore/gpu"
)

// exp is e^x to about 1e-14: x = k ln2 + r with |r| <= ln2/2, the Taylor series of e^r up to r^11, and k into the exponent.
func exp(x float64) float64 {
	switch {
	case x != x:
		return x
	case x > 709:
		return math.Exp(x)
	case x < -708: // subnormal from here on, and nothing in F32
		return 0
	}
	const magic = 3 << 51 // adding it leaves the nearest integer in the low bits
	kf := x*math.Log2E + magic
	k := int64(math.Float64bits(kf)) << 32 >> 32
	r := x - (kf-magic)*math.Ln2
	p := 1.0 / 39916800
	p = p*r + 1.0/3628800
	p = p*r + 1.0/362880
	p = p*r + 1.0/40320
	p = p*r + 1.0/5040
	p = p*r + 1.0/720
	p = p*r + 1.0/120
	p = p*r + 1.0/24
	p = p*r + 1.0/6
	p = p*r + 0.5
	p = p*r + 1
	p = p*r + 1
	return p * math.Float64frombits(uint64(k+1023)<<52)
}

// exp32 is e^x of an F32, to about 5e-10 before rounding: as exp with a shorter series.
func exp32(x float32) float32 {
	if !(x > -104 && x < 89) {
		switch {
		case x != x:
			return x
		case x < 0:
			return 0
		}
		return float32(math.Inf(1))
	}
	const magic = 3 << 51
	v := float64(x)
	kf := v*math.Log2E + magic
	k := int64(math.Float64bits(kf)) << 32 >> 32
	r := v - (kf-magic)*math.Ln2
	p := 1.0 / 40320
	p = p*r + 1.0/5040
	p = p*r + 1.0/720
	p = p*r + 1.0/120
	p = p*r + 1.0/24
	p = p*r + 1.0/6
	p = p*r + 0.5
	p = p*r + 1
	p = p*r + 1
	return float32(p * math.Float64frombits(uint64(k+1023)<<52))
}

// erfStep is the distance of the points at which erf is tabulated, from 0 to erfEnd, past which it is 1 in F32 and far
// beyond.
const (
	erfStep = 1.0 / 16
	erfEnd  = 6
)

// erfTable has the Taylor series of erf about each point, up to the fifth power. The derivatives of erf are
// 2/sqrt(pi) e^(-x^2) times Hermite polynomials: erf^(n+1) = (-1)^n H_n(x) 2/sqrt(pi) e^(-x^2), with H_(n+1) = 2x H_n - 2n H_(n-1).
var erfTable = func() (t [erfEnd/erfStep + 1][6]float64) {
	for i := range t {
		x := float64(i) * erfStep
		t[i][0] = math.Erf(x)
		c := 2 / math.Sqrt(math.Pi) * math.Exp(-x*x)
		h, before := 1.0, 0.0
		factorial, sign := 1.0, 1.0
		for n := 1; n < 6; n++ {
			factorial *= float64(n)
			t[i][n] = sign * h * c / factorial
			h, before = 2*x*h-2*float64(n-1)*before, h
			sign = -sign
		}
	}
	return t
}()

// erf is the error function to about 1e-10: the series about the nearest tabulated point.
func erf(x float64) float64 {
	a := math.Abs(x)
	if !(a < erfEnd) {
		if x != x {
			return x
		}
		return math.Copysign(1, x)
	}
	i := int(a*(1/erfStep) + 0.5)
	h := a - float64(i)*erfStep
	c := &erfTable[i]
	v := c[0] + h*(c[1]+h*(c[2]+h*(c[3]+h*(c[4]+h*c[5]))))
	return math.Copysign(v, x)
}

// tanh is 1 - 2/(e^2x + 1), exact enough near 0 because exp is.
func tanh(x float64) float64 {
	if a := math.Abs(x); a < 1e-4 {
		return x // x^3/3 is below the last bit of an F32
	} else if a > 20 {
		return math.Copysign(1, x)
	}
	return 1 - 2/(exp(2*x)+1)
}

func sigmoid(x float64) float64 { return 1 / (1 + exp(-x)) }

// activate applies the activation to each element.
func activate(v []float32, a gpu.Act) {
	switch a {
	case gpu.ReLU:
		for i, x := range v {
			if x < 0 { // NaN stays
				v[i] = 0
			}
		}
	case gpu.GELUErf:
		for i, x := range v {
			x := float64(x)
			v[i] = float32(0.5 * x * (1 + erf(x*(1/math.Sqrt2))))
		}
	case gpu.GELUTanh:
		const c = 0.7978845608028654 // sqrt(2/pi)
		for i, x := range v {
			x := float64(x)
			v[i] = float32(0.5 * x * (1 + tanh(c*(x+0.044715*x*x*x))))
		}
	case gpu.SiLU:
		for i, x := range v {
			v[i] = float32(float64(x) * sigmoid(float64(x)))
		}
	case gpu.Tanh:
		for i, x := range v {
			v[i] = float32(tanh(float64(x)))
		}
	case gpu.Sigmoid:
		for i, x := range v {
			v[i] = float32(sigmoid(float64(x)))
		}
	}
}

// widenBF16 is exact: a BF16 is the upper half of an F32.
func widenBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }
