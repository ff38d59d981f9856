// Package pack turns weights into the order that kernels read them in, and back.
//
// # The layout p16
//
// A weight of N outputs and K inputs becomes ceil(N/16) panels of 16 outputs each. Inside a panel the inputs come one after
// the other, and for each the 16 outputs lie side by side: [ceil(N/16), K, 16], a line of 64 bytes for each input in F32.
// Outputs past N are zero; how many there are is recorded, and their being zero is checked on the way back. No instruction
// set is in this: AVX-512 reads a line as one register, AVX2 as two, NEON as four.
//
// Functions here are pure: no memory but what is given, the same bytes on every machine. The store makes panels with them,
// tests make what kernels are checked with. F32 panels turn back into the plain bytes exactly, NaN payloads included.
package pack

import (
	"fmt"
	"math"

	"github.com/zcstore/zcstore/shm/tensor"
)

// Lanes is the number of outputs of a panel.
const Lanes = 16

// Name and Version name the layout where it is recorded. The version changes when the same weight would get other bytes.
const (
	Name    = "p16"
	Version = 1
)

// P16 is the size of a packed weight.
type P16 struct {
	N, K int // logical
	PadN int // outputs of zeros in the last panel, 0 to 15
}

// Error is a weight that cannot be packed, or bytes that are no packed weight.
type Error struct{ Reason string }

// ErrorKind is the kind in the words of proto/zcerr.
func (e *Error) ErrorKind() string { return "invalid" }

func (e *Error) Error() string { return "pack: " + e.Reason }

func refuse(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Of is the packed size of a tensor of that role and shape: [N, K], or [K, N] for tensor.LinearT.
func Of(role tensor.Role, shape tensor.Shape) (P16, error) {
	switch role {
	case tensor.Linear, tensor.LookupLinear, tensor.LinearT:
	default:
		return P16{}, refuse("a weight of role %v is not multiplied", role)
	}
	if len(shape) != 2 || shape[0] < 0 || shape[1] < 0 {
		return P16{}, refuse("shape %v is not two-dimensional", shape)
	}
	p := P16{N: shape[0], K: shape[1]}
	if role == tensor.LinearT {
		p.N, p.K = p.K, p.N
	}
	if p.N > math.MaxInt-Lanes {
		return P16{}, refuse("%d outputs", p.N)
	}
	p.PadN = (Lanes - p.N%Lanes) % Lanes
	if p.K > 0 && p.N+p.PadN > math.MaxInt/4/p.K {
		return P16{}, refuse("%d by %d values", p.N, p.K)
	}
	return p, nil
}

// Shape is that of the packed tensor.
func (p P16) Shape() tensor.Shape { return tensor.Shape{(p.N + p.PadN) / Lanes, p.K, Lanes} }

// Len is the number of packed values.
func (p P16) Len() int { return (p.N + p.PadN) * p.K }

// at is the index of a value in plain order, of output n and input k.
func (p P16) at(role tensor.Role, n, k int) int {
	if role == tensor.LinearT {
		return k*p.N + n
	}
	return n*p.K + k
}

func (p P16) check(packed, plain int) error {
	if packed != p.Len() || plain != p.N*p.K {
		return refuse("%d packed and %d plain values, want %d and %d", packed, plain, p.Len(), p.N*p.K)
	}
	return nil
}

// Pack writes the panels of a weight in plain order to dst.
func (p P16) Pack(dst, plain []float32, role tensor.Role) error {
	if err := p.check(len(dst), len(plain)); err != nil {
		return err
	}
	for first := 0; first < p.N; first += Lanes {
		panel := dst[first*p.K:][:Lanes*p.K]
		for l := range Lanes {
			n := first + l
			if n >= p.N {
				for k := range p.K {
					panel[k*Lanes+l] = 0
				}
				continue
			}
			for k := range p.K {
				panel[k*Lanes+l] = plain[p.at(role, n, k)]
			}
		}
	}
	return nil
}

// Unpack writes the plain order of panels to dst. Padding that is not zero is an error.
func (p P16) Unpack(dst, packed []float32, role tensor.Role) error {
	if err := p.check(len(packed), len(dst)); err != nil {
		return err
	}
	for first := 0; first < p.N; first += Lanes {
		panel := packed[first*p.K:][:Lanes*p.K]
		for l := range Lanes {
			n := first + l
			for k := range p.K {
				v := panel[k*Lanes+l]
				switch {
				case n < p.N:
					dst[p.at(role, n, k)] = v
				case math.Float32bits(v) != 0:
					return refuse("the padding of panel %d holds %v for input %d", first/Lanes, v, k)
				}
			}
		}
	}
	return nil
}
