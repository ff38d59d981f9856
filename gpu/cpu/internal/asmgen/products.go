package main

import (
	"fmt"
	"math"
	"strings"
)

// product is how the two factors of a product are written, and what multiplies and adds them. A line of a panel holds 4 bytes
// for each output: one F32 input, two of BF16, or four of 8 bits.
type product struct {
	name  string // "BF16Dot"; it ends the names of the kernels
	bytes int    // of a row of x, for one line
	terms int    // inputs that one mac adds to each lane
	most  int    // panels of a tile
	temp  bool   // mac needs a register

	// A line is used in parts, each with 4 bytes of the row of x: one where an instruction takes all of its inputs, else
	// two. parts gives where in the row's bytes; line loads a part of a line into a register.
	parts []int
	line  func(g *isa, part int, mem, r string)
	mac   func(g *isa, line, spread, temp, acc int)

	scaled bool // products are whole numbers, and scales make F32 of them at the end
	row    func(g *isa, p *product)
}

// products of an instruction set.
func (g *isa) products() []*product {
	whole := func(g *isa, _ int, mem, r string) { g.op("VMOVUPS %s, %s", mem, r) }
	fma := func(g *isa, line, spread, _, acc int) {
		g.op("VFMADD231PS %s, %s, %s", g.v(line), g.v(spread), g.v(acc))
	}
	ps := []*product{
		{name: "F32", bytes: 4, terms: 1, most: 4, parts: []int{0}, line: whole, mac: fma},
		// The upper half of 4 bytes is an F32 once the lower is cleared, and the lower once it is moved up. The dot product
		// instruction begins with the upper one, too.
		{name: "BF16Wide", bytes: 8, terms: 1, most: 2, parts: []int{4, 0}, mac: fma, row: (*isa).rowBF16Wide,
			line: func(g *isa, part int, mem, r string) {
				g.op("VMOVUPS %s, %s", mem, r)
				if part == 0 {
					g.bitwise("AND", g.bits(0xffff0000), r, r)
				} else {
					g.op("VPSLLD $16, %s, %s", r, r)
				}
			}},
		// Of four bytes the even ones and then the odd ones become two words, which the row of x has the same way.
		{name: "Int8Wide", bytes: 8, terms: 2, most: 2, temp: true, parts: []int{0, 4}, scaled: true, row: (*isa).rowInt8,
			line: func(g *isa, part int, mem, r string) {
				g.op("VMOVUPS %s, %s", mem, r)
				if part == 0 {
					g.op("VPSLLW $8, %s, %s", r, r)
				}
				g.op("VPSRAW $8, %s, %s", r, r)
			},
			mac: func(g *isa, line, spread, temp, acc int) {
				g.op("VPMADDWD %s, %s, %s", g.v(line), g.v(spread), g.v(temp))
				g.op("VPADDD %s, %s, %s", g.v(temp), g.v(acc), g.v(acc))
			}},
	}
	if !g.wide {
		return ps
	}
	return append(ps,
		&product{name: "BF16Dot", bytes: 4, terms: 2, most: 4, parts: []int{0}, line: whole, row: (*isa).rowBF16Dot,
			mac: func(g *isa, line, spread, _, acc int) { g.vdpbf16ps(line, spread, acc) }},
		&product{name: "Int8Dot", bytes: 4, terms: 4, most: 4, parts: []int{0}, line: whole, scaled: true, row: (*isa).rowInt8,
			mac: func(g *isa, line, spread, _, acc int) {
				g.op("VPDPBUSD %s, %s, %s", g.v(line), g.v(spread), g.v(acc)) // signed, unsigned, sum
			}})
}

// panels is how many panels tiles of the product have: 1, 2, 4.
func (g *isa) panels(p *product) (n []int) {
	for i := 1; i <= min(g.maxPanels(), p.most); i *= 2 {
		n = append(n, i)
	}
	return n
}

// evex is an instruction of AVX-512 that Go's assembler has not got, on whole registers: prefix F3, map 0F38, W 0.
func (g *isa) evex(name string, opcode byte, b, a, dst int) {
	bit := func(r, n int) byte { return byte(^r >> n & 1) }
	p0 := bit(dst, 3)<<7 | bit(b, 4)<<6 | bit(b, 3)<<5 | bit(dst, 4)<<4 | 2
	p1 := byte(^a&15)<<3 | 1<<2 | 2
	p2 := byte(2<<5) | bit(a, 4)<<3
	modrm := byte(3<<6 | dst&7<<3 | b&7)
	g.op("LONG $0x%02x%02x%02x62; WORD $0x%02x%02x // %s", p2, p1, p0, modrm, opcode, name)
}

func (g *isa) vdpbf16ps(b, a, dst int) {
	g.evex(fmt.Sprintf("VDPBF16PS Z%d, Z%d, Z%d", b, a, dst), 0x52, b, a, dst)
}

func (g *isa) vcvtneps2bf16(src, dst int) {
	g.evex(fmt.Sprintf("VCVTNEPS2BF16 Z%d, Y%d", src, dst), 0x72, src, 0, dst)
}

// peakOf is the probe of a product: nothing but its macs on registers, as many as hide their latency.
func (g *isa) peakOf(p *product) {
	g.text("peak"+p.name, "peak", "Multiplies and adds in registers, t.n rounds: what the core can do at most.")
	g.op("MOVQ peak_n(DI), CX")
	n := 12
	for i := range n + 3 {
		g.zero(g.v(i))
	}
	l := g.newLabels("round")[0]
	g.label(l)
	for range 4 {
		for i := range n {
			p.mac(g, n, n+1, n+2, i)
		}
	}
	g.op("DECQ CX")
	g.op("JNZ %s", l)
	g.end()
}

// rowKernel is a kernel that makes of one row of x what a product multiplies. What fills the last register is zero in x.
// R8 dst, R9 src, R13 columns.
func (g *isa) rowKernel(p *product, comment string, body func()) {
	g.text("row"+p.name, "operand", comment)
	g.op("MOVQ operand_dst(DI), R8")
	g.op("MOVQ operand_src(DI), R9")
	g.op("MOVQ operand_n(DI), R13")
	g.op("MOVQ R13, AX")
	g.op("ANDQ $%d, AX", g.lanes-1)
	g.tailMask("AX", "BX")
	body()
	g.end()
}

func (g *isa) rowBF16Dot(p *product) {
	g.rowKernel(p, "A row of x, rounded to BF16.", func() {
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", "Z0", tail)
			g.vcvtneps2bf16(0, 0)
			g.op("VMOVUPS Y0, (R8)")
			g.op("ADDQ $32, R8")
		})
	})
}

// rowBF16Wide rounds as the instruction does, but for subnormal values, of which that one makes 0.
func (g *isa) rowBF16Wide(p *product) {
	x, t, r := g.v(0), g.v(1), g.v(2)
	g.rowKernel(p, "A row of x, rounded to BF16 and still F32.", func() {
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", x, tail)
			g.op("VPSRLD $16, %s, %s", x, t)
			g.bitwise("AND", g.bits(1), t, t)
			g.op("VPADDD %s, %s, %s", g.bits(0x7fff), t, t)
			g.op("VPADDD %s, %s, %s", t, x, t)
			g.bitwise("AND", g.bits(0xffff0000), t, t)
			if g.wide { // NaN stays as it is
				g.op("VCMPPS $3, %s, %s, K2", x, x)
				g.op("VMOVAPS %s, K2, %s", x, t)
			} else {
				g.op("VCMPPS $3, %s, %s, %s", x, x, r)
				g.op("VBLENDVPS %s, %s, %s, %s", r, x, t, t)
			}
			g.op("VMOVUPS %s, (R8)(BX*1)", t)
		})
	})
}

// rowInt8 makes unsigned bytes: x = scale (q - zero), the whole range of the row and 0 between 0 and 255. A row that has
// a value that is not finite gets NaN as scale, and one whose scale would be subnormal the scale 0. With x at least the lowest
// of its row, scaled and moved by the zero point, nothing is rounded to less than 0.
func (g *isa) rowInt8(p *product) {
	const x, t, zero, lo, hi, bad, inv, z = 0, 1, 2, 5, 6, 7, 8, 9
	v := g.v
	g.rowKernel(p, "A row of x in 8 bits, and in t.row its scale and the zero point, negated.", func() {
		for _, r := range []int{zero, lo, hi, bad} {
			g.zero(v(r))
		}
		if g.wide {
			g.op("KXORW K3, K3, K3")
		}
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", v(x), tail)
			g.op("VMINPS %s, %s, %s", v(x), v(lo), v(lo))
			g.op("VMAXPS %s, %s, %s", v(x), v(hi), v(hi))
			if g.wide { // NaN is in neither for sure
				g.op("VCMPPS $3, %s, %s, K2", v(x), v(x))
				g.op("KORW K2, K3, K3")
			} else {
				g.op("VCMPPS $3, %s, %s, %s", v(x), v(x), v(t))
				g.op("VORPS %s, %s, %s", v(t), v(bad), v(bad))
			}
		})
		if g.wide {
			g.op("VPMOVM2D K3, %s", v(bad))
		}
		for _, r := range []struct {
			op string
			r  int
		}{{"VMINPS", lo}, {"VMAXPS", hi}, {"VADDPS", bad}} {
			g.op("VMOVAPS %s, %s", v(r.r), v(0))
			g.fold(r.op)
			g.op("VMOVAPS X0, X%d", r.r)
		}
		g.op("VMOVSS %s, X3", g.c(1.0/255))
		g.op("VMULSS X3, X%d, X0", hi)
		g.op("VMULSS X3, X%d, X1", lo)
		g.op("VSUBSS X1, X0, X0")
		g.op("VMULSS X%d, X0, X1", zero) // NaN, when a value is infinite
		g.op("VADDSS X1, X0, X0")
		g.op("VADDSS X%d, X0, X0", bad)
		g.op("VMOVSS %s, X1", g.bits(1<<23)) // the smallest normal F32
		g.op("VCMPSS $5, X1, X0, X1")        // not less
		g.op("VANDPS X1, X0, X0")
		g.op("VMOVSS %s, X3", g.c(1))
		g.op("VDIVSS X0, X3, X3")
		g.op("VANDPS X1, X3, X3")
		g.op("VBROADCASTSS X3, %s", v(inv))
		g.op("VMULSS X3, X%d, X1", lo)
		g.op("MOVQ operand_row(DI), CX")
		g.op("VMOVSS X0, rowScale_scale(CX)")
		g.op("VCVTPS2DQ X1, X1")
		g.op("VMOVD X1, rowScale_less(CX)")
		g.op("VPSUBD X1, X%d, X1", zero)
		g.op("VCVTDQ2PS X1, X1")
		g.op("VBROADCASTSS X1, %s", v(z))
		g.colLoop(func(tail bool) {
			g.load("(R9)(BX*1)", v(x), tail)
			g.op("VFMADD213PS %s, %s, %s", v(z), v(inv), v(x))
			g.op("VCVTPS2DQ %s, %s", v(x), v(x))
			if p.bytes == 4 {
				g.op("VPMOVUSDB %s, (R8)", v(x))
				g.op("ADDQ $%d, R8", g.lanes)
				return
			}
			g.op("VPMINSD %s, %s, %s", g.bits(255), v(x), v(x))
			g.op("VPSHUFD $0xee, %s, %s", v(x), v(t)) // the last two of each four
			g.op("VPSLLD $16, %s, %s", v(t), v(t))
			g.op("VPADDD %s, %s, %s", v(t), v(x), v(x))
			g.op("VPERMQ $8, %s, %s", v(x), v(x)) // the lower halves of each two
			g.op("VMOVUPS X0, (R8)")
			if g.wide {
				g.op("VEXTRACTF64X4 $1, Z0, Y0")
				g.op("VMOVUPS X0, 16(R8)")
			}
			g.op("ADDQ $%d, R8", 2*g.lanes)
		})
	})
}

// bits is a memory operand that holds this in every lane.
func (g *isa) bits(b uint32) string {
	i, ok := g.consts[b]
	if !ok {
		i = len(g.order)
		g.consts[b] = i
		g.order = append(g.order, b)
	}
	return fmt.Sprintf("constants%s<>+%d(SB)", g.name, i*g.bytes())
}

// c is bits of an F32.
func (g *isa) c(f float32) string { return g.bits(math.Float32bits(f)) }

// table is the Go value that lists the kernels of a product.
func (g *isa) table(p *product) string {
	var b strings.Builder
	fmt.Fprintf(&b, "tileSet{\nmaxRows: %d, maxPanels: %d, lineBytes: %d, terms: %d,\n", g.maxRows(2), min(g.maxPanels(), p.most), p.bytes, p.terms)
	fmt.Fprintf(&b, "peak: peak%s%s,\n", p.name, g.name)
	if p.row != nil {
		fmt.Fprintf(&b, "row: row%s%s,\n", p.name, g.name)
	}
	b.WriteString("tiles: map[[2]int]func(*tile){\n")
	for _, panels := range g.panels(p) {
		for rows := 1; rows <= g.maxRows(panels); rows++ {
			fmt.Fprintf(&b, "{%d, %d}: gemm%s%dx%d%s,\n", rows, panels, p.name, rows, panels, g.name)
		}
	}
	b.WriteString("},\n}")
	return b.String()
}

// read is the probe of memory: it loads what there is and does nothing with it. Four places are read at a time, as tiles of four
// panels do.
func (g *isa) read() {
	g.text("read", "reading", "Loads t.n lines of 64 bytes from each of four places.")
	g.op("MOVQ reading_src(DI), R8")
	g.op("MOVQ reading_apart(DI), R9")
	g.op("LEAQ (R9)(R9*2), R10")
	g.op("MOVQ reading_n(DI), CX")
	l := g.newLabels("line")[0]
	g.label(l)
	for i, mem := range []string{"(R8)", "(R8)(R9*1)", "(R8)(R9*2)", "(R8)(R10*1)"} {
		for j := 0; j < 64; j += g.bytes() {
			g.op("VMOVUPS %d%s, %s", j, mem, g.v(i))
		}
		g.op("PREFETCHT0 4096%s", mem)
	}
	g.op("ADDQ $64, R8")
	g.op("DECQ CX")
	g.op("JNZ %s", l)
	g.end()
}
