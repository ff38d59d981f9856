package tensor

import "fmt"

// Role says how a model uses a tensor, which is all that the store and the kernels need to know of an architecture:
// it decides how the tensor may be re-ordered for compute. The importer knows it and writes it at put.
type Role uint8

// The roles. The numbers are part of the table format: append only.
const (
	Other        Role = 0 // biases, norms, buffers: stays as it is
	Linear       Role = 1 // [N,K], y = x W^T: PyTorch's nn.Linear
	LinearT      Role = 2 // [K,N], y = x W: GPT-2's Conv1D, ONNX MatMul
	Conv         Role = 3 // convolution kernels
	Lookup       Role = 4 // rows are gathered by index: embeddings
	LookupLinear Role = 5 // a tied embedding: gathered and multiplied
)

var roles = [...]string{"other", "linear", "linearT", "conv", "lookup", "lookup+linear"}

func (r Role) String() string {
	if int(r) >= len(roles) {
		return fmt.Sprintf("role(%d)", uint8(r))
	}
	return roles[r]
}

// ParseRole reads what String writes.
func ParseRole(s string) (Role, error) {
	for i, n := range roles {
		if n == s {
			return Role(i), nil
		}
	}
	return 0, fmt.Errorf("unknown role %q", s)
}

// Merge is the role of a tensor that is used in both ways, as tied weights are. A lookup that is also multiplied is
// LookupLinear; anything beside Other is that thing; two different layouts of one tensor have no common role, and ok is false.
func (r Role) Merge(o Role) (merged Role, ok bool) {
	if r == o {
		return r, true
	}
	if r > o {
		r, o = o, r
	}
	switch {
	case r == Other:
		return o, true
	case r == Linear && (o == Lookup || o == LookupLinear), r == Lookup && o == LookupLinear:
		return LookupLinear, true
	}
	return 0, false
}
