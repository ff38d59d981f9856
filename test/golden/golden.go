// Package golden has the small reference pipelines inside the program: weights, inputs and what PyTorch answered. The demo,
// the examples and the tests use them. README.md says where they come from.
package golden

import (
	"embed"
	"fmt"
	"io/fs"

	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Files is the folders tutorial, complex, stateful and intents.
//
//go:embed tutorial complex stateful intents
var Files embed.FS

// Read gives the tensors of a safetensors file of Files, by name. They lie on the heap of this process.
func Read(path string) (map[string]tensor.View, error) {
	b, err := fs.ReadFile(Files, path)
	if err != nil {
		return nil, err
	}
	h, err := safetensors.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	out := make(map[string]tensor.View, len(h.Entries))
	for _, e := range h.Entries {
		// A copy each: tensors of a file need not be aligned for their elements.
		data := append([]byte(nil), b[h.DataStart+e.Begin:h.DataStart+e.End]...)
		v, err := tensor.New(e.DType, e.Shape, data)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", path, e.Name, err)
		}
		out[e.Name] = v
	}
	return out, nil
}

// Rows is an F32 tensor [n, m] as n rows, sharing its memory.
func Rows(v tensor.View) ([][]float32, error) {
	f, err := v.Float32s()
	if err != nil {
		return nil, err
	}
	if len(v.Shape) != 2 {
		return nil, fmt.Errorf("a tensor %v has no rows", v.Shape)
	}
	rows := make([][]float32, v.Shape[0])
	for i := range rows {
		rows[i] = f[i*v.Shape[1] : (i+1)*v.Shape[1]]
	}
	return rows, nil
}
