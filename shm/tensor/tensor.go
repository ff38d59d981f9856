// Package tensor is the vocabulary of the project: what a tensor is when it is only bytes.
//
// A [View] names a dtype, a shape and the bytes that hold the elements. It is pure data: it owns nothing,
// makes no system call and can describe bytes on the heap as well as bytes in a shared segment. Elements are
// little-endian, row-major and contiguous, as the safetensors format has them.
//
// Views are values and safe for concurrent reading. How long the bytes live is said by whoever made the view.
package tensor

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// DType is an element type. The zero value is invalid, so that a forgotten dtype is an error.
type DType uint8

// The dtypes, spelled as safetensors spells them. The numbers are part of the table format: append only.
const (
	Invalid DType = 0
	F64     DType = 1
	F32     DType = 2
	F16     DType = 3
	BF16    DType = 4
	I64     DType = 5
	I32     DType = 6
	I16     DType = 7
	I8      DType = 8
	U64     DType = 9
	U32     DType = 10
	U16     DType = 11
	U8      DType = 12
	BOOL    DType = 13
	F8E4M3  DType = 14
	F8E5M2  DType = 15
	C64     DType = 16
)

var dtypes = [...]struct {
	name string
	size int
}{
	F64: {"F64", 8}, F32: {"F32", 4}, F16: {"F16", 2}, BF16: {"BF16", 2},
	I64: {"I64", 8}, I32: {"I32", 4}, I16: {"I16", 2}, I8: {"I8", 1},
	U64: {"U64", 8}, U32: {"U32", 4}, U16: {"U16", 2}, U8: {"U8", 1},
	BOOL: {"BOOL", 1}, F8E4M3: {"F8_E4M3", 1}, F8E5M2: {"F8_E5M2", 1}, C64: {"C64", 8},
}

// ParseDType reads a dtype as safetensors spells it: "F32", "BF16", "F8_E4M3". Case counts.
func ParseDType(s string) (DType, error) {
	for d := F64; int(d) < len(dtypes); d++ {
		if dtypes[d].name == s {
			return d, nil
		}
	}
	return Invalid, fmt.Errorf("unknown dtype %q (known: %s)", s, DTypes())
}

// DTypes lists the spellings ParseDType takes, for error messages.
func DTypes() string {
	names := make([]string, 0, len(dtypes)-1)
	for _, d := range dtypes[1:] {
		names = append(names, d.name)
	}
	return strings.Join(names, " ")
}

// Valid reports whether d is one of the dtypes above.
func (d DType) Valid() bool { return d != Invalid && int(d) < len(dtypes) }

// Size is the size of one element in bytes, 0 for an invalid dtype.
func (d DType) Size() int {
	if !d.Valid() {
		return 0
	}
	return dtypes[d].size
}

func (d DType) String() string {
	if !d.Valid() {
		return "dtype(" + strconv.Itoa(int(d)) + ")"
	}
	return dtypes[d].name
}

// MaxRank is the largest rank the store takes.
const MaxRank = 64

// Shape is a list of dimensions, outermost first. An empty shape is a scalar: one element.
type Shape []int

// Elements is the product of the dimensions. ok is false when a dimension is negative or the product overflows.
func (s Shape) Elements() (n int, ok bool) {
	p := uint64(1)
	zero := false
	for _, d := range s {
		if d < 0 {
			return 0, false
		}
		if d == 0 {
			zero = true
			continue
		}
		hi, lo := bits.Mul64(p, uint64(d))
		if hi != 0 || lo > 1<<62 {
			return 0, false
		}
		p = lo
	}
	if zero {
		return 0, true
	}
	return int(p), true
}

// Equal reports whether both shapes have the same rank and dimensions.
func (s Shape) Equal(o Shape) bool {
	if len(s) != len(o) {
		return false
	}
	for i := range s {
		if s[i] != o[i] {
			return false
		}
	}
	return true
}

// Fits reports whether s is the shape wanted, where -1 in want takes any size.
func (s Shape) Fits(want Shape) bool {
	if len(s) != len(want) {
		return false
	}
	for i := range s {
		if want[i] >= 0 && s[i] != want[i] {
			return false
		}
	}
	return true
}

// String writes a shape as [2,3].
func (s Shape) String() string {
	b := []byte{'['}
	for i, d := range s {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(d), 10)
	}
	return string(append(b, ']'))
}

// SizeBytes is the number of bytes a tensor of this dtype and shape holds. The error says which of the two is wrong.
func SizeBytes(d DType, s Shape) (int, error) {
	if !d.Valid() {
		return 0, fmt.Errorf("invalid %v", d)
	}
	if len(s) > MaxRank {
		return 0, fmt.Errorf("rank %d is over the limit of %d", len(s), MaxRank)
	}
	n, ok := s.Elements()
	if !ok {
		return 0, fmt.Errorf("shape %v has a negative dimension or overflows", s)
	}
	hi, lo := bits.Mul64(uint64(n), uint64(d.Size()))
	if hi != 0 || lo > 1<<62 {
		return 0, fmt.Errorf("shape %v of %v overflows", s, d)
	}
	return int(lo), nil
}

// View is a tensor in somebody's memory: len(Data) is exactly the size that DType and Shape ask for.
type View struct {
	DType DType
	Shape Shape
	Data  []byte // row-major, little-endian; read-only unless its owner says otherwise

	Packed *Packed // the same tensor as a device wants it, where somebody made that; nil: there is only Data
}

// Packed is a weight in another order, or rounded: what models/derive made of a tensor. It lives as long as the plain bytes.
type Packed struct {
	Layout  string // of the bytes: "p16-f32"
	Version int    // of the layout
	DType   DType
	Shape   Shape
	Data    []byte
}

// New checks that data has the size of the dtype and shape and returns the view on it. It does not copy.
func New(d DType, s Shape, data []byte) (View, error) {
	want, err := SizeBytes(d, s)
	if err != nil {
		return View{}, err
	}
	if want != len(data) {
		return View{}, fmt.Errorf("%v %v needs %d bytes, got %d", d, s, want, len(data))
	}
	return View{DType: d, Shape: s, Data: data}, nil
}

// Elements is the number of elements.
func (v View) Elements() int { n, _ := v.Shape.Elements(); return n }
