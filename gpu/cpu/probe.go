package cpu

import (
	"time"

	"github.com/zcstore/zcstore/models/pack"
)

// Peak measures what one core does at most with this device's instruction set, in floating-point operations per second:
// multiply-adds on registers and nothing else, the best of a few short runs. 0 for plain Go. On a busy machine it is what is
// left of a core, so that a benchmark that runs it before and after can give its own figure as a share.
func (d *Device) Peak() float64 { return d.PeakOf(pack.F32) }

// PeakOf is Peak in the arithmetic that weights of a form are multiplied in.
func (d *Device) PeakOf(f pack.Form) float64 {
	if d.k == nil {
		return 0
	}
	const rounds, runs, perRound = 1 << 14, 12, 48
	p := d.k.of(f)
	best := time.Duration(1 << 62)
	for range runs {
		start := time.Now()
		p.peak(&peak{n: rounds})
		best = min(best, time.Since(start))
	}
	return 2 * perRound * rounds * float64(d.k.width*p.terms) / best.Seconds()
}

// ReadBandwidth measures how fast the device's threads read memory, in bytes per second: f once and nothing else. f has to be
// several times as large as the caches for that to be memory, and the best of several counts. 0 for plain Go.
func (d *Device) ReadBandwidth(f []float32) float64 {
	if d.k == nil {
		return 0
	}
	start := time.Now()
	j := &job{done: make(chan struct{}, 1)}
	if err := d.workers.run(j, &readTask{d.k, f}, len(f)/readPiece, d.threads); err != nil {
		return 0
	}
	return float64(len(f)/readPiece*readPiece*4) / time.Since(start).Seconds()
}

// readPiece is a megabyte, of which a quarter is read in each of four places.
const readPiece = 1 << 18

// readTask is a ReadBandwidth.
type readTask struct {
	k *kernels
	f []float32
}

func (t *readTask) do(piece int, _ *scratch) {
	t.k.read(&reading{src: &t.f[piece*readPiece], apart: readPiece, n: readPiece / 64})
}
