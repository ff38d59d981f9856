package main

import "fmt"

// gemm is the product of a few rows with a few panels of 16 columns, all in registers:
//
//	c[i, 16p+l] = bias[16p+l] + sum over k of a[i, k] * b[p, k, l] + res[i, 16p+l]
//
// Each element is one accumulator that starts with the bias and takes one fused multiply-add for each k from first to
// last, in BF16 the second of each two before the first, whatever the number of rows and panels. So an answer does not
// depend on the tile that computed it, nor on the instruction set.
//
// In 8 bits the sum is of whole numbers and exact. It starts with the row's zero point, negated, times the sum of the weights,
// which lies behind the panel's lines, and so is that of (a - zero) b; then c = sum * scale of b * scale of a + bias, with
// one rounding for the last two.
//
// Registers: DI tile; R8, R10, R11, R12 rows 0, 3, 6, 9 of a, R9 from row to row; BX panels, DX from panel to panel,
// R13 three times that; SI from line to line; CX lines, AX those after them; R14 what to
// fetch.
func (g *isa) gemm(p *product, rows, panels int) {
	per := 16 / g.lanes // registers in a panel's line
	cols := panels * per
	index := func(i, j int) int { return i*cols + j }
	acc := func(i, j int) string { return g.v(index(i, j)) }
	line := func(j int) int { return rows*cols + j }
	// Registers to spread one value of a in, and for products to be added: several in turn where there is room.
	base, n := rows*cols+cols, 4
	if !g.wide {
		base, n = 14, 2 // where the masks are before and after the loop
	}
	n = min(n, 32-base)
	temps := 0
	if p.temp {
		temps = n / 2
		n -= temps
	}
	next := 0
	spread := func() int { next++; return base + next%n }
	temp := func() int {
		if temps == 0 {
			return 0
		}
		return base + n + next%temps
	}
	g.text(fmt.Sprintf("gemm%s%dx%d", p.name, rows, panels), "tile", fmt.Sprintf("%d rows by %d columns.", rows, 16*panels))
	g.op("MOVQ tile_a(DI), R8")
	g.op("MOVQ tile_lda(DI), R9")
	group := []string{"R8", "R10", "R11", "R12"}
	if rows > 3 {
		g.op("LEAQ (R9)(R9*2), AX")
		for i := 1; 3*i < rows; i++ {
			g.op("LEAQ (%s)(AX*1), %s", group[i-1], group[i])
		}
	}
	elem := func(i, offset int) string {
		return fmt.Sprintf([3]string{"%d(%s)", "%d(%s)(R9*1)", "%d(%s)(R9*2)"}[i%3], offset, group[i/3])
	}
	g.op("MOVQ tile_b(DI), BX")
	g.op("MOVQ tile_panel(DI), DX")
	if panels == 4 {
		g.op("LEAQ (DX)(DX*2), R13")
	}
	g.op("MOVQ tile_step(DI), SI")
	of := func(base string, panel, offset int) string {
		return fmt.Sprintf([4]string{"%d(%s)", "%d(%s)(DX*1)", "%d(%s)(DX*2)", "%d(%s)(R13*1)"}[panel], offset, base)
	}
	at := func(base string, j int) string { return of(base, j/per, j%per*g.bytes()) } // register j of a line
	// The result is fetched now: it is written all at once, at the end, and often it lies further away than the caches.
	g.op("MOVQ tile_c(DI), AX")
	g.op("MOVQ tile_ldc(DI), CX")
	for i := range rows {
		for panel := range panels {
			g.op("PREFETCHT0 %d(AX)", 64*panel)
		}
		if i < rows-1 {
			g.op("ADDQ CX, AX")
		}
	}
	g.op("MOVQ tile_lanes(DI), CX") // of the last panel, 1 to 16
	if g.wide {
		g.op("MOVQ $-1, AX")
		g.op("BZHIQ CX, AX, AX")
		g.op("KMOVW AX, K1")
	}

	l := g.newLabels("plain", "begin", "loop", "rest", "last", "done", "store", "unbiased", "part", "end")
	plain, begin, loop, rest, last, done, store, unbiased := l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7]
	part, end := l[8], l[9]
	if p.scaled {
		g.op("MOVQ tile_k(DI), CX")
		g.op("SHLQ $6, CX")
		g.op("LEAQ 64(BX)(CX*1), CX") // the sums
		g.op("MOVQ tile_rows(DI), AX")
		for i := range rows {
			s := g.v(spread())
			g.op("VPBROADCASTD %d+rowScale_less(AX), %s", 8*i, s)
			for j := range cols {
				g.op("VPMULLD %s, %s, %s", at("CX", j), s, acc(i, j))
			}
		}
	} else {
		g.op("MOVQ tile_bias(DI), AX")
		g.op("TESTQ AX, AX")
		g.op("JZ %s", plain)
		g.masks()
		for j := range cols {
			g.tileLoad(fmt.Sprintf("%d(AX)", j*g.bytes()), acc(0, j), j, cols)
		}
		for i := 1; i < rows; i++ {
			for j := range cols {
				g.op("VMOVAPS %s, %s", acc(0, j), acc(i, j))
			}
		}
		g.op("JMP %s", begin)
		g.label(plain)
		for i := range rows {
			for j := range cols {
				g.zero(acc(i, j))
			}
		}
		g.label(begin)
	}
	// How far ahead panels are fetched. Weights that come from memory need some 100 ns, and few rows leave little time: 512
	// and 1024 bytes gained nothing. Fetching what is there already, or past the end, costs next to nothing. When the last
	// lines are fetched, the first ones of the panels that follow these are next.
	const ahead = 4096
	unroll := 4
	if p.name != "F32" && rows*panels > 8 {
		unroll = 2 / len(p.parts) // there are fewer lines, and the code is as long
	}
	step := func(u int) {
		for i, offset := range p.parts {
			for j := range cols {
				p.line(g, i, at("BX", j), g.v(line(j)))
			}
			for i := range rows {
				s := spread()
				g.op("VBROADCASTSS %s, %s", elem(i, u*p.bytes+offset), g.v(s))
				for j := range cols {
					p.mac(g, line(j), s, temp(), index(i, j))
				}
			}
		}
		for panel := range panels {
			g.op("PREFETCHT0 %s", of("R14", panel, 0))
		}
		g.op("ADDQ SI, BX")
		g.op("ADDQ SI, R14")
	}
	g.op("LEAQ %d(BX), R14", ahead)
	g.op("MOVQ tile_k(DI), CX")
	g.op("XORL AX, AX")
	g.op("CMPQ CX, $%d", ahead/64)
	g.op("JLE %s", part)
	g.op("SUBQ $%d, CX", ahead/64)
	g.op("MOVQ $%d, AX", ahead/64)
	g.label(part)
	if unroll > 1 {
		g.op("SUBQ $%d, CX", unroll)
		g.op("JLT %s", rest)
		g.label(loop)
		for u := range unroll {
			step(u)
		}
		for i := 0; 3*i < rows; i++ {
			g.op("ADDQ $%d, %s", p.bytes*unroll, group[i])
		}
		g.op("SUBQ $%d, CX", unroll)
		g.op("JGE %s", loop)
		g.label(rest)
		g.op("ADDQ $%d, CX", unroll)
		g.op("JZ %s", end)
	}
	g.label(last)
	step(0)
	for i := 0; 3*i < rows; i++ {
		g.op("ADDQ $%d, %s", p.bytes, group[i])
	}
	g.op("DECQ CX")
	g.op("JNZ %s", last)
	g.label(end)
	g.op("MOVQ AX, CX")
	g.op("TESTQ AX, AX")
	g.op("JZ %s", done)
	g.op("MOVQ tile_k(DI), AX")
	g.op("IMULQ SI, AX")
	g.op("SUBQ AX, R14")
	for range panels {
		g.op("ADDQ DX, R14")
	}
	g.op("XORL AX, AX")
	g.op("JMP %s", part)
	g.label(done)
	if p.scaled { // BX is at the scales of the panels
		if !g.wide {
			g.op("MOVQ tile_lanes(DI), CX")
			g.masks()
		}
		for j := range cols {
			g.zero(g.v(line(j)))
		}
		g.op("MOVQ tile_bias(DI), AX")
		g.op("TESTQ AX, AX")
		g.op("JZ %s", unbiased)
		for j := range cols {
			g.tileLoad(fmt.Sprintf("%d(AX)", j*g.bytes()), g.v(line(j)), j, cols)
		}
		g.label(unbiased)
		g.op("MOVQ tile_rows(DI), AX")
		for i := range rows {
			s := g.v(spread())
			g.op("VBROADCASTSS %d+rowScale_scale(AX), %s", 8*i, s)
			for j := range cols {
				g.op("VCVTDQ2PS %s, %s", acc(i, j), acc(i, j))
				g.op("VMULPS %s, %s, %s", at("BX", j), acc(i, j), acc(i, j))
				g.op("VFMADD213PS %s, %s, %s", g.v(line(j)), s, acc(i, j))
			}
		}
	}
	if !g.wide {
		g.op("MOVQ tile_lanes(DI), CX")
		g.masks()
	}
	g.op("MOVQ tile_res(DI), AX")
	g.op("TESTQ AX, AX")
	g.op("JZ %s", store)
	g.op("MOVQ tile_ldres(DI), R9")
	for i := range rows {
		for j := range cols {
			mem := fmt.Sprintf("%d(AX)", j*g.bytes())
			switch {
			case j < cols-per:
				g.op("VADDPS %s, %s, %s", mem, acc(i, j), acc(i, j))
			case g.wide:
				g.op("VADDPS %s, %s, K1, %s", mem, acc(i, j), acc(i, j))
			default:
				g.tileLoad(mem, "Y12", j, cols)
				g.op("VADDPS Y12, %s, %s", acc(i, j), acc(i, j))
			}
		}
		if i < rows-1 {
			g.op("ADDQ R9, AX")
		}
	}
	g.label(store)
	g.op("MOVQ tile_c(DI), AX")
	g.op("MOVQ tile_ldc(DI), R9")
	for i := range rows {
		for j := range cols {
			mem := fmt.Sprintf("%d(AX)", j*g.bytes())
			switch {
			case j < cols-per:
				g.op("VMOVUPS %s, %s", acc(i, j), mem)
			case g.wide:
				g.op("VMOVUPS %s, K1, %s", acc(i, j), mem)
			default:
				g.op("VMASKMOVPS %s, Y%d, %s", acc(i, j), 14+j%per, mem)
			}
		}
		if i < rows-1 {
			g.op("ADDQ R9, AX")
		}
	}
	g.end()
}

// masks makes, for AVX2, the masks of a panel's two halves, Y14 and Y15, from the number of lanes in CX.
func (g *isa) masks() {
	if g.wide {
		return
	}
	g.op("LEAQ masks%s<>+%d(SB), R13", g.name, 8*g.lanes)
	g.op("SHLQ $2, CX")
	g.op("SUBQ CX, R13")
	g.op("VMOVUPS (R13), Y14")
	g.op("VMOVUPS 32(R13), Y15")
}

// tileLoad loads register j of a line of cols registers, of which the last panel is masked.
func (g *isa) tileLoad(mem, r string, j, cols int) {
	per := 16 / g.lanes
	switch {
	case j < cols-per:
		g.op("VMOVUPS %s, %s", mem, r)
	case g.wide:
		g.op("VMOVUPS.Z %s, K1, %s", mem, r)
	default:
		g.op("VMASKMOVPS %s, Y%d, %s", mem, 14+j%per, r)
	}
}
