package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/zcstore/zcstore/shm/tensor"
)

// Named is a tensor with the name it has in a file.
type Named struct {
	Name string
	tensor.View
}

// Encode writes the header: its length, the JSON and as many spaces as let the data start on a multiple of align, a
// power of two from 8 to 64 KiB. It sets DataStart. Equal headers give equal bytes: entries stand in their order,
// metadata sorted by key. What [Parse] would refuse is an error, entries that are not in offset order included.
func (h *Header) Encode(align int) ([]byte, error) {
	if align < 8 || align > 1<<16 || align&(align-1) != 0 {
		return nil, fmt.Errorf("safetensors: alignment %d is no power of two from 8 to 65536", align)
	}
	if len(h.Entries) > MaxTensors {
		return nil, fmt.Errorf("safetensors: %d tensors, the limit is %d", len(h.Entries), MaxTensors)
	}
	b := make([]byte, prefixBytes, prefixBytes+64+128*len(h.Entries))
	b = append(b, '{')
	if h.Metadata != nil {
		var err error
		if b, err = appendMetadata(b, h.Metadata); err != nil {
			return nil, err
		}
	}
	seen := make(map[string]struct{}, len(h.Entries))
	var prev *Entry
	for i := range h.Entries {
		e := &h.Entries[i]
		if msg := checkName(e.Name); msg != "" {
			return nil, fmt.Errorf("safetensors: tensor %s: %s", quote(e.Name), msg)
		}
		if field, msg := checkSize(*e); msg != "" {
			return nil, fmt.Errorf("safetensors: tensor %s, %s: %s", quote(e.Name), field, msg)
		}
		if msg := checkFollows(*e, prev); msg != "" {
			return nil, fmt.Errorf("safetensors: tensor %s, data_offsets: %s", quote(e.Name), msg)
		}
		if _, dup := seen[e.Name]; dup {
			return nil, fmt.Errorf("safetensors: tensor %s: stands there twice", quote(e.Name))
		}
		seen[e.Name] = struct{}{}
		prev = e

		b = appendComma(b)
		b = appendString(b, e.Name)
		b = append(b, `:{"dtype":"`...)
		b = append(b, e.DType.String()...)
		b = append(b, `","shape":`...)
		b = append(b, e.Shape.String()...)
		b = append(b, `,"data_offsets":[`...)
		b = strconv.AppendInt(b, e.Begin, 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, e.End, 10)
		b = append(b, "]}"...)
	}
	b = append(b, '}')
	if pad := -len(b) & (align - 1); pad > 0 {
		b = append(b, bytes.Repeat([]byte{' '}, pad)...)
	}
	if len(b)-prefixBytes > MaxHeaderBytes {
		return nil, fmt.Errorf("safetensors: the header needs %d bytes, the limit is %d", len(b)-prefixBytes, MaxHeaderBytes)
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-prefixBytes))
	h.DataStart = int64(len(b))
	return b, nil
}

func appendMetadata(b []byte, metadata map[string]string) ([]byte, error) {
	b = append(b, `"`+metadataKey+`":{`...)
	total := 0
	for _, k := range slices.Sorted(maps.Keys(metadata)) {
		v := metadata[k]
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("safetensors: metadata %s is not UTF-8", quote(k))
		}
		if total += len(k) + len(v); total > MaxMetadataBytes {
			return nil, fmt.Errorf("safetensors: the metadata is over the limit of %d bytes", MaxMetadataBytes)
		}
		b = appendComma(b)
		b = appendString(b, k)
		b = append(b, ':')
		b = appendString(b, v)
	}
	return append(b, '}'), nil
}

// appendComma separates members: it writes nothing after an opening brace.
func appendComma(b []byte) []byte {
	if b[len(b)-1] == '{' {
		return b
	}
	return append(b, ',')
}

func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// Write writes a whole file. Tensors with larger elements come first, equal ones by name, so that the elements of
// each are aligned; the input is not reordered. w gets one Write for the header and one for each tensor with bytes.
func Write(w io.Writer, tensors []Named, metadata map[string]string) error {
	tensors = slices.Clone(tensors)
	slices.SortStableFunc(tensors, func(a, b Named) int {
		return cmp.Or(cmp.Compare(b.DType.Size(), a.DType.Size()), cmp.Compare(a.Name, b.Name))
	})
	h := &Header{Metadata: metadata, Entries: make([]Entry, len(tensors))}
	at := int64(0)
	for i, t := range tensors {
		end := at + int64(len(t.Data))
		h.Entries[i] = Entry{Name: t.Name, DType: t.DType, Shape: t.Shape, Begin: at, End: end}
		at = end
	}
	head, err := h.Encode(8)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("write safetensors header: %w", err)
	}
	for _, t := range tensors {
		if len(t.Data) == 0 {
			continue
		}
		if _, err := w.Write(t.Data); err != nil {
			return fmt.Errorf("write tensor %s: %w", quote(t.Name), err)
		}
	}
	return nil
}
