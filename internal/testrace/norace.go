//go:build !race

// Package testrace tells tests whether the race detector is on, which makes a matrix product some fifty times as slow and takes
// several times the memory of the program.
package testrace

// Enabled tells that the race detector is on.
const Enabled = false
