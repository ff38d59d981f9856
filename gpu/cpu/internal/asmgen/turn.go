package main

import "fmt"

// turn turns 16 rows into a panel: dst[k, i] = src[i, k] for blocks of 16 k (AVX-512) or 8 (AVX2).
//
// Rows i, i+4, i+8 and i+12 meet in one register as they are loaded, four k of each: what is left is to turn 4 by 4
// blocks inside the quarters of four registers. Each line of memory is read once, so rows that lie a multiple of 4096
// bytes apart do no harm.
//
// Meanwhile the next sixteen rows are fetched into the second-level cache, as if they lay behind these without gaps: the rows
// of a weight do, and where they do not, or there are none, nothing is lost.
//
// Registers: R8, R10, R11, R12 rows 0, 4, 8, 12; R9 from row to row, AX three times that; R13 what to fetch; BX panel; CX
// blocks.
func (g *isa) turn() {
	g.text("turn", "turn", "Sixteen rows become a panel, t.blocks blocks of k.")
	g.op("MOVQ turn_src(DI), R8")
	g.op("MOVQ turn_ld(DI), R9")
	g.op("LEAQ (R9)(R9*2), AX")
	g.op("LEAQ (R8)(R9*4), R10")
	g.op("LEAQ (R10)(R9*4), R11")
	g.op("LEAQ (R11)(R9*4), R12")
	g.op("MOVQ R9, R13")
	g.op("SHLQ $4, R13")
	g.op("ADDQ R8, R13")
	g.op("MOVQ turn_dst(DI), BX")
	g.op("MOVQ turn_blocks(DI), CX")
	for p := 1; g.wide && p < 4; p++ {
		g.op("MOVL $%d, DX", 15<<(4*p))
		g.op("KMOVW DX, K%d", p)
	}
	l := g.newLabels("block")[0]
	g.label(l)
	group := []string{"R8", "R10", "R11", "R12"}
	row := func(grp, i, q int) string { // four k of row 4*grp+i
		at := [4]string{"%d(%s)", "%d(%s)(R9*1)", "%d(%s)(R9*2)", "%d(%s)(AX*1)"}[i]
		return fmt.Sprintf(at, 16*q, group[grp])
	}
	for i := 0; i < 4*g.lanes*16; i += 64 {
		g.op("PREFETCHT1 %d(R13)", i)
	}
	g.op("ADDQ $%d, R13", 4*g.lanes*16)
	quarters, halves := 4, 1
	if !g.wide {
		quarters, halves = 2, 2
	}
	for half := range halves {
		for i := range 4 {
			for q := range quarters {
				r := q*4 + i
				first := half * 2
				g.op("VMOVUPS %s, X%d", row(first, i, q), r)
				if !g.wide {
					g.op("VINSERTF128 $1, %s, Y%d, Y%d", row(first+1, i, q), r, r)
					continue
				}
				for p := 1; p < 4; p++ {
					g.op("VBROADCASTF32X4 %s, K%d, Z%d", row(p, i, q), p, r)
				}
			}
		}
		for q := range quarters {
			r := q * 4
			t := 4 * quarters // four registers that are free
			g.op("VUNPCKLPS %s, %s, %s", g.v(r+1), g.v(r), g.v(t))
			g.op("VUNPCKHPS %s, %s, %s", g.v(r+1), g.v(r), g.v(t+1))
			g.op("VUNPCKLPS %s, %s, %s", g.v(r+3), g.v(r+2), g.v(t+2))
			g.op("VUNPCKHPS %s, %s, %s", g.v(r+3), g.v(r+2), g.v(t+3))
			g.op("VUNPCKLPD %s, %s, %s", g.v(t+2), g.v(t), g.v(r))
			g.op("VUNPCKHPD %s, %s, %s", g.v(t+2), g.v(t), g.v(r+1))
			g.op("VUNPCKLPD %s, %s, %s", g.v(t+3), g.v(t+1), g.v(r+2))
			g.op("VUNPCKHPD %s, %s, %s", g.v(t+3), g.v(t+1), g.v(r+3))
			for i := range 4 {
				g.op("VMOVUPS %s, %d(BX)", g.v(r+i), (4*q+i)*64+half*32)
			}
		}
	}
	for _, r := range group {
		g.op("ADDQ $%d, %s", 16*quarters, r)
	}
	g.op("ADDQ $%d, BX", 64*4*quarters)
	g.op("DECQ CX")
	g.op("JNZ %s", l)
	g.end()
}

// widen makes F32 of 16-bit values, a register at a time; the blocks are of 16 values.
func (g *isa) widen(dtype string, one func(mem, r string)) {
	g.text("widen"+dtype, "widen", "16-bit values become F32, t.blocks times sixteen.")
	g.op("MOVQ widen_src(DI), R8")
	g.op("MOVQ widen_dst(DI), BX")
	g.op("MOVQ widen_blocks(DI), CX")
	l := g.newLabels("block")[0]
	g.label(l)
	for j := 0; j < 16; j += g.lanes {
		one(fmt.Sprintf("%d(R8)", 2*j), g.v(0))
		g.op("VMOVUPS %s, %d(BX)", g.v(0), 4*j)
	}
	g.op("ADDQ $32, R8")
	g.op("ADDQ $64, BX")
	g.op("DECQ CX")
	g.op("JNZ %s", l)
	g.end()
}

func (g *isa) widenBF16(mem, r string) {
	g.op("VPMOVZXWD %s, %s", mem, r)
	g.op("VPSLLD $16, %s, %s", r, r)
}

func (g *isa) widenF16(mem, r string) { g.op("VCVTPH2PS %s, %s", mem, r) }
