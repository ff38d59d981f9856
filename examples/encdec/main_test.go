package main

import (
	"testing"

	"github.com/zcstore/zcstore/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestExample(t *testing.T) {
	exampletest.Says(t, "Stored encdec:v1: 8 tensors, 103208 bytes", "Copied into each worker: Temperature; skipped: nothing",
		"Processed 500 samples\n", "First prediction shape: [10]\n", "Largest difference from PyTorch: ")
}

func TestExampleWithoutDaemon(t *testing.T) { exampletest.WithoutDaemon(t) }
