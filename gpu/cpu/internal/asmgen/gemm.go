package main

import (
	"fmt"
	"math"
)

func hexBits(f float32) string { return fmt.Sprintf("0x%08x", math.Float32bits(f)) }

// gemm is the product of a few rows with a few panels of 16 columns, all in registers:
//
//	c[i, 16p+l] = bias[16p+l] + sum over k of a[i, k] * b[p, k, l] + res[i, 16p+l]
//
// Each element is one accumulator that starts with the bias and takes one fused multiply-add for each k from first to
// last, whatever the number of rows and panels. So an answer does not depend on the tile that computed it, nor on the
// instruction set.
//
// Registers: DI tile; R8, R10, R11, R12 rows 0, 3, 6, 9 of a, R9 from row to row; BX panels, DX from panel to panel,
// R13 three times that; SI from k to k; CX k.
func (g *isa) gemm(rows, panels int) {
	per := 16 / g.lanes // registers in a panel's line
	cols := panels * per
	acc := func(i, j int) string { return g.v(i*cols + j) }
	line := func(j int) string { return g.v(rows*cols + j) }
	next := 0
	spread := func() string { // of one element of a; two in turn where there is room
		n := 4
		base := rows*cols + cols
		if !g.wide {
			base, n = 14, 2 // where the masks are before and after the loop
		}
		n = min(n, 32-base)
		next++
		return g.v(base + next%n)
	}
	name := fmt.Sprintf("gemm%dx%d", rows, panels)
	g.text(name, "tile", fmt.Sprintf("%d rows by %d columns.", rows, 16*panels))
	f := &g.funcs[len(g.funcs)-1]
	f.rows, f.panels = rows, panels
	g.op("MOVQ tile_a(DI), R8")
	g.op("MOVQ tile_lda(DI), R9")
	base := []string{"R8", "R10", "R11", "R12"}
	if rows > 3 {
		g.op("LEAQ (R9)(R9*2), AX")
		for i := 1; 3*i < rows; i++ {
			g.op("LEAQ (%s)(AX*1), %s", base[i-1], base[i])
		}
	}
	elem := func(i, u int) string {
		return fmt.Sprintf([3]string{"%d(%s)", "%d(%s)(R9*1)", "%d(%s)(R9*2)"}[i%3], 4*u, base[i/3])
	}
	g.op("MOVQ tile_b(DI), BX")
	g.op("MOVQ tile_panel(DI), DX")
	if panels == 4 {
		g.op("LEAQ (DX)(DX*2), R13")
	}
	g.op("MOVQ tile_step(DI), SI")
	line0 := func(p, offset int) string {
		return fmt.Sprintf([4]string{"%d(BX)", "%d(BX)(DX*1)", "%d(BX)(DX*2)", "%d(BX)(R13*1)"}[p], offset)
	}
	b := func(j int) string { return line0(j/per, j%per*g.bytes()) }
	g.op("MOVQ tile_lanes(DI), CX") // of the last panel, 1 to 16
	if g.wide {
		g.op("MOVQ $-1, AX")
		g.op("BZHIQ CX, AX, AX")
		g.op("KMOVW AX, K1")
	}

	l := g.newLabels("plain", "begin", "loop", "rest", "last", "done", "store")
	plain, begin, loop, rest, last, done, store := l[0], l[1], l[2], l[3], l[4], l[5], l[6]
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
	// How far ahead panels are fetched. Weights that come from memory need some 100 ns, and few rows leave little time: 512
	// and 1024 bytes gained nothing. Fetching what is there already, or past the end, costs next to nothing.
	const unroll, ahead = 4, 4096
	step := func(u int) {
		for j := range cols {
			g.op("VMOVUPS %s, %s", b(j), line(j))
		}
		for i := range rows {
			s := spread()
			g.op("VBROADCASTSS %s, %s", elem(i, u), s)
			for j := range cols {
				g.op("VFMADD231PS %s, %s, %s", line(j), s, acc(i, j))
			}
		}
		for p := range panels {
			g.op("PREFETCHT0 %s", line0(p, ahead))
		}
		g.op("ADDQ SI, BX")
	}
	g.op("MOVQ tile_k(DI), CX")
	g.op("SUBQ $%d, CX", unroll)
	g.op("JLT %s", rest)
	g.label(loop)
	for u := range unroll {
		step(u)
	}
	for i := 0; 3*i < rows; i++ {
		g.op("ADDQ $%d, %s", 4*unroll, base[i])
	}
	g.op("SUBQ $%d, CX", unroll)
	g.op("JGE %s", loop)
	g.label(rest)
	g.op("ADDQ $%d, CX", unroll)
	g.op("JZ %s", done)
	g.label(last)
	step(0)
	for i := 0; 3*i < rows; i++ {
		g.op("ADDQ $4, %s", base[i])
	}
	g.op("DECQ CX")
	g.op("JNZ %s", last)
	g.label(done)
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

// peak is the probe: nothing but multiply-adds on registers, as many as hide their latency.
func (g *isa) peak() {
	g.text("peak", "peak", "Multiplies and adds in registers, t.n rounds: what the core can do at most.")
	g.op("MOVQ peak_n(DI), CX")
	n := 12
	for i := range n + 2 {
		g.zero(g.v(i))
	}
	l := g.newLabels("round")[0]
	g.label(l)
	for range 4 {
		for i := range n {
			g.op("VFMADD231PS %s, %s, %s", g.v(n), g.v(n+1), g.v(i))
		}
	}
	g.op("DECQ CX")
	g.op("JNZ %s", l)
	g.end()
}
