package worker_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/zcstore/zcstore/client/worker"
)

type greeting struct{ Words string }

type greeter struct{ words string }

func (g greeter) Call(ctx context.Context, name string) (string, error) {
	return g.words + ", " + strings.ToUpper(name), nil
}

func (g greeter) Close() error { return nil }

var greet = worker.Define("example.greet", func(ctx context.Context, g greeting) (worker.Actor[string, string], error) {
	return greeter{g.Words}, nil // here a model would be loaded
})

// With Mode: worker.Processes, the default, the program also needs worker.Main() at the top of main.
func Example() {
	ctx := context.Background()
	pool, err := worker.Start(ctx, greet, greeting{"Hello"}, worker.Options{Workers: 2, Mode: worker.Goroutines})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer pool.Close()
	out, err := pool.Call(ctx, "gopher")
	fmt.Println(out, err)
	// Output: Hello, GOPHER <nil>
}

func ExampleRun() {
	out, err := worker.Run(context.Background(), greet, greeting{"Bye"}, "gopher", worker.Options{Mode: worker.Goroutines})
	fmt.Println(out, err)
	// Output: Bye, GOPHER <nil>
}
