//go:build !race

package limits

const heavy = false
