// Package pack turns weights into the order that kernels read them in, and back.
//
// # The layout p16
//
// A weight of N outputs and K inputs becomes ceil(N/16) panels of 16 outputs each. A panel is lines of 64 bytes, four for
// each of its outputs, which lie side by side; the inputs come one line after the other:
//
//	p16-f32   F32  [ceil(N/16), K, 16]               a line is one input
//	p16-bf16  BF16 [ceil(N/16), ceil(K/2), 16, 2]    a line is two inputs
//	p16-int8  I8   [ceil(N/16), ceil(K/4)+2, 16, 4]  a line is four inputs; then come the scales and the sums
//
// Outputs past N and inputs past K are zero; how many there are is recorded, and their being zero is checked on the way back.
// No instruction set is in this: AVX-512 reads a line as one register, AVX2 as two, NEON as four; two or four inputs for
// each output are what their dot products of 16 and 8 bits take.
//
// # What a form keeps
//
// p16-f32 keeps every value, NaN payloads included, also those of F16 and BF16 weights. p16-bf16 rounds to nearest, ties to
// even. p16-int8 is w = scale q with one scale for each output, the largest magnitude over 127, and q rounded to nearest.
// The last two lines of its panels are the 16 scales (F32) and the 16 sums of q (I32), by which a kernel corrects for
// inputs whose zero is not 0: a panel is complete in itself. All numbers are little-endian.
//
// Functions here are pure: no memory but what is given, the same bytes on every machine, and nothing outside of the panels
// that were asked for is written. The store makes panels with them, tests make what kernels are checked with.
package pack

import (
	"fmt"
	"math"
	"strings"

	"github.com/zcstore/zcstore/shm/tensor"
)

// Lanes is the number of outputs of a panel.
const Lanes = 16

// lineBytes is the size of a line, in any form.
const lineBytes = 4 * Lanes

// MaxInt8Inputs is the K up to which a sum of products of 8 bits fits 32.
const MaxInt8Inputs = 1 << 16

// Form is how the values of a packed weight are written.
type Form uint8

// The forms.
const (
	F32 Form = iota + 1
	BF16
	Int8
)

// Forms are all forms.
var Forms = []Form{F32, BF16, Int8}

var forms = [...]struct {
	name    string
	version int // changes when the same weight would get other bytes
	dtype   tensor.DType
	per     int // inputs of a line
	extra   int // lines behind the inputs
}{
	F32:  {"p16-f32", 1, tensor.F32, 1, 0},
	BF16: {"p16-bf16", 1, tensor.BF16, 2, 0},
	Int8: {"p16-int8", 1, tensor.I8, 4, 2},
}

// String is the name of the recipe: "p16-bf16".
func (f Form) String() string {
	if !f.valid() {
		return fmt.Sprintf("form(%d)", uint8(f))
	}
	return forms[f].name
}

func (f Form) valid() bool { return f >= F32 && f <= Int8 }

// Version is that of the recipe. It is recorded with what was made by it.
func (f Form) Version() int { return forms[f].version }

// DType is that of the packed tensor.
func (f Form) DType() tensor.DType { return forms[f].dtype }

// Inputs is how many inputs a line holds for each output.
func (f Form) Inputs() int { return forms[f].per }

// ParseForm is the form of that name.
func ParseForm(name string) (Form, error) {
	var names []string
	for _, f := range Forms {
		if f.String() == name {
			return f, nil
		}
		names = append(names, f.String())
	}
	return 0, refuse("no form %q (there are: %s)", name, strings.Join(names, " "))
}

// P16 is a weight that can be packed: what it is, and the size that it gets.
type P16 struct {
	Form  Form
	DType tensor.DType // of the plain bytes: F32, F16 or BF16
	Role  tensor.Role
	N, K  int // logical
	PadN  int // outputs of zeros in the last panel, 0 to 15
	PadK  int // inputs of zeros in the last line, 0 to 3
}

// Error is a weight that cannot be packed, or bytes that are no packed weight.
type Error struct{ Reason string }

// ErrorKind is the kind in the words of proto/zcerr.
func (e *Error) ErrorKind() string { return "invalid" }

func (e *Error) Error() string { return "pack: " + e.Reason }

func refuse(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Of is the packed size of a tensor of that dtype, role and shape: [N, K], or [K, N] for tensor.LinearT.
func Of(form Form, dtype tensor.DType, role tensor.Role, shape tensor.Shape) (P16, error) {
	switch role {
	case tensor.Linear, tensor.LookupLinear, tensor.LinearT:
	default:
		return P16{}, refuse("a weight of role %v is not multiplied", role)
	}
	switch dtype {
	case tensor.F32, tensor.F16, tensor.BF16:
	default:
		return P16{}, refuse("a weight of %v is not packed: F32, F16 and BF16 are", dtype)
	}
	if len(shape) != 2 {
		return P16{}, refuse("shape %v is not two-dimensional", shape)
	}
	n, k := shape[0], shape[1]
	if role == tensor.LinearT {
		n, k = k, n
	}
	p, err := Sized(form, n, k)
	p.DType, p.Role = dtype, role
	return p, err
}

// Sized is the packed size of n outputs of k inputs, for who has the panels and not the plain weight. It neither packs nor
// unpacks.
func Sized(form Form, n, k int) (P16, error) {
	switch {
	case !form.valid():
		return P16{}, refuse("%v is none of the forms", form)
	case n < 0 || k < 0:
		return P16{}, refuse("a weight of %d by %d", n, k)
	case n > math.MaxInt-Lanes || k > math.MaxInt/lineBytes-4 || (k+4)*lineBytes > math.MaxInt/(n/Lanes+1):
		return P16{}, refuse("%d by %d values are too many", n, k)
	case form == Int8 && k > MaxInt8Inputs:
		return P16{}, refuse("%d inputs are too many for %v: their sum can exceed 32 bits from %d on", k, form, MaxInt8Inputs)
	}
	per := forms[form].per
	return P16{Form: form, N: n, K: k, PadN: (Lanes - n%Lanes) % Lanes, PadK: (per - k%per) % per}, nil
}

// Panels is the number of panels.
func (p P16) Panels() int { return (p.N + p.PadN) / Lanes }

// Lines is the number of lines of inputs in a panel, PanelBytes the size of a panel with what is behind them.
func (p P16) Lines() int { return (p.K + p.PadK) / forms[p.Form].per }

// PanelBytes is the distance from panel to panel.
func (p P16) PanelBytes() int { return (p.Lines() + forms[p.Form].extra) * lineBytes }

// Bytes is the size of the packed weight.
func (p P16) Bytes() int { return p.Panels() * p.PanelBytes() }

// PlainBytes is the size of the plain weight.
func (p P16) PlainBytes() int { return p.N * p.K * p.DType.Size() }

// Shape is that of the packed tensor, whose dtype is that of the form.
func (p P16) Shape() tensor.Shape {
	s := tensor.Shape{p.Panels(), p.PanelBytes() / lineBytes, Lanes}
	if per := forms[p.Form].per; per > 1 {
		s = append(s, per)
	}
	return s
}

// Exact reports whether Unpack gives the plain bytes back.
func (p P16) Exact() bool { return p.Form == F32 || p.Form == BF16 && p.DType == tensor.BF16 }

func (p P16) check(packed, want int, plain []byte) error {
	if p.DType == tensor.Invalid {
		return refuse("the plain weight is not known")
	}
	if packed != want || len(plain) != p.PlainBytes() {
		return refuse("%d packed and %d plain bytes, want %d and %d", packed, len(plain), want, p.PlainBytes())
	}
	return nil
}

// Pack writes the panels of a plain weight to dst. A weight that is not finite is an error in p16-int8.
func (p P16) Pack(dst, plain []byte) error { return p.PackPanels(dst, plain, 0, p.Panels()) }

// PackPanels writes the panels from one up to another to dst, which has room for these and no others, so that they can be
// made a few at a time, or by several cores. plain is whole.
func (p P16) PackPanels(dst, plain []byte, from, to int) error {
	if from < 0 || to > p.Panels() || from > to {
		return refuse("panels %d to %d of %d", from, to, p.Panels())
	}
	size := p.PanelBytes()
	if err := p.check(len(dst), (to-from)*size, plain); err != nil {
		return err
	}
	for i := from; i < to; i++ {
		s := source{P16: p, plain: plain, n: i * Lanes}
		panel := dst[(i-from)*size:][:size]
		switch p.Form {
		case F32:
			s.packF32(panel)
		case BF16:
			s.packBF16(panel)
		case Int8:
			if err := s.packInt8(panel); err != nil {
				return err
			}
		}
	}
	return nil
}

// Unpack writes the plain order of panels to dst. Padding that is not zero is an error, and so is a form that is not exact.
func (p P16) Unpack(dst, packed []byte) error {
	if err := p.check(len(packed), p.Bytes(), dst); err != nil {
		return err
	}
	if !p.Exact() {
		return refuse("%v does not keep every value of %v", p.Form, p.DType)
	}
	size := p.PanelBytes()
	for i := range p.Panels() {
		t := target{P16: p, plain: dst, n: i * Lanes}
		if err := t.unpack(packed[i*size : (i+1)*size]); err != nil {
			return err
		}
	}
	return nil
}
