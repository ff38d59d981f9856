package cpu

import (
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/tensor"
)

// This file is Linear on the kernels of a tier. A weight is cut into chunks of columns. For each chunk of a plain weight its
// rows become panels in the scratch of one goroutine, small enough for the second-level cache, and are used for all rows of
// x: no other form of the weight outlives the chunk. Panels that are stored are used where they lie, and those of 16 and 8
// bits take rows of x that were rounded or quantised once, before the first chunk (operands.go). See gemm in internal/asmgen
// for the one order in which sums are made.

// lanes is the number of columns of a panel.
const lanes = 16

// chunkBytes bounds the panels of a chunk, and rowBytes the rows of x that are used with one after the other: about half and
// a third of a second-level cache of a megabyte.
const (
	chunkBytes = 512 << 10
	rowBytes   = 320 << 10
)

func roundUp(n, to int) int { return (n + to - 1) / to * to }

// chunks is how a product with a weight is divided into pieces: cols columns by rows rows.
type chunks struct{ cols, rows int }

// divide makes enough pieces for the threads.
//
// Rows of a plain weight become panels once for each piece, so that columns are divided before rows are. Panels that are
// stored cost nothing to use again: there a piece has as many rows as stay in the second-level cache beside two panels, since
// many short rows that come from further away are nothing that a processor fetches ahead.
func (d *Device) divide(w *gpu.Weight, n, rows int) chunks {
	p := w.Data().(*weight)
	c := chunks{cols: 4 * lanes, rows: rows}
	bytes := 4 * w.K // of a row
	if p.form != 0 {
		bytes = d.k.of(p.form).lineBytes * p.size.Lines()
		c.rows = min(rows, cached(bytes))
		if rows <= 6 { // the weight streams through: in long pieces, for its beginning is not fetched ahead
			c.cols = max(c.cols, w.N/(4*d.threads)/c.cols*c.cols)
			return c
		}
	}
	for c.cols > lanes && c.cols*bytes > chunkBytes || c.cols > 2*lanes && n < 2*c.cols*d.threads {
		c.cols /= 2
	}
	for c.rows > 96 && n*rows < 2*c.cols*c.rows*d.threads {
		c.rows = (c.rows + 1) / 2
	}
	return c
}

// cached is how many rows of so many bytes make up rowBytes, in whole tiles.
func cached(bytes int) int { return max(rowBytes/bytes/12, 2) * 12 }

// byRows is how many rows a piece has when it has all columns, or 0 where pieces are better made of columns. All columns
// mean that rows of x are fetched, rounded and quantised once, by who uses them. That takes panels that are stored, and
// enough rows for all threads.
func (d *Device) byRows(g *gpu.Group, rows int) int {
	bytes := 1
	for i := range g.Len() {
		w, _ := g.At(i)
		p := w.Data().(*weight)
		if p.form == 0 {
			return 0
		}
		bytes = max(bytes, d.k.of(p.form).lineBytes*p.size.Lines())
	}
	most := cached(bytes)
	if d.threads == 1 {
		return most
	}
	if n := roundUp((rows+4*d.threads-1)/(4*d.threads), 12); n >= min(most, 48) {
		return min(n, most)
	}
	return 0
}

// pieces of a weight are numbered so that those that follow each other share their rows, or where panels are made, their
// columns.
func (c chunks) pieces(w *gpu.Weight, rows int) int { return c.across(w) * c.down(rows) }

func (c chunks) across(w *gpu.Weight) int { return (w.N + c.cols - 1) / c.cols }

func (c chunks) down(rows int) int { return (rows + c.rows - 1) / c.rows }

// at is where a piece begins.
func (c chunks) at(piece int, w *gpu.Weight, rows int) (n0, i0 int) {
	if w.Layout != gpu.Plain {
		across := c.across(w)
		return piece % across * c.cols, piece / across * c.rows
	}
	down := c.down(rows)
	return piece / down * c.cols, piece % down * c.rows
}

// linearTask is a Linear on kernels. A piece is some rows, or some rows and columns.
type linearTask struct {
	d      *Device
	k      *kernels
	dst, x gpu.Matrix
	forms  *[pack.Int8 + 1]operands // of x, for the forms that there are in the group
	g      *gpu.Group
	e      gpu.Epilogue
	rows   int // of a piece of all columns, or 0
}

func (q *queue) linearTiles(k *kernels, dst, x gpu.Matrix, g *gpu.Group, e gpu.Epilogue) {
	l := &q.linear
	*l = linearTask{d: q.d, k: k, dst: dst, x: x, g: g, e: e, forms: &q.rounded.forms, rows: q.d.byRows(g, x.Rows)}
	pieces := 0
	if l.rows > 0 {
		pieces = (x.Rows + l.rows - 1) / l.rows
	} else {
		var made [pack.Int8 + 1]bool
		for i := range g.Len() {
			w, _ := g.At(i)
			pieces += q.d.divide(w, g.N(), x.Rows).pieces(w, x.Rows)
			if f := w.Data().(*weight).form; !made[f] && k.of(f).row != nil {
				q.operands(k.of(f), f, x)
				made[f] = true
			}
		}
	}
	q.parallel(pieces, x.Rows*g.N()*g.K()/16, l)
	*l = linearTask{}
}

func (l *linearTask) do(piece int, s *scratch) {
	if l.rows > 0 {
		i0 := piece * l.rows
		l.block(i0, min(i0+l.rows, l.x.Rows), s)
		return
	}
	col := 0 // of dst, where the weight begins
	for i := range l.g.Len() {
		w, bias := l.g.At(i)
		parts := l.d.divide(w, l.g.N(), l.x.Rows)
		n := parts.pieces(w, l.x.Rows)
		if piece >= n {
			piece -= n
			col += w.N
			continue
		}
		n0, i0 := parts.at(piece, w, l.x.Rows)
		n1, i1 := min(n0+parts.cols, w.N), min(i0+parts.rows, l.x.Rows)
		form := w.Data().(*weight).form
		x := operands{f: floats(l.x)[i0*l.x.Stride:], ld: l.x.Stride}
		if l.k.of(form).row != nil {
			x = l.forms[form].from(i0)
		}
		l.chunk(w, bias, x, col, n0, n1, i0, i1, s)
		return
	}
}

// block does all columns of some rows.
func (l *linearTask) block(i0, i1 int, s *scratch) {
	col := 0
	var made [pack.Int8 + 1]bool
	for i := range l.g.Len() {
		w, bias := l.g.At(i)
		form := w.Data().(*weight).form
		x := operands{f: floats(l.x)[i0*l.x.Stride:], ld: l.x.Stride}
		if p := l.k.of(form); p.row != nil {
			o := &s.forms[form]
			if !made[form] {
				o.room(p, form, i1-i0, l.x.Cols)
				for r := range i1 - i0 {
					o.set(p, r, l.x, i0+r, s)
				}
				made[form] = true
			}
			x = *o
		}
		cols := l.d.divide(w, l.g.N(), i1-i0).cols
		for n0 := 0; n0 < w.N; n0 += cols {
			l.chunk(w, bias, x, col, n0, min(n0+cols, w.N), i0, i1, s)
		}
		col += w.N
	}
}

// chunk does the columns n0 to n1 of a weight, whose first is column col of the result, and the rows i0 to i1, which x has.
func (l *linearTask) chunk(w, bias *gpu.Weight, x operands, col, n0, n1, i0, i1 int, s *scratch) {
	p := w.Data().(*weight)
	c := chunk{k: l.k, p: l.k.of(p.form), s: s, x: x, rows: i1 - i0, e: l.e, n: n1 - n0, lines: w.K, step: 4 * lanes,
		dst: l.dst.Slice(i0, i1-i0).Columns(col+n0, n1-n0)}
	if l.e.Residual.Buf != nil {
		c.e.Residual = l.e.Residual.Slice(i0, i1-i0).Columns(col+n0, n1-n0)
	}
	if b := vector(bias, &s.bias); b != nil {
		c.bias = b[n0:n1]
	}
	if p.form != 0 { // n0 is the first column of a panel
		c.lines, c.panel = p.size.Lines(), p.size.PanelBytes()
		c.panels = p.f32[n0/lanes*c.panel/4:]
	} else {
		c.panels, c.panel = l.k.panels(w, n0, n1, s), 4*lanes*roundUp(w.K, lanes)
	}
	c.run()
}

// chunk is some columns of a product, for all its rows.
type chunk struct {
	k      *kernels
	p      *tileSet
	s      *scratch
	dst    gpu.Matrix
	x      operands
	rows   int
	e      gpu.Epilogue
	bias   []float32 // of the columns, or nil
	n      int       // columns
	lines  int       // of a panel, without what is behind them
	panels []float32 // panel 0
	panel  int       // bytes from panel to panel
	step   int       // bytes from line to line
}

// run goes down the rows in tiles of about the same height, and over the panels for each.
func (c *chunk) run() {
	ds := floats(c.dst)
	var rs []float32
	if c.e.Residual.Buf != nil {
		rs = floats(c.e.Residual)
	}
	// The residual is added after the activation and may be what dst holds, so that both together need room of their own.
	apart := rs != nil && c.e.Act != gpu.None
	if apart {
		c.s.sums = grow(c.s.sums, c.p.maxRows*c.n)
	}
	c.p.down(c.rows, c.n, func(i, m int) {
		a, lda := c.x.f[i*c.x.ld:], c.x.ld
		if m > 4 && 4*lda%4096 == 0 {
			a, lda = c.padded(a, m)
		}
		t := &c.s.tile
		*t = tile{a: &a[0], lda: 4 * lda, panel: c.panel, step: c.step, k: c.lines, ldc: 4 * c.dst.Stride, ldres: 4 * c.e.Residual.Stride}
		if c.x.scales != nil {
			t.rows = &c.x.scales[i]
		}
		out := ds[i*c.dst.Stride:]
		if apart {
			out, t.ldc = c.s.sums, 4*c.n
		}
		c.p.across(c.n, m, func(col, width, panels int) {
			t.b = &c.panels[col/lanes*(c.panel/4)]
			t.c = &out[col]
			t.lanes = width - (panels-1)*lanes
			if c.bias != nil {
				t.bias = &c.bias[col]
			}
			if rs != nil && !apart {
				t.res = &rs[i*c.e.Residual.Stride+col]
			}
			c.p.gemm[m][panels](t)
		})
		if f := c.k.acts[c.e.Act]; f != nil {
			b := &c.s.block
			*b = block{dst: &out[0], src: &out[0], lddst: t.ldc, ldsrc: t.ldc, rows: m, cols: c.n}
			f(b)
		}
		for r := 0; apart && r < m; r++ {
			c.s.norm = norm{dst: &ds[(i+r)*c.dst.Stride], src: &out[r*c.n], res: &rs[(i+r)*c.e.Residual.Stride], n: c.n}
			c.k.addRow(&c.s.norm)
		}
	})
	c.s.forget()
}

// padded copies m rows to a distance that is no multiple of 4096 bytes, which would have them share cache sets.
func (c *chunk) padded(a []float32, m int) ([]float32, int) {
	ld := c.lines + lanes
	c.s.rows = grow(c.s.rows, m*ld)
	for r := range m {
		copy(c.s.rows[r*ld:][:c.lines], a[r*c.x.ld:])
	}
	return c.s.rows, ld
}

// down calls f for tiles of rows, of about the same height and at most the largest for the number of columns.
func (p *tileSet) down(rows, cols int, f func(i, m int)) {
	most := p.maxRows
	if p.maxPanels == 4 && rows <= 6 {
		most = 6
	}
	tiles := (rows + most - 1) / most
	for t := range tiles {
		i := rows * t / tiles
		f(i, rows*(t+1)/tiles-i)
	}
}

// across calls f for tiles of 4, 2 or 1 panels, as many as a tile of m rows can have. width is the columns that there are.
func (p *tileSet) across(cols, m int, f func(col, width, panels int)) {
	for col := 0; col < cols; {
		panels := 1
		left := (cols - col + lanes - 1) / lanes
		switch {
		case left >= 4 && p.gemm[m][4] != nil:
			panels = 4
		case left >= 2 && p.gemm[m][2] != nil:
			panels = 2
		}
		width := min(panels*lanes, cols-col)
		f(col, width, panels)
		col += width
	}
}

// panels makes panels of the columns n0 to n1 of a weight, in scratch.
func (k *kernels) panels(w *gpu.Weight, n0, n1 int, s *scratch) []float32 {
	c := w.Data().(*weight)
	depth := roundUp(w.K, lanes)
	s.pack = grow(s.pack, roundUp(n1-n0, lanes)*depth)
	for n := n0; n < n1; n += lanes {
		p := s.pack[(n-n0)*depth:][:lanes*depth]
		m := min(lanes, n1-n)
		switch {
		case w.Role == tensor.LinearT:
			k.gatherPanel(p, c, n, m, w.K, w.N)
		case c.half == nil:
			k.turnRows(p, c.f32[n*w.K:], m, w.K, w.K, s)
		default:
			s.stage = grow(s.stage, lanes*depth)
			for r := range m {
				k.widenRow(s.stage[r*depth:][:w.K], c, (n+r)*w.K, s)
			}
			k.turnRows(p, s.stage, lanes, depth, depth, s)
		}
	}
	return s.pack
}

// gatherPanel makes a panel of a turned weight, whose rows are the lines already.
func (k *kernels) gatherPanel(p []float32, c *weight, n, m, depth, stride int) {
	for i := range depth {
		line := p[i*lanes:][:m]
		if c.half == nil {
			copy(line, c.f32[i*stride+n:])
			continue
		}
		for j, h := range c.half[i*stride+n:][:m] {
			line[j] = c.widen(h)
		}
	}
}

// turnRows makes a panel of up to 16 rows. Rows that are fewer, or no multiple of 16 long, are completed in scratch.
func (k *kernels) turnRows(p, rows []float32, m, cols, ld int, s *scratch) {
	if m < lanes || cols%lanes != 0 {
		wide := roundUp(cols, lanes)
		s.whole = grow(s.whole, lanes*wide)
		for r := range m {
			copy(s.whole[r*wide:][:cols], rows[r*ld:])
		}
		rows, cols, ld = s.whole, wide, wide
	}
	s.turn = turn{src: &rows[0], ld: 4 * ld, dst: &p[0], blocks: cols / k.turnBlock}
	k.turn(&s.turn)
}

// widenRow makes F32 of the values from an index on.
func (k *kernels) widenRow(dst []float32, c *weight, from int, s *scratch) {
	src := c.half[from:][:len(dst)]
	if n := len(dst) / lanes; n > 0 {
		s.widen = widen{src: &src[0], dst: &dst[0], blocks: n}
		if c.bf16 {
			k.widenBF16(&s.widen)
		} else {
			k.widenF16(&s.widen)
		}
	}
	for i := len(dst) / lanes * lanes; i < len(dst); i++ {
		dst[i] = c.widen(src[i])
	}
}
