// Package units writes and reads sizes for people.
package units

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes writes a size in IEC units: 512 B, 86.7 MiB.
func Bytes[T ~int | ~int64 | ~uint64](size T) string {
	f, unit := float64(size), "KMGTPE"
	if f < 1024 {
		return fmt.Sprintf("%d B", size)
	}
	i := -1
	for f >= 1024 && i < len(unit)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, unit[i])
}

// ParseBytes reads a size: 4096, 500MB (decimal), 4GiB (binary), 1.5G (binary).
func ParseBytes(s string) (uint64, error) {
	text := strings.TrimSpace(s)
	digits := strings.TrimRight(text, "BbiKkMmGgTtPpEe ")
	suffix := strings.ToLower(strings.TrimSpace(text[len(digits):]))
	factor, ok := map[string]float64{
		"": 1, "b": 1,
		"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "pb": 1e15, "eb": 1e18,
		"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60,
		"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "pib": 1 << 50, "eib": 1 << 60,
	}[suffix]
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || n < 0 || n*factor >= math.MaxInt64 || n != n {
		return 0, fmt.Errorf("%q is no size; write it as 4096, 500MB or 4GiB", s)
	}
	return uint64(n * factor), nil
}
