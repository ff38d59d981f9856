package tensor

import (
	"fmt"
	"unsafe"
)

// Why this is sound: the slice made here covers exactly the bytes of the one it is made from (length divided by the
// element size, refused when that leaves a rest), the address is checked for the element's alignment, float32 and
// int64 have no invalid bit patterns, and the result keeps the backing array alive because it points into it.
// The byte order is little-endian on every platform the project builds for (amd64, arm64).

// Float32s is the view as float32 values, sharing the bytes. It is an error when the dtype is not F32 or the
// bytes are not 4-byte aligned; segments always are.
func (v View) Float32s() ([]float32, error) { return cast[float32](v, F32) }

// Int64s is the view as int64 values, sharing the bytes. Errors as for Float32s.
func (v View) Int64s() ([]int64, error) { return cast[int64](v, I64) }

// Int32s is the view as int32 values, sharing the bytes. Errors as for Float32s.
func (v View) Int32s() ([]int32, error) { return cast[int32](v, I32) }

// Uint16s is an F16, BF16, U16 or I16 view as raw 16-bit patterns, sharing the bytes.
func (v View) Uint16s() ([]uint16, error) {
	switch v.DType {
	case F16, BF16, U16, I16:
		return cast[uint16](v, v.DType)
	}
	return nil, fmt.Errorf("tensor is %v, not a 16-bit dtype", v.DType)
}

// FromFloat32s is an F32 view on the values, sharing their memory.
func FromFloat32s(s Shape, vals []float32) (View, error) {
	return New(F32, s, bytesOf(vals))
}

// FromInt64s is an I64 view on the values, sharing their memory.
func FromInt64s(s Shape, vals []int64) (View, error) {
	return New(I64, s, bytesOf(vals))
}

func cast[T float32 | int64 | int32 | uint16](v View, want DType) ([]T, error) {
	if v.DType != want {
		return nil, fmt.Errorf("tensor is %v, not %v", v.DType, want)
	}
	var zero T
	size := int(unsafe.Sizeof(zero))
	if len(v.Data) == 0 {
		return nil, nil
	}
	if len(v.Data)%size != 0 {
		return nil, fmt.Errorf("%d bytes is no multiple of the %d bytes of %v", len(v.Data), size, want)
	}
	p := unsafe.Pointer(unsafe.SliceData(v.Data))
	if uintptr(p)%uintptr(size) != 0 {
		return nil, fmt.Errorf("%v data is not %d-byte aligned", want, size)
	}
	return unsafe.Slice((*T)(p), len(v.Data)/size), nil
}

func bytesOf[T float32 | int64](vals []T) []byte {
	if len(vals) == 0 {
		return nil
	}
	var zero T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(vals))), len(vals)*int(unsafe.Sizeof(zero)))
}
