// Package pipeline stores and rebuilds Go values that have models in them.
//
// Declare a struct, put it, load it elsewhere:
//
//	type EncoderDecoder struct {
//		Encoder     *nn.Sequential // shared
//		Decoder     *nn.Sequential // shared
//		Temperature float32        // copied
//	}
//
//	report, err := pipeline.Put(ctx, c, "encdec", p, pipeline.PutOptions{})
//	model, err := pipeline.Load(ctx, c, "encdec", &p, pipeline.LoadOptions{}) // in another process
//
// # What is shared and what is copied
//
// Everything that implements models.Module, and every tensor.View, is shared: its bytes lie once in shared memory and every
// process that loads the pipeline uses them in place. Modules are found at any depth: in fields, maps with string keys,
// slices, arrays, pointers, interfaces and nested structs. The same module met twice is stored once and restored as the same
// pointer; tensors with the same bytes are stored once.
//
// Everything else is copied into each process: numbers, texts, slices and maps of them, and types that encode themselves as
// JSON or text. Numbers in a field of type any come back as float64.
//
// Put never leaves something out silently. Unexported fields, channels, functions and nil modules are listed in the report;
// when something that holds a tensor cannot be shared, Put is an error that names it. A field tag `zcstore:"-"` leaves a
// field out, `zcstore:"name"` renames it.
//
// # Closing
//
// The model that Load returns may be closed while modules compute: Close waits for Forward calls that run, and those that come
// later fail with an error of kind Canceled. A call of several passes, such as one over many batches, may end between two of
// them. When the shared memory is cut under a running Forward, that is an error of kind Fault. Views in fields of type
// tensor.View are read inside client.Model.Read to have the same.
//
// Load checks names, kinds, shapes and dtypes, never positions: a value of another shape is an error with the path, what the
// value wants and what is stored.
package pipeline
