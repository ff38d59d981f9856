package main

import (
	"testing"

	"github.com/zcstore/zcstore/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestExample(t *testing.T) {
	exampletest.Says(t, "Stored complex:v1: 28 tensors, 152824 bytes", "Copied into each worker: Labels, Options.Normalize, Options.Note, Options.Scale, Options.Top; skipped: nothing",
		"Processed 64 samples\n", "shape of topic: [10]\n", "shape of tone: [5]\n", "shape of tag: [17]\n", "Largest difference from PyTorch: ")
}

func TestExampleWithoutDaemon(t *testing.T) { exampletest.WithoutDaemon(t) }
