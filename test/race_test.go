//go:build race

package e2e

// slow: the race detector makes a matrix product some fifty times as slow.
const slow = true
