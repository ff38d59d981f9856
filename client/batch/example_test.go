package batch_test

import (
	"context"
	"fmt"
	"slices"

	"github.com/zcstore/zcstore/client/batch"
	"github.com/zcstore/zcstore/client/worker"
)

// double is an actor without state; most have a model, loaded in the function given to Define.
var double = worker.Define("example.double", func(ctx context.Context, by float32) (worker.Actor[[]float32, []float32], error) {
	return worker.Func[[]float32, []float32](func(ctx context.Context, rows []float32) ([]float32, error) {
		out := make([]float32, len(rows))
		for i, v := range rows {
			out[i] = v * by
		}
		return out, nil
	}), nil
})

func ExampleMap() {
	rows := []float32{1, 2, 3, 4, 5}
	res, err := batch.Map(context.Background(), rows, double, 2, batch.Options{Size: 2, Workers: 2, Mode: worker.Goroutines})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.Rows, "in", res.Batches, "batches")
	// Output: [2 4 6 8 10] in 3 batches
}

func ExampleStream() {
	rows := slices.Values([]float32{1, 2, 3, 4, 5})
	for out, err := range batch.Stream(context.Background(), rows, double, 10, batch.Options{Size: 2, Workers: 2, Mode: worker.Goroutines}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(out)
	}
	// Output:
	// [10 20]
	// [30 40]
	// [50]
}
