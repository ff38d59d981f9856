package main

import (
	"testing"

	"github.com/zcstore/zcstore/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestExample(t *testing.T) {
	exampletest.Says(t, "Stored stateful:v1: 6 tensors, 5304 bytes", "Preprocessor.Clip", "Config.Threshold", "Stats.Calls", "skipped: nothing",
		"Batch of 7: each worker has counted 1 calls", "Batch of 1: each worker has counted 2 calls", "Batch of 16: each worker has counted 3 calls",
		"Processed 24 samples in each of 3 workers\n", "Largest difference from PyTorch: ")
}

func TestExampleWithoutDaemon(t *testing.T) { exampletest.WithoutDaemon(t) }
