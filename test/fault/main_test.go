// Package fault breaks the store on purpose: steps that fail, processes that are killed, histories that must be linearizable
// all the same. Short variants run with go test, those of CI's length with ZCSTORE_CI=1 (make faults), the long ones with
// ZCSTORE_SOAK=1 (make soak).
package fault

import (
	"os"
	"testing"

	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	testdaemon.Main()
	helper()
	os.Exit(testleak.Run(m))
}

// size is how often a test does its thing: in go test, in CI, and by hand.
func size(short, ci, soak int) int {
	switch {
	case os.Getenv("ZCSTORE_SOAK") == "1":
		return soak
	case os.Getenv("ZCSTORE_CI") == "1":
		return ci
	}
	return short
}
