// Package bench measures what models and kernels reach on this machine, for zcctl bench. A figure is never alone: each row has,
// of the same minute, what the cores reach in nothing but multiply-adds, or what memory gives to who only reads it.
package bench

import (
	"slices"
	"time"
)

// MaxDrift is how far apart the probes before and after a row may be.
const MaxDrift = 0.03

// times runs f again and again for the window, and gives the seconds of a run in order.
func times(window time.Duration, f func() error) ([]float64, error) {
	var runs []float64
	for start := time.Now(); len(runs) < 5 || time.Since(start) < window; {
		began := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		runs = append(runs, time.Since(began).Seconds())
	}
	slices.Sort(runs)
	return runs, nil
}
