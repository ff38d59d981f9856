package hf

import (
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Stream is one safetensors file that comes as a stream: a draft without data, and the data in the order in which it comes.
type Stream struct {
	Draft *manifest.Draft
	Order []int     // tensors of the draft, as their bytes come
	Data  io.Reader // their bytes, one after the other, and then whatever follows in the stream
}

// OpenStream reads the header of a safetensors file from r, and nothing of its data. The tree is that of the same file opened
// by its name. Errors: Invalid.
func OpenStream(r io.Reader) (*Stream, error) {
	h, err := safetensors.ReadStream(r)
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "the stream: %w", err).WithHint("it must be one safetensors file; for a directory give its path")
	}
	root := &manifest.Node{Kind: manifest.Module, Impl: TensorsKind, Config: json.RawMessage("{}")}
	s := &Stream{Draft: &manifest.Draft{Root: root}}
	w := weights{im: &Import{Draft: s.Draft}}
	if err := w.entries("the stream", h, nil); err != nil {
		return nil, err
	}
	if len(w.found) == 0 {
		return nil, zcerr.New(zcerr.Invalid, "the stream has no tensors")
	}
	w.into(root, "", func(string) tensor.Role { return tensor.Other })
	var parts []io.Reader
	for _, e := range h.Entries { // in the order of their bytes
		if manifest.CheckTensorName(e.Name) != nil && isPadding(e.Name) {
			parts = append(parts, &skipper{r: r, n: e.SizeBytes()})
			continue
		}
		s.Order = append(s.Order, len(s.Order))
		parts = append(parts, io.LimitReader(r, e.SizeBytes()))
	}
	s.Data = io.MultiReader(append(parts, r)...)
	return s, nil
}

// isPadding tells tensors that our own segments have in place of holes.
func isPadding(name string) bool { return strings.HasPrefix(name, "__pad__") }

// skipper reads n bytes of r and gives none of them.
type skipper struct {
	r io.Reader
	n int64
}

func (s *skipper) Read([]byte) (int, error) {
	if _, err := io.CopyN(io.Discard, s.r, s.n); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return 0, io.EOF
}
