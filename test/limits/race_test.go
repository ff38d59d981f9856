//go:build race

package limits

// heavy: the race detector's own memory is several times the program's.
const heavy = true
