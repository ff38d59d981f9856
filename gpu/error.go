package gpu

import (
	"errors"
	"fmt"
	"strings"

	"github.com/zcstore/zcstore/shm/tensor"
)

// The kinds of an [OpError], for errors.Is.
var (
	ErrShape       = errors.New("shapes do not fit")
	ErrUnsupported = errors.New("not supported")
	ErrDevice      = errors.New("operand is on another device")
	ErrAlias       = errors.New("operands overlap")
	ErrIndex       = errors.New("index out of range")
	ErrMemory      = errors.New("out of device memory")
)

// OpError says that an op refused its operands, before anything ran; only ErrIndex comes from a running op.
type OpError struct {
	Op       string // "linear"
	Kind     error  // one of the kinds above; errors.Is finds it
	Reason   string // what is wrong: "x has 5 columns, the weights take 4"
	Operands []Operand
}

// Operand is one operand of a refused op.
type Operand struct {
	Name  string // "dst", "x", "weight 0"
	Shape tensor.Shape
	DType tensor.DType
}

func (o Operand) String() string {
	if o.DType == tensor.Invalid {
		return o.Name + " " + o.Shape.String()
	}
	return fmt.Sprintf("%s %v %v", o.Name, o.DType, o.Shape)
}

func (e *OpError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v: %s", e.Op, e.Kind, e.Reason)
	for i, o := range e.Operands {
		b.WriteString([2]string{", ", " ("}[boolInt(i == 0)])
		b.WriteString(o.String())
	}
	if len(e.Operands) > 0 {
		b.WriteByte(')')
	}
	return b.String()
}

// ErrorKind is the kind in the words of proto/zcerr.
func (e *OpError) ErrorKind() string {
	if e.Kind == ErrUnsupported {
		return "unsupported"
	}
	return "invalid"
}

// Unwrap gives the kind.
func (e *OpError) Unwrap() error { return e.Kind }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (m Matrix) operand(name string) Operand { return Operand{name, m.Shape(), m.DType} }
