package derive

import (
	"bytes"
	"fmt"

	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/shm/tensor"
)

// maxTokenizerBytes bounds a tokenizer.json. The largest that are published have 35 MB.
const maxTokenizerBytes = 48 << 20

// compileFactor is how much memory it takes to compile a byte of tokenizer.json, at most: a vocabulary of long words that have
// nothing in common. Usual ones take 20 to 30.
const compileFactor = 80

// compile gives the tables of a tokenizer.json.
func compile(s Source, data []byte) (Made, error) {
	if len(data) > maxTokenizerBytes {
		return Made{}, refuse(s, fmt.Errorf("it has %d bytes, the most that are compiled are %d", len(data), maxTokenizerBytes), "put the model with a smaller vocabulary")
	}
	b, err := tokenizer.Compile(data)
	if err != nil {
		return Made{}, refuse(s, err, "put the model with a tokenizer that is supported: docs/models.md")
	}
	return Made{tensor.U8, tensor.Shape{len(b)}, bytes.NewReader(b)}, nil
}
