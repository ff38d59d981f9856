package peercred

import (
	"os"
	"testing"

	"github.com/zcstore/zcstore/internal/testleak"
)

func TestMain(m *testing.M) {
	dialer()
	os.Exit(testleak.Run(m))
}
