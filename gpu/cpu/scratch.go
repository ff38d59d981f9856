package cpu

import (
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models/pack"
)

// scratch is what one goroutine of an op works in: a worker has one, and a queue for who calls it.
type scratch struct {
	sums, pack, bias []float32
	stage, whole     []float32 // rows that become panels: widened, completed
	rows             []float32 // rows of x, moved apart
	seenK, seenV     []float32 // keys and values that are not hidden
	near             []float32 // of a head, by distance
	seen             []int     // how many of them up to each token
	scores, inv      []float32
	zeros            []float32
	mean             []float64
	forms            [pack.Int8 + 1]operands // rows of x of a piece

	// The arguments of kernels, here because what is called through a table would put them on the heap each time.
	tile  tile
	turn  turn
	widen widen
	block block
	norm  norm
	row   operand
}

// forget drops the pointers to memory that is not ours.
func (s *scratch) forget() {
	s.tile, s.turn, s.widen, s.block, s.norm, s.row = tile{}, turn{}, widen{}, block{}, norm{}, operand{}
}

// each is a task that is a function.
type each func(piece int, s *scratch)

func (f each) do(piece int, s *scratch) { f(piece, s) }

// parallel does the pieces of a task. work is about how many multiplications of plain Go there are in all: little work stays
// on the calling goroutine. A fault of the weights becomes the queue's error, and then some pieces are not done.
func (q *queue) parallel(pieces, work int, t task) {
	const worth = 1 << 15 // some 5 us, a few times what waking a worker costs
	q.fail(q.d.workers.run(&q.job, t, pieces, min(q.d.threads, pieces, work/worth+1)))
}

// rows is a task of rows: each piece is several, so that taking one costs little.
type rows struct {
	n, step int
	f       rowTask
}

// rowTask is what is done to a row.
type rowTask interface{ row(i int, s *scratch) }

// eachRow is a rowTask that is a function.
type eachRow func(i int, s *scratch)

func (f eachRow) row(i int, s *scratch) { f(i, s) }

func (r *rows) do(piece int, s *scratch) {
	for i := piece * r.step; i < min((piece+1)*r.step, r.n); i++ {
		r.f.row(i, s)
	}
}

// eachRow does a task for every row of m, each element costing about work multiplications.
func (q *queue) eachRow(m gpu.Matrix, work int, f rowTask) {
	q.rows = rows{n: m.Rows, step: max(m.Rows/(4*q.d.threads), 1), f: f}
	q.parallel((m.Rows+q.rows.step-1)/q.rows.step, m.Rows*m.Cols*work, &q.rows)
	q.rows.f = nil
}
