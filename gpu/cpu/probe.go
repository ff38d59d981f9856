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
