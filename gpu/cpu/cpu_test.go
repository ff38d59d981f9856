package cpu_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/gpu/gputest"
)

func TestConformance(t *testing.T) {
	for _, threads := range []int{1, 2, 5} {
		t.Run(fmt.Sprintf("%d threads", threads), func(t *testing.T) {
			dev, err := gpu.Open("cpu", gpu.Options{Threads: threads})
			if err != nil {
				t.Fatal(err)
			}
			defer dev.Close()
			gputest.Run(t, dev)
		})
	}
}

func TestThreads(t *testing.T) {
	t.Setenv("ZCSTORE_THREADS", "3")
	if d, err := cpu.New(gpu.Options{}); err != nil || d.Info().Threads != 3 {
		t.Errorf("got %v, %v", d, err)
	}
	for _, bad := range []string{"0", "-1", "two"} {
		t.Setenv("ZCSTORE_THREADS", bad)
		if _, err := cpu.New(gpu.Options{}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOpenUnknown(t *testing.T) {
	if _, err := gpu.Open("abacus", gpu.Options{}); err == nil || !strings.Contains(err.Error(), "cpu") {
		t.Errorf("got %v", err)
	}
}
