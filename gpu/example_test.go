package gpu_test

import (
	"fmt"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/gpu/cpu"
	"github.com/zcstore/zcstore/shm/tensor"
)

func Example() {
	dev := cpu.Default()
	view, err := tensor.FromFloat32s(tensor.Shape{2, 3}, []float32{1, 0, 0, 0, -1, 1})
	if err != nil {
		panic(err)
	}
	w, err := dev.Import(view, tensor.Linear)
	if err != nil {
		panic(err)
	}
	group, err := gpu.NewGroup([]*gpu.Weight{w}, nil)
	if err != nil {
		panic(err)
	}

	s, err := dev.NewStream()
	if err != nil {
		panic(err)
	}
	defer s.Close()
	x, y := s.F32(1, 3), s.F32(1, 2)
	out := make([]float32, 2)
	s.Upload(x, []float32{1, 5, 3})
	s.Linear(y, x, group, gpu.Epilogue{Act: gpu.ReLU})
	s.Download(out, y)
	fmt.Println(s.Sync(), out)

	s.Add(x, x, y)
	fmt.Println(s.Sync())
	// Output:
	// <nil> [1 0]
	// add: shapes do not fit: b has neither the shape of a, nor one row, nor one column (a F32 [1,3], b F32 [1,2])
}
