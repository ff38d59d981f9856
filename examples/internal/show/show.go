// Package show prints what the examples have in common: the report of a put, the distance from PyTorch's answers, an error.
package show

import (
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// Limit is how far a prediction may be from PyTorch's.
const Limit = 1e-5

// Report prints what became of a pipeline's parts.
func Report(r *pipeline.Report) {
	names := func(fields []pipeline.Field) string {
		var out []string
		for _, f := range fields {
			out = append(out, f.Path)
		}
		if len(out) == 0 {
			return "nothing"
		}
		return strings.Join(out, ", ")
	}
	fmt.Printf("Stored %s: %d tensors, %d bytes, shared by all workers\n", r.Ref, r.SharedTensors, r.SharedBytes)
	fmt.Printf("Copied into each worker: %s; skipped: %s\n", names(r.Copied), names(r.Skipped))
}

// Largest is the largest difference of two lists of rows; +Inf when they are not of one shape, or when one is no number.
func Largest(got, want [][]float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	d := 0.0
	for i := range got {
		if len(got[i]) != len(want[i]) {
			return math.Inf(1)
		}
		for j, v := range got[i] {
			diff := math.Abs(float64(v) - float64(want[i][j]))
			if math.IsNaN(diff) {
				return math.Inf(1)
			}
			d = max(d, diff)
		}
	}
	return d
}

// Difference prints the largest difference from PyTorch, and is an error when that is over Limit.
func Difference(largest float64) error {
	fmt.Printf("Largest difference from PyTorch: %.2g\n", largest)
	if !(largest <= Limit) {
		return fmt.Errorf("the predictions are off by %g, more than %g", largest, Limit)
	}
	return nil
}

// Exit ends the program: with status 0 when err is nil, else with what went wrong and what to do about it.
func Exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	if hint := zcerr.HintOf(err); hint != "" {
		fmt.Fprintln(os.Stderr, "  "+hint)
	}
	os.Exit(zcerr.KindOf(err).Exit())
}
