// Package safetensors reads and writes the header of the safetensors format.
//
// A file is an 8-byte little-endian header length, a JSON object and the data: a tensor is a dtype, a shape and a
// range of the data. [Read] takes the header of a file nobody vouches for, [Parse] that of a file in memory; both
// hold it to the same rules and reject what they do not know, since a file that two readers understand differently is
// an attack. [Header.Encode] writes a header, [Write] a whole small file.
//
// A [Header] is plain data: it keeps no reference to the file and is safe for concurrent reading.
package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/zcstore/zcstore/shm/tensor"
)

// The limits of a header.
const (
	MaxHeaderBytes   = 100_000_000 // as in the reference implementation
	MaxTensors       = 1_000_000
	MaxNameBytes     = 1 << 10
	MaxMetadataBytes = 1 << 20 // keys and values together, unescaped
)

const (
	prefixBytes = 8 // the header length
	metadataKey = "__metadata__"
)

// Entry is one tensor of a file. Its bytes are [Begin, End) counted from the start of the data.
type Entry struct {
	Name       string
	DType      tensor.DType
	Shape      tensor.Shape
	Begin, End int64
}

// SizeBytes is the number of bytes of the tensor.
func (e Entry) SizeBytes() int64 { return e.End - e.Begin }

// Header describes all the tensors of a file. One that came from [Read] or [Parse] is not to be changed.
type Header struct {
	Entries   []Entry           // in offset order, without holes or overlaps
	Metadata  map[string]string // nil when the file has none
	DataStart int64             // offset in the file of the first data byte

	index map[string]int // name to its place in Entries; nil when the header was not parsed
}

// FormatError says what is wrong with a header, and where.
type FormatError struct {
	Offset int64  // byte in the file
	Tensor string // "" outside a tensor
	Field  string // "dtype", "shape", "data_offsets", "__metadata__", "header length" or ""
	Msg    string
}

// Error names the byte offset, the tensor, cut to 128 characters and quoted, and the field.
func (e *FormatError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "safetensors: byte %d", e.Offset)
	if e.Tensor != "" {
		b.WriteString(", tensor ")
		b.WriteString(quote(e.Tensor))
	}
	if e.Field != "" {
		b.WriteString(", ")
		b.WriteString(e.Field)
	}
	b.WriteString(": ")
	b.WriteString(e.Msg)
	return b.String()
}

// quote makes a foreign string fit for a terminal: escaped, and never long.
func quote(s string) string {
	n := 0
	for i := range s {
		if n == 128 {
			return strconv.QuoteToASCII(s[:i]) + "..."
		}
		n++
	}
	return strconv.QuoteToASCII(s)
}

// Read reads the header of a file of size bytes. It reads the header once, into memory of its own, and checks that
// copy against the size, so a file that changes meanwhile cannot slip past the checks. The error is a *FormatError,
// or wraps what r returned.
func Read(r io.ReaderAt, size int64) (*Header, error) {
	var prefix [prefixBytes]byte
	if size < prefixBytes {
		return nil, shortFile(size)
	}
	if err := readFull(r, prefix[:], 0); err != nil {
		return nil, fmt.Errorf("read safetensors header length: %w", err)
	}
	n, err := headerBytes(prefix, size)
	if err != nil {
		return nil, err
	}
	header := make([]byte, n)
	if err := readFull(r, header, prefixBytes); err != nil {
		return nil, fmt.Errorf("read safetensors header: %w", err)
	}
	return parse(header, size)
}

// ReadStream reads the header of a file that comes as a stream, and no byte more: the data follows in r, as long as the last
// entry's End says. That the stream ends there is for the caller to check. The error is a *FormatError, or wraps what r returned.
func ReadStream(r io.Reader) (*Header, error) {
	var prefix [prefixBytes]byte
	if n, err := io.ReadFull(r, prefix[:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, shortFile(int64(n))
		}
		return nil, fmt.Errorf("read safetensors header length: %w", err)
	}
	n, err := headerBytes(prefix, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	var header bytes.Buffer // grows with what comes, not with what the length says
	if got, err := io.CopyN(&header, r, n); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &FormatError{Field: "header length", Msg: fmt.Sprintf("%d bytes, but the stream has only %d after the length", n, got)}
		}
		return nil, fmt.Errorf("read safetensors header: %w", err)
	}
	return parse(header.Bytes(), -1)
}

// Parse reads the header of a file that is in memory. It copies the header before it looks at it and keeps nothing
// of file, which may be a mapping that goes away afterwards. The error is a *FormatError.
func Parse(file []byte) (*Header, error) {
	size := int64(len(file))
	if size < prefixBytes {
		return nil, shortFile(size)
	}
	n, err := headerBytes([prefixBytes]byte(file[:prefixBytes]), size)
	if err != nil {
		return nil, err
	}
	return parse(append([]byte(nil), file[prefixBytes:prefixBytes+n]...), size)
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil // ReadAt may say io.EOF even so
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func shortFile(size int64) error {
	return &FormatError{Field: "header length", Msg: fmt.Sprintf("the file has %d bytes, fewer than the 8 of the header length", size)}
}

// headerBytes is the header length that the prefix states, checked before anything of that size is allocated.
func headerBytes(prefix [prefixBytes]byte, size int64) (int64, error) {
	n := binary.LittleEndian.Uint64(prefix[:])
	switch {
	case n > MaxHeaderBytes:
		return 0, &FormatError{Field: "header length", Msg: fmt.Sprintf("%d bytes is over the limit of %d", n, MaxHeaderBytes)}
	case int64(n) > size-prefixBytes:
		return 0, &FormatError{Field: "header length", Msg: fmt.Sprintf("%d bytes, but the file has only %d after the length", n, size-prefixBytes)}
	case n < 2:
		return 0, &FormatError{Field: "header length", Msg: fmt.Sprintf("%d bytes is no JSON object", n)}
	}
	return int64(n), nil
}

// Find returns the tensor of that name.
func (h *Header) Find(name string) (Entry, bool) {
	if h.index != nil {
		i, ok := h.index[name]
		if !ok {
			return Entry{}, false
		}
		return h.Entries[i], true
	}
	for _, e := range h.Entries {
		if e.Name == name {
			return e, true
		}
	}
	return Entry{}, false
}

// Aligned reports whether the elements of e start on a multiple of their size, counted from the start of the file.
// The format does not promise it; bytes that are not aligned must be copied before they are used as numbers.
func (h *Header) Aligned(e Entry) bool {
	size := int64(e.DType.Size())
	return size != 0 && (h.DataStart+e.Begin)%size == 0
}

// DataBytes is the number of data bytes, from DataStart to the end of the file.
func (h *Header) DataBytes() int64 {
	if len(h.Entries) == 0 {
		return 0
	}
	return h.Entries[len(h.Entries)-1].End
}

// checkName says what is wrong with a tensor name, "" when nothing is.
func checkName(name string) string {
	switch {
	case name == "":
		return "the tensor name is empty"
	case len(name) > MaxNameBytes:
		return fmt.Sprintf("the tensor name has %d bytes, the limit is %d", len(name), MaxNameBytes)
	case name == metadataKey:
		return "the tensor name is reserved"
	case !utf8.ValidString(name):
		return "the tensor name is not UTF-8"
	}
	for _, r := range name {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fmt.Sprintf("the tensor name has the control character U+%04X", r)
		}
	}
	return ""
}

// checkSize says whether the range of e is as long as its dtype and shape ask for.
func checkSize(e Entry) (field, msg string) {
	want, err := tensor.SizeBytes(e.DType, e.Shape)
	switch {
	case err != nil && !e.DType.Valid():
		return "dtype", err.Error()
	case err != nil:
		return "shape", err.Error()
	case e.Begin < 0 || e.End < e.Begin:
		return "data_offsets", fmt.Sprintf("[%d,%d] is no range", e.Begin, e.End)
	case e.End-e.Begin != int64(want):
		return "data_offsets", fmt.Sprintf("[%d,%d] is %d bytes, but %v %v needs %d", e.Begin, e.End, e.End-e.Begin, e.DType, e.Shape, want)
	}
	return "", ""
}

// checkFollows says whether e begins where the tensors before it end. prev is nil for the first.
func checkFollows(e Entry, prev *Entry) string {
	end := int64(0)
	after := ""
	if prev != nil {
		end, after = prev.End, " of tensor "+quote(prev.Name)
	}
	switch {
	case e.Begin > end && prev == nil:
		return fmt.Sprintf("begins at %d, and no tensor holds the bytes before it", e.Begin)
	case e.Begin > end:
		return fmt.Sprintf("begins at %d and leaves a hole of %d bytes after the end%s", e.Begin, e.Begin-end, after)
	case e.Begin < end:
		return fmt.Sprintf("begins at %d and overlaps the last %d bytes%s", e.Begin, end-e.Begin, after)
	}
	return ""
}
