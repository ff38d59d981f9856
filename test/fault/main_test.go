// Package fault breaks the store on purpose: steps that fail, processes that are killed, histories that must be linearizable
// all the same. The long variants run with ZCSTORE_SOAK=1 (make soak), those of CI's length with ZCSTORE_CI=1.
package fault

import (
	"os"
	"testing"

	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	testdaemon.Main()
	os.Exit(testleak.Run(m))
}
