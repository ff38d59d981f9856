//go:build !amd64

package cpu

// tiers is empty: plain Go computes.
var tiers []*kernels
