package cpu

import (
	"time"

	"github.com/zcstore/zcstore/gpu"
)

// watched is a queue that says how long each op takes: an op has run when its call returns.
type watched struct {
	*queue
	watch func(gpu.Op, time.Duration)
}

// since is deferred with the time at which an op began.
func (w watched) since(start time.Time, op gpu.Op) { w.watch(op, time.Since(start)) }

func (w watched) Upload(dst gpu.Matrix, src []float32) {
	defer w.since(time.Now(), gpu.Op{Name: "upload"})
	w.queue.Upload(dst, src)
}

func (w watched) UploadInts(dst gpu.Matrix, src []int32) {
	defer w.since(time.Now(), gpu.Op{Name: "upload"})
	w.queue.UploadInts(dst, src)
}

func (w watched) Download(dst []float32, src gpu.Matrix) {
	defer w.since(time.Now(), gpu.Op{Name: "download"})
	w.queue.Download(dst, src)
}

func (w watched) Linear(dst, x gpu.Matrix, g *gpu.Group, e gpu.Epilogue) {
	defer w.since(time.Now(), gpu.Op{Name: "linear", N: g.N(), K: g.K()})
	w.queue.Linear(dst, x, g, e)
}

func (w watched) Binary(op gpu.Binary, dst, a, b gpu.Matrix) {
	defer w.since(time.Now(), gpu.Op{Name: op.String()})
	w.queue.Binary(op, dst, a, b)
}

func (w watched) Act(dst, x gpu.Matrix, a gpu.Act) {
	defer w.since(time.Now(), gpu.Op{Name: a.String()})
	w.queue.Act(dst, x, a)
}

func (w watched) LayerNorm(dst, x, residual gpu.Matrix, gamma, beta *gpu.Weight, eps float32) {
	defer w.since(time.Now(), gpu.Op{Name: "layernorm"})
	w.queue.LayerNorm(dst, x, residual, gamma, beta, eps)
}

func (w watched) RMSNorm(dst, x, residual gpu.Matrix, gamma *gpu.Weight, eps float32) {
	defer w.since(time.Now(), gpu.Op{Name: "rmsnorm"})
	w.queue.RMSNorm(dst, x, residual, gamma, eps)
}

func (w watched) Softmax(dst, x gpu.Matrix) {
	defer w.since(time.Now(), gpu.Op{Name: "softmax"})
	w.queue.Softmax(dst, x)
}

func (w watched) Attention(dst, q, k, v gpu.Matrix, a gpu.Attention) {
	defer w.since(time.Now(), gpu.Op{Name: "attention"})
	w.queue.Attention(dst, q, k, v, a)
}

func (w watched) Rotate(dst, x, cos, sin gpu.Matrix, heads int) {
	defer w.since(time.Now(), gpu.Op{Name: "rotate"})
	w.queue.Rotate(dst, x, cos, sin, heads)
}

func (w watched) Unfold(dst, x gpu.Matrix, kernel int, seqs gpu.Ragged) {
	defer w.since(time.Now(), gpu.Op{Name: "unfold"})
	w.queue.Unfold(dst, x, kernel, seqs)
}

func (w watched) Gather(dst gpu.Matrix, tables []gpu.Lookup) {
	defer w.since(time.Now(), gpu.Op{Name: "gather"})
	w.queue.Gather(dst, tables)
}

func (w watched) MeanPool(dst, x gpu.Matrix, seqs gpu.Ragged) {
	defer w.since(time.Now(), gpu.Op{Name: "meanpool"})
	w.queue.MeanPool(dst, x, seqs)
}
