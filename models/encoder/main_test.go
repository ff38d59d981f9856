package encoder

import (
	"os"
	"testing"

	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) { os.Exit(testleak.Run(m)) }
