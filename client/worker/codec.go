package worker

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
)

// codec turns values into the bytes of a frame and back. It is the seam for Arrow batches and shared memory.
// encode appends to b. In both, v is a pointer to the value. decode keeps no reference to b.
type codec interface {
	encode(b []byte, v any) ([]byte, error)
	decode(b []byte, v any) error
}

// wire is the codec in use. Both ends are the same executable, so nothing is negotiated.
var wire codec = numbers{gobs{}}

// The first byte of a value says how the rest is written.
const (
	asGob  = 'g'
	asFlat = 'f' // one slice of numbers: count+1, elements
	asRows = 'r' // a slice of such slices: count+1, then each
)

// numbers writes slices of numbers raw, and leaves everything else to rest.
type numbers struct{ rest codec }

type number interface {
	~uint8 | ~int32 | ~int64 | ~uint16 | ~uint32 | ~uint64 | ~float32 | ~float64
}

func (n numbers) encode(b []byte, v any) ([]byte, error) {
	switch p := v.(type) {
	case *[]byte:
		return appendFlat(append(b, asFlat), *p)
	case *[]float32:
		return appendFlat(append(b, asFlat), *p)
	case *[]float64:
		return appendFlat(append(b, asFlat), *p)
	case *[]int32:
		return appendFlat(append(b, asFlat), *p)
	case *[]int64:
		return appendFlat(append(b, asFlat), *p)
	case *[][]byte:
		return appendRows(append(b, asRows), *p)
	case *[][]float32:
		return appendRows(append(b, asRows), *p)
	case *[][]float64:
		return appendRows(append(b, asRows), *p)
	case *[][]int32:
		return appendRows(append(b, asRows), *p)
	case *[][]int64:
		return appendRows(append(b, asRows), *p)
	}
	return n.rest.encode(append(b, asGob), v)
}

func (n numbers) decode(b []byte, v any) error {
	if len(b) == 0 {
		return errors.New("no value")
	}
	form, b := b[0], b[1:]
	if form == asGob {
		return n.rest.decode(b, v)
	}
	switch p := v.(type) {
	case *[]byte:
		return readFlat(form, b, p)
	case *[]float32:
		return readFlat(form, b, p)
	case *[]float64:
		return readFlat(form, b, p)
	case *[]int32:
		return readFlat(form, b, p)
	case *[]int64:
		return readFlat(form, b, p)
	case *[][]byte:
		return readRows(form, b, p)
	case *[][]float32:
		return readRows(form, b, p)
	case *[][]float64:
		return readRows(form, b, p)
	case *[][]int32:
		return readRows(form, b, p)
	case *[][]int64:
		return readRows(form, b, p)
	}
	return fmt.Errorf("value of form %q for a %T", form, v)
}

// A count is written plus one, so that 0 is the nil slice.
func appendCount[T any](b []byte, s []T) []byte {
	if s == nil {
		return append(b, 0)
	}
	return binary.AppendUvarint(b, uint64(len(s))+1)
}

func takeCount(b []byte) (n int, isNil bool, rest []byte, err error) {
	u, k := binary.Uvarint(b)
	if k <= 0 || u > 1<<40 {
		return 0, false, nil, errors.New("bad count")
	}
	if u == 0 {
		return 0, true, b[k:], nil
	}
	return int(u - 1), false, b[k:], nil
}

func appendFlat[T number](b []byte, s []T) ([]byte, error) {
	b = appendCount(b, s)
	if raw, ok := any(s).([]byte); ok {
		return append(b, raw...), nil
	}
	return binary.Append(b, binary.LittleEndian, s)
}

func appendRows[T number](b []byte, rows [][]T) ([]byte, error) {
	b = appendCount(b, rows)
	var err error
	for _, r := range rows {
		if b, err = appendFlat(b, r); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// takeFlat reads one slice from b, into the front of room when that is large enough.
func takeFlat[T number](b []byte, room []T) (s []T, rest []byte, err error) {
	n, isNil, b, err := takeCount(b)
	if err != nil || isNil {
		return nil, b, err
	}
	size := binary.Size(*new(T))
	if n > len(b)/size {
		return nil, nil, fmt.Errorf("%d elements of %d bytes in %d bytes", n, size, len(b))
	}
	if n > 0 && n <= len(room) {
		s = room[:n:n]
	} else {
		s = make([]T, n)
	}
	if n > 0 {
		if _, err := binary.Decode(b[:n*size], binary.LittleEndian, s); err != nil {
			return nil, nil, err
		}
	}
	return s, b[n*size:], nil
}

func readFlat[T number](form byte, b []byte, p *[]T) error {
	if form != asFlat {
		return fmt.Errorf("value of form %q for a %T", form, *p)
	}
	s, rest, err := takeFlat[T](b, nil)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes too many", len(rest))
	}
	*p = s
	return nil
}

func readRows[T number](form byte, b []byte, p *[][]T) error {
	if form != asRows {
		return fmt.Errorf("value of form %q for a %T", form, *p)
	}
	n, isNil, b, err := takeCount(b)
	if err != nil {
		return err
	}
	if n > len(b) { // each row has a count of at least a byte
		return fmt.Errorf("%d rows in %d bytes", n, len(b))
	}
	var rows [][]T
	if !isNil {
		rows = make([][]T, n)
	}
	room := make([]T, len(b)/binary.Size(*new(T))) // one allocation for all rows
	for i := range rows {
		if rows[i], b, err = takeFlat(b, room); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		room = room[len(rows[i]):]
	}
	if len(b) != 0 {
		return fmt.Errorf("%d bytes too many", len(b))
	}
	*p = rows
	return nil
}

// gobs is encoding/gob, one stream per value.
type gobs struct{}

func (gobs) encode(b []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	if err := gob.NewEncoder(buf).Encode(v); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func (gobs) decode(b []byte, v any) error {
	return gob.NewDecoder(bytes.NewReader(b)).Decode(v)
}

// Floats are float32 values that travel as raw bytes wherever they stand in a value; gob alone would write every
// element as a number of variable length.
type Floats []float32

// MarshalBinary writes the values as little-endian float32.
func (f Floats) MarshalBinary() ([]byte, error) { return appendFlat(nil, []float32(f)) }

// UnmarshalBinary reads what MarshalBinary writes.
func (f *Floats) UnmarshalBinary(b []byte) error { return readFlat(asFlat, b, (*[]float32)(f)) }
