package main

import (
	"math"
	"math/bits"
)

// rowLoop goes over the rows of a block: R8 dst, R9 src, R12 rows, R13 columns, and calls body once for each row's code.
func (g *isa) rowLoop(body func()) {
	g.op("MOVQ block_dst(DI), R8")
	g.op("MOVQ block_src(DI), R9")
	g.op("MOVQ block_rows(DI), R12")
	g.op("MOVQ block_cols(DI), R13")
	g.op("MOVQ R13, AX")
	g.op("ANDQ $%d, AX", g.lanes-1)
	g.tailMask("AX", "BX")
	row := g.newLabels("row")[0]
	g.label(row)
	body()
	g.op("ADDQ block_lddst(DI), R8")
	g.op("ADDQ block_ldsrc(DI), R9")
	g.op("DECQ R12")
	g.op("JNZ %s", row)
	g.end()
}

// colLoop goes over the columns of a row, a register at a time, with BX as offset in bytes. The last, partial one has
// tail set.
func (g *isa) colLoop(body func(tail bool)) {
	l := g.newLabels("cols", "tail", "end")
	cols, tail, end := l[0], l[1], l[2]
	g.op("XORQ BX, BX")
	g.op("MOVQ R13, CX")
	g.op("SUBQ $%d, CX", g.lanes)
	g.op("JLT %s", tail)
	g.label(cols)
	body(false)
	g.op("ADDQ $%d, BX", g.bytes())
	g.op("SUBQ $%d, CX", g.lanes)
	g.op("JGE %s", cols)
	g.label(tail)
	g.op("ADDQ $%d, CX", g.lanes)
	g.op("JZ %s", end)
	body(true)
	g.label(end)
}

const log2e = 1.4426950408889634

// exp2 makes 2^t of register t in p, spoiling t and n: a polynomial for the part after the point, and the part before it
// as exponent. Zero and infinity at the ends; NaN stays.
func (g *isa) exp2(t, p, n string) {
	coefs := []float32{1, 0.693146983868, 0.240229835933, 0.0554833435173, 0.00967883791393, 0.0012439716157, 0.000217021584075}
	if g.wide {
		g.op("VREDUCEPS $9, %s, %s", t, n) // t - floor(t)
		g.poly(coefs, n, p)
		g.op("VSCALEFPS %s, %s, %s", t, p, p)
		return
	}
	g.op("VMOVUPS %s, %s", g.c(128), p)
	g.op("VMINPS %s, %s, %s", t, p, t) // NaN is in t, which the instruction prefers
	g.op("VMOVUPS %s, %s", g.c(-127), p)
	g.op("VMAXPS %s, %s, %s", t, p, t)
	g.op("VROUNDPS $9, %s, %s", t, n)
	g.op("VSUBPS %s, %s, %s", n, t, t)
	g.poly(coefs, t, p)
	g.op("VCVTPS2DQ %s, %s", n, n)
	g.op("VPADDD %s, %s, %s", g.c(math.Float32frombits(127)), n, n)
	g.op("VPSLLD $23, %s, %s", n, n)
	g.op("VMULPS %s, %s, %s", n, p, p)
}

// nearest adds a number to t that leaves the nearest multiple of 1/parts in the lowest bits of n, and gives that multiple in q.
func (g *isa) nearest(t string, parts float32, n, q string) {
	g.op("VADDPS %s, %s, %s", g.c(3<<22/parts), t, n)
	g.op("VSUBPS %s, %s, %s", g.c(3<<22/parts), n, q)
}

// lookup gives for each lane of n the value of the table that its lowest bits name.
func (g *isa) lookup(table []float32, n, r string) {
	g.op("VPERMPS %s, %s, %s", g.perLane(table), n, r)
}

// poly is the polynomial of x in p, constant first.
func (g *isa) poly(c []float32, x, p string) {
	g.op("VMOVUPS %s, %s", g.c(c[len(c)-1]), p)
	for i := len(c) - 2; i >= 0; i-- {
		g.op("VFMADD213PS %s, %s, %s", g.c(c[i]), x, p)
	}
}

// and, or are bitwise on floats.
func (g *isa) bitwise(op string, mem, a, r string) {
	if g.wide {
		g.op("VP%sD %s, %s, %s", op, mem, a, r)
	} else {
		g.op("V%sPS %s, %s, %s", op, mem, a, r)
	}
}

var (
	signBit = float32(math.Copysign(0, -1))
	restBit = math.Float32frombits(0x7fffffff)
)

// activations are those of gpu.Act, on a block of rows.
func (g *isa) activations() {
	x, t, p, n := g.v(0), g.v(1), g.v(2), g.v(3)
	act := func(name, comment string, body func()) {
		g.text(name, "block", comment)
		g.rowLoop(func() {
			g.colLoop(func(tail bool) {
				g.load("(R9)(BX*1)", x, tail)
				body()
				g.store(x, "(R8)(BX*1)", tail)
			})
		})
	}
	// sigmoid of what t holds, negated and in units of log2 e, in p
	sigmoid := func() {
		g.exp2(t, p, n)
		g.op("VMOVUPS %s, %s", g.c(1), n)
		g.op("VADDPS %s, %s, %s", n, p, p)
		g.op("VDIVPS %s, %s, %s", p, n, p)
	}
	act("relu", "max(x, 0); NaN stays.", func() {
		g.zero(t)
		g.op("VMAXPS %s, %s, %s", x, t, x)
	})
	act("geluErf", "x/2 + |x| erf(|x|/sqrt 2)/2, the latter as a polynomial whose coefficients are looked up by where |x| is.", func() {
		columns, unit := halfErf(g.lanes)
		a, q := g.v(4), g.v(5)
		g.bitwise("AND", g.c(restBit), x, a)
		g.op("VMULPS %s, %s, %s", g.c(float32(1/unit)), a, t)
		g.op("VMOVUPS %s, %s", g.c(float32(g.lanes-1)), n)
		g.op("VMINPS %s, %s, %s", t, n, t) // NaN is in t, which the instruction prefers
		g.nearest(t, 1, n, q)
		g.op("VSUBPS %s, %s, %s", q, t, t)
		g.lookup(columns[len(columns)-1], n, p)
		for d := len(columns) - 2; d >= 0; d-- {
			g.lookup(columns[d], n, q)
			g.op("VFMADD213PS %s, %s, %s", q, t, p)
		}
		g.op("VMULPS %s, %s, %s", g.c(.5), x, x)
		g.op("VFMADD231PS %s, %s, %s", a, p, x)
	})
	c1 := -2 * math.Sqrt(2/math.Pi) * log2e
	act("geluTanh", "x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).", func() {
		g.op("VMULPS %s, %s, %s", x, x, t)
		g.op("VMOVUPS %s, %s", g.c(float32(c1*0.044715)), p)
		g.op("VFMADD213PS %s, %s, %s", g.c(float32(c1)), p, t)
		g.op("VMULPS %s, %s, %s", x, t, t)
		sigmoid()
		g.op("VMULPS %s, %s, %s", p, x, x)
	})
	act("silu", "x sigmoid(x).", func() {
		g.op("VMULPS %s, %s, %s", g.c(-log2e), x, t)
		sigmoid()
		g.op("VMULPS %s, %s, %s", p, x, x)
	})
	act("sigmoid", "1 / (1 + exp(-x)).", func() {
		g.op("VMULPS %s, %s, %s", g.c(-log2e), x, t)
		sigmoid()
		g.op("VMOVAPS %s, %s", p, x)
	})
	act("tanh", "(1 - exp(-2|x|)) / (1 + exp(-2|x|)) with the sign of x; a polynomial up to 0.625.", func() {
		a, small := g.v(4), g.v(5)
		g.bitwise("AND", g.c(restBit), x, a)
		g.op("VMULPS %s, %s, %s", g.c(-2*log2e), a, t)
		g.exp2(t, p, n)
		g.op("VMOVUPS %s, %s", g.c(1), n)
		g.op("VSUBPS %s, %s, %s", p, n, t)
		g.op("VADDPS %s, %s, %s", p, n, p)
		g.op("VDIVPS %s, %s, %s", p, t, p)
		g.bitwise("AND", g.c(signBit), x, n)
		g.bitwise("OR", n, p, p)
		g.op("VMULPS %s, %s, %s", x, x, t)
		g.poly([]float32{0.99999989503, -0.333319608859, 0.133045876496, -0.0518239782795, 0.0150533515238}, t, small)
		g.op("VMULPS %s, %s, %s", x, small, x)
		if g.wide {
			g.op("VCMPPS $5, %s, %s, K2", g.c(0.625), a) // not less
			g.op("VMOVAPS %s, K2, %s", p, x)
		} else {
			g.op("VCMPPS $5, %s, %s, %s", g.c(0.625), a, a)
			g.op("VBLENDVPS %s, %s, %s, %s", a, p, x, x)
		}
	})
}

// fold reduces register 0 over its lanes with an instruction, into lane 0 of X0, in a fixed tree. It spoils register 1.
func (g *isa) fold(op string) {
	if g.wide {
		g.op("VEXTRACTF64X4 $1, Z0, Y1")
		g.op("%s Y1, Y0, Y0", op)
	}
	g.op("VEXTRACTF128 $1, Y0, X1")
	g.op("%s X1, X0, X0", op)
	g.op("VPERMILPS $0x4e, X0, X1")
	g.op("%s X1, X0, X0", op)
	g.op("VPERMILPS $0xb1, X0, X1")
	g.op("%s X1, X0, X0", op)
}

// expRows writes exp(scale x - max) of each row, max being that of scale x, and 1 over the sum of them.
//
// exp(t) is 2^y: y is the nearest k/lanes and a rest r. 2^(k/lanes) is looked up by the lowest bits of k, and the others become its
// exponent, where they are added as they lie: the table allows for the lowest. 2^r is a cubic. What is below 2^-126 is 0.
func (g *isa) expRows() {
	g.text("expRows", "block", "exp(scale*x - max) for each row, and in t.inv 1 over their sum.")
	g.op("MOVQ block_inv(DI), R10")
	top, y, p, n, k, sum := g.v(7), g.v(1), g.v(2), g.v(3), g.v(4), g.v(6)
	scale := g.v(8)
	g.op("VBROADCASTSS block_scale(DI), %s", scale)
	g.op("VMULPS %s, %s, %s", g.c(log2e), scale, scale)
	inf := g.c(float32(math.Inf(-1)))
	shift := 23 - bits.Len(uint(g.lanes-1))
	cubic := fit(func(r float64) float64 {
		if math.Abs(r) < 1e-9 {
			return math.Ln2
		}
		return math.Expm1(r*math.Ln2) / r
	}, -.5/float64(g.lanes), .5/float64(g.lanes), 2)
	g.rowLoop(func() {
		g.op("VMOVUPS %s, %s", inf, g.v(0))
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", y, tail)
			g.op("VMULPS %s, %s, %s", scale, y, y)
			switch {
			case !tail:
				g.op("VMAXPS %s, %s, %s", y, g.v(0), g.v(0))
			case g.wide:
				g.op("VMAXPS %s, Z0, K1, Z0", y)
			default:
				g.op("VMOVUPS %s, %s", inf, p)
				g.op("VBLENDVPS Y15, %s, %s, %s", y, p, y)
				g.op("VMAXPS %s, Y0, Y0", y)
			}
		})
		g.fold("VMAXPS")
		g.op("VBROADCASTSS X0, %s", top)
		g.zero(sum)
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", y, tail)
			g.op("VMULPS %s, %s, %s", scale, y, y)
			g.op("VSUBPS %s, %s, %s", top, y, y) // 0 for the largest, to the last bit
			g.nearest(y, float32(g.lanes), n, k)
			if g.wide {
				g.op("VCMPPS $5, %s, %s, K2", g.c(-126), y) // not less: NaN stays
			} else {
				g.op("VCMPPS $5, %s, %s, %s", g.c(-126), y, g.v(5))
			}
			g.op("VSUBPS %s, %s, %s", k, y, y)
			g.lookup(powers(g.lanes, shift), n, k)
			g.op("VPSLLD $%d, %s, %s", shift, n, n)
			g.op("VPADDD %s, %s, %s", n, k, k)
			g.poly(cubic, y, p)
			g.op("VMULPS %s, %s, %s", k, y, y)
			if g.wide {
				g.op("VFMADD213PS.Z %s, %s, K2, %s", k, y, p)
			} else {
				g.op("VFMADD213PS %s, %s, %s", k, y, p)
				g.op("VANDPS %s, %s, %s", g.v(5), p, p)
			}
			g.store(p, "(R8)(BX*1)", tail)
			switch {
			case !tail:
				g.op("VADDPS %s, %s, %s", p, sum, sum)
			case g.wide:
				g.op("VADDPS %s, %s, K1, %s", p, sum, sum)
			default:
				g.op("VANDPS Y15, %s, %s", p, p)
				g.op("VADDPS %s, %s, %s", p, sum, sum)
			}
		})
		g.op("VMOVAPS %s, %s", sum, g.v(0))
		g.fold("VADDPS")
		g.op("VMOVSS %s, X1", g.c(1))
		g.op("VDIVSS X0, X1, X0")
		g.op("VMOVSS X0, (R10)")
		g.op("ADDQ $4, R10")
	})
}

// scaleRows multiplies each row with its entry of inv.
func (g *isa) scaleRows() {
	g.text("scaleRows", "block", "x*t.inv[row] for each row.")
	g.op("MOVQ block_inv(DI), R10")
	g.rowLoop(func() {
		g.op("VBROADCASTSS (R10), %s", g.v(1))
		g.op("ADDQ $4, R10")
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", g.v(0), tail)
			g.op("VMULPS %s, %s, %s", g.v(0), g.v(1), g.v(0))
			g.store(g.v(0), "(R8)(BX*1)", tail)
		})
	})
}

// addRow adds two vectors.
func (g *isa) addRow() {
	g.text("addRow", "norm", "dst = src + res for one row.")
	g.op("MOVQ norm_dst(DI), R8")
	g.op("MOVQ norm_src(DI), R9")
	g.op("MOVQ norm_res(DI), R10")
	g.op("MOVQ norm_n(DI), R13")
	g.op("MOVQ R13, AX")
	g.op("ANDQ $%d, AX", g.lanes-1)
	g.tailMask("AX", "BX")
	g.colLoop(func(tail bool) {
		g.load("(R9)(BX*1)", g.v(0), tail)
		g.load("(R10)(BX*1)", g.v(1), tail)
		g.op("VADDPS %s, %s, %s", g.v(1), g.v(0), g.v(0))
		g.store(g.v(0), "(R8)(BX*1)", tail)
	})
	g.end()
}

// normRow is a layer norm, or without centring an RMS norm, of one row: t = src + res, then (t-mean)/sqrt(var+eps) times
// gamma plus beta. res, gamma and beta may be nil.
func (g *isa) normRow() {
	g.text("normRow", "norm", "A layer norm (t.center 1) or RMS norm (0) of one row.")
	g.op("MOVQ norm_dst(DI), R8")
	g.op("MOVQ norm_src(DI), R9")
	g.op("MOVQ norm_res(DI), R10")
	g.op("MOVQ norm_gamma(DI), R11")
	g.op("MOVQ norm_beta(DI), R12")
	g.op("MOVQ norm_n(DI), R13")
	g.op("MOVQ R13, AX")
	g.op("ANDQ $%d, AX", g.lanes-1)
	g.tailMask("AX", "BX")
	l := g.newLabels("summed", "alone", "square")
	alone, square := l[1], l[2]
	acc, x, mean, inv := g.v(0), g.v(1), g.v(2), g.v(3)
	g.zero(acc)
	g.zero(mean)
	g.op("TESTQ R10, R10")
	g.op("JZ %s", alone)
	g.colLoop(func(tail bool) {
		g.load("(R9)(BX*1)", x, tail)
		g.load("(R10)(BX*1)", g.v(4), tail)
		g.op("VADDPS %s, %s, %s", g.v(4), x, x)
		g.op("VADDPS %s, %s, %s", x, acc, acc)
		g.store(x, "(R8)(BX*1)", tail)
	})
	g.op("MOVQ R8, R9")
	g.op("JMP %s", l[0])
	g.label(alone)
	g.colLoop(func(tail bool) {
		g.load("(R9)(BX*1)", x, tail)
		g.op("VADDPS %s, %s, %s", x, acc, acc)
	})
	g.label(l[0])
	g.op("CMPQ norm_center(DI), $0")
	g.op("JE %s", square)
	g.fold("VADDPS")
	g.op("VMULSS norm_part(DI), X0, X0")
	g.op("VBROADCASTSS X0, %s", mean)
	g.label(square)
	g.zero(acc)
	g.colLoop(func(tail bool) {
		g.load("(R9)(BX*1)", x, tail)
		g.op("VSUBPS %s, %s, %s", mean, x, x)
		switch {
		case !tail:
			g.op("VFMADD231PS %s, %s, %s", x, x, acc)
		case g.wide:
			g.op("VFMADD231PS %s, %s, K1, %s", x, x, acc)
		default:
			g.op("VANDPS Y15, %s, %s", x, x)
			g.op("VFMADD231PS %s, %s, %s", x, x, acc)
		}
	})
	g.fold("VADDPS")
	g.op("VMULSS norm_part(DI), X0, X0")
	g.op("VADDSS norm_eps(DI), X0, X0")
	g.op("VSQRTSS X0, X0, X0")
	g.op("VMOVSS %s, X1", g.c(1))
	g.op("VDIVSS X0, X1, X0")
	g.op("VBROADCASTSS X0, %s", inv)
	g.colLoop(func(tail bool) {
		l := g.newLabels("ungained", "unbiased")
		g.load("(R9)(BX*1)", x, tail)
		g.op("VSUBPS %s, %s, %s", mean, x, x)
		g.op("VMULPS %s, %s, %s", inv, x, x)
		g.op("TESTQ R11, R11")
		g.op("JZ %s", l[0])
		g.load("(R11)(BX*1)", g.v(4), tail)
		g.op("VMULPS %s, %s, %s", g.v(4), x, x)
		g.label(l[0])
		g.op("TESTQ R12, R12")
		g.op("JZ %s", l[1])
		g.load("(R12)(BX*1)", g.v(4), tail)
		g.op("VADDPS %s, %s, %s", g.v(4), x, x)
		g.label(l[1])
		g.store(x, "(R8)(BX*1)", tail)
	})
	g.end()
}
