package nn_test

import (
	"fmt"

	"github.com/zcstore/zcstore/models/nn"
)

func ExampleNewSequential() {
	enc := nn.NewSequential(nn.NewLinear(4, 8, nn.Seed(1)), nn.NewReLU(), nn.NewLinear(8, 2, nn.Seed(2)))
	x, err := nn.FromRows([][]float32{{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}})
	if err != nil {
		panic(err)
	}
	y, err := enc.Forward(x)
	if err != nil {
		panic(err)
	}
	fmt.Println(y.Shape())
	_, err = enc.Forward(y)
	fmt.Println(err)
	// Output:
	// [3,2]
	// nn.Linear: shapes do not fit: the last dimension of x is to be 4 (x F32 [3,2], weight F32 [8,4])
}
