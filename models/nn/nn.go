// Package nn has the layers that small models are made of, and the tensors that go through them.
//
// # Building and running
//
//	enc := nn.NewSequential(nn.NewLinear(128, 96), nn.NewReLU(), nn.NewLinear(96, 64))
//	x, err := nn.FromRows(rows)
//	y, err := enc.Forward(x)
//	values, err := y.Float32s()
//
// # Loading
//
// [LoadStateDict] fills layers from tensors named as in a PyTorch state dict ("0.weight"). A stored pipeline rebuilds
// its layers by kind: every layer here is registered with package models under its name, "nn.Linear" and so on, and
// works on the stored bytes in place.
//
// # Concurrency
//
// Layers and tensors are immutable once made, and safe for concurrent use; LoadStateDict comes before the sharing.
// Forward checks shapes before it computes, and errors say which layer refused what.
package nn

import (
	"fmt"
	"runtime"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Layer is a module that makes a tensor of a tensor. A program's own layers can stand in a Sequential, too.
type Layer interface {
	models.Module
	Forward(x *Tensor) (*Tensor, error)
}

// Default is the device of layers that are made without naming one.
func Default() gpu.Device { return cpu.Default() }

// step is a layer that only launches ops, so that several share one stream.
type step interface {
	Layer
	// device is where the weights are, nil for a layer without.
	device() gpu.Device
	// check gives the shape that comes out when this one goes in.
	check(in tensor.Shape) (tensor.Shape, error)
	launch(s *gpu.Stream, dst, x gpu.Matrix)
}

// fuser is a step that an activation can join.
type fuser interface {
	launchAct(s *gpu.Stream, dst, x gpu.Matrix, a gpu.Act)
}

// shapeError is the typed error of a layer that refuses a shape before any op would.
func shapeError(op string, x tensor.Shape, format string, args ...any) error {
	return &gpu.OpError{Op: op, Kind: gpu.ErrShape, Reason: fmt.Sprintf(format, args...),
		Operands: []gpu.Operand{{Name: "x", Shape: x, DType: tensor.F32}}}
}

// matrixOf is a shape as rows and columns: the last dimension is the columns.
func matrixOf(s tensor.Shape) (rows, cols int) {
	if len(s) == 0 {
		return 1, 1
	}
	rows, _ = s[:len(s)-1].Elements()
	return rows, s[len(s)-1]
}

// forward runs steps one after the other on one stream.
func forward(x *Tensor, steps ...step) (*Tensor, error) {
	if x == nil {
		return nil, shapeError(steps[0].Spec().Kind, nil, "x is nil")
	}
	var dev gpu.Device
	shapes := make([]tensor.Shape, len(steps)+1)
	shapes[0] = x.shape
	widest := 0
	for i, l := range steps {
		out, err := l.check(shapes[i])
		if err != nil {
			return nil, err
		}
		shapes[i+1] = out
		n, _ := out.Elements()
		widest = max(widest, n)
		if d := l.device(); d != nil && dev == nil {
			dev = d
		}
	}
	if dev == nil {
		dev = x.device()
	}
	return run(dev, shapes[len(steps)], func(s *gpu.Stream, out gpu.Matrix) {
		cur := x.on(s)
		var spare [2]gpu.Matrix
		if len(steps) > 1 {
			spare[0] = s.F32(1, widest)
		}
		if len(steps) > 2 {
			spare[1] = s.F32(1, widest)
		}
		for i := 0; i < len(steps); i++ {
			f, fuse := steps[i].(fuser)
			act := gpu.None
			if fuse && i+1 < len(steps) {
				if a, ok := steps[i+1].(activation); ok {
					act = a.act()
					i++
				}
			}
			dst := out
			if i+1 < len(steps) {
				dst = spare[0]
				dst.Rows, dst.Cols = matrixOf(shapes[i+1])
				dst.Stride = dst.Cols
				spare[0], spare[1] = spare[1], spare[0]
			}
			if act != gpu.None {
				f.launchAct(s, dst, cur, act)
			} else {
				steps[i].launch(s, dst, cur)
			}
			cur = dst
		}
	}, x)
}

// run makes a tensor with ops on a stream of its own, and waits for them. The operands live until then.
func run(dev gpu.Device, shape tensor.Shape, ops func(s *gpu.Stream, out gpu.Matrix), operands ...*Tensor) (*Tensor, error) {
	out, err := empty(dev, shape)
	if err != nil {
		return nil, err
	}
	s, err := dev.NewStream()
	if err != nil {
		return nil, err
	}
	defer s.Close()
	ops(s, out.m)
	err = s.Sync()
	for _, t := range operands {
		runtime.KeepAlive(t)
	}
	runtime.KeepAlive(out)
	if err != nil {
		return nil, err
	}
	return out, nil
}
