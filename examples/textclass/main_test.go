package main

import (
	"testing"

	"github.com/zcstore/zcstore/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func TestExample(t *testing.T) {
	exampletest.Says(t, "Stored textclass:v1: 41 tensors", "Classified 300 texts\n", "Largest difference from PyTorch: ")
}

func TestExampleWithoutDaemon(t *testing.T) { exampletest.WithoutDaemon(t) }
