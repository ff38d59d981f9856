package derive

import (
	"bytes"

	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/shm/tensor"
)

// compile gives the tables of a tokenizer.json.
func compile(s Source, data []byte) (Made, error) {
	b, err := tokenizer.Compile(data)
	if err != nil {
		return Made{}, refuse(s, err, "put the model with a tokenizer that is supported: docs/models.md")
	}
	return Made{tensor.U8, tensor.Shape{len(b)}, bytes.NewReader(b)}, nil
}
