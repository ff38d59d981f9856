package gpu

import (
	"fmt"
	"slices"

	"github.com/zcstore/zcstore/models/pack"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Weight is a stored tensor ready for compute. It is opaque: which bytes it has, and in which order, is known to the
// device that made it; no op takes raw panels. Immutable and safe for concurrent use.
type Weight struct {
	WeightInfo
	dev  Device
	data any
	gate *region.Gate // of the mapping it is in place on; nil: memory that does not go away
	rows *Weight      // what is looked up in, of a weight whose products have another form; nil: itself
}

// WeightInfo is what everybody may know of a weight.
type WeightInfo struct {
	Role   tensor.Role
	N, K   int          // logical: N outputs (or rows of a table) of K inputs; a vector has N = 1
	DType  tensor.DType // as stored
	Layout Layout
	PadN   int // rows and columns of zeros that the layout adds
	PadK   int
	Mode   Mode
}

// Layout names the order of a weight's bytes and the version of that order.
type Layout struct {
	Name    string // "plain"; "p16-bf16"
	Version int
}

// Plain is the order of the checkpoint.
var Plain = Layout{Name: "plain", Version: 1}

// Panels is the order of a packed form.
func Panels(f pack.Form) Layout { return Layout{Name: f.String(), Version: f.Version()} }

// PackedImporter is a device that computes on packed weights where they lie.
type PackedImporter interface {
	// ImportPacked makes a weight of n outputs and k inputs of its panels, laid out as layout says: what [pack.P16] makes. As
	// in Import the bytes live and stay as they are.
	ImportPacked(v tensor.View, layout Layout, n, k int) (*Weight, error)
}

// ImportForm is Import of a tensor whose packed form lies beside it: products are computed on that, and rows of a table are
// looked up in the plain bytes. A device that computes on packed weights begins its Import with it where v.Packed is set. A
// form that the device does not know is an error, and the plain bytes are not used in its place.
func ImportForm(dev Device, v tensor.View, role tensor.Role) (*Weight, error) {
	p := *v.Packed
	v.Packed = nil
	if role == tensor.Lookup || role == tensor.Other { // nothing is multiplied
		return dev.Import(v, role)
	}
	info, err := Describe(v, role)
	if err != nil {
		return nil, err
	}
	packed, ok := dev.(PackedImporter)
	if !ok {
		return nil, &OpError{Op: "import", Kind: ErrUnsupported, Reason: fmt.Sprintf("%s takes no packed weights (layout %s)", dev.Info().Name, p.Layout),
			Operands: []Operand{{role.String(), v.Shape, v.DType}}}
	}
	w, err := packed.ImportPacked(tensor.View{DType: p.DType, Shape: p.Shape, Data: p.Data}, Layout{p.Layout, p.Version}, info.N, info.K)
	if err != nil || role != tensor.LookupLinear {
		return w, err
	}
	w.Role = role
	w.rows, err = dev.Import(v, tensor.Lookup)
	return w, err
}

// Mode says how a device came to a weight.
type Mode string

// The modes.
const (
	ZeroCopy  Mode = "zero-copy"  // computes on the very bytes that were imported
	Staged    Mode = "staged"     // has a copy in device memory
	GPUShared Mode = "gpu-shared" // uses device memory that other processes use too
	Private   Mode = "private"    // has a copy of its own in this process, because Options.PackPrivately asked for it
)

// NewWeight is for backends: data is theirs, and comes back from [Weight.Data].
func NewWeight(dev Device, i WeightInfo, data any) *Weight {
	return &Weight{WeightInfo: i, dev: dev, data: data}
}

// InPlace says that the weight computes on the very bytes b. When they are a mapping that may be closed, the streams that use
// the weight hold it open from the first such op to Sync, and refuse the weight afterwards. It returns the weight.
func (w *Weight) InPlace(b []byte) *Weight {
	w.gate = region.GateOf(b)
	return w
}

// Device is the device that the weight is on.
func (w *Weight) Device() Device { return w.dev }

// Data is what the backend that made the weight keeps with it. Nobody else can use it.
func (w *Weight) Data() any { return w.data }

// Operand describes the weight in errors.
func (w *Weight) operand(name string) Operand {
	if w == nil {
		return Operand{Name: name}
	}
	return Operand{name, tensor.Shape{w.N, w.K}, w.DType}
}

// Describe checks that a tensor can be a weight of this role and gives its logical form. Every backend's Import starts
// with it. Linear, Lookup and both together are [N,K], LinearT is [K,N], anything else is a vector: its last dimension
// is K and the others together are N. Dtypes are F32, F16 and BF16.
func Describe(v tensor.View, role tensor.Role) (WeightInfo, error) {
	refuse := func(kind error, format string, args ...any) (WeightInfo, error) {
		return WeightInfo{}, &OpError{Op: "import", Kind: kind, Reason: fmt.Sprintf(format, args...),
			Operands: []Operand{{role.String(), v.Shape, v.DType}}}
	}
	switch v.DType {
	case tensor.F32, tensor.F16, tensor.BF16:
	default:
		return refuse(ErrUnsupported, "weights are F32, F16 or BF16")
	}
	size, err := tensor.SizeBytes(v.DType, v.Shape)
	if err != nil {
		return refuse(ErrShape, "%v", err)
	}
	if size != len(v.Data) {
		return refuse(ErrShape, "the view holds %d bytes, not %d", len(v.Data), size)
	}
	i := WeightInfo{Role: role, DType: v.DType, Layout: Plain}
	switch role {
	case tensor.Linear, tensor.LinearT, tensor.Lookup, tensor.LookupLinear:
		if len(v.Shape) != 2 {
			return refuse(ErrShape, "a %v weight has two dimensions", role)
		}
		i.N, i.K = v.Shape[0], v.Shape[1]
		if role == tensor.LinearT {
			i.N, i.K = i.K, i.N
		}
	case tensor.Other:
		i.N, i.K = 1, 1
		if n := len(v.Shape); n > 0 {
			i.K = v.Shape[n-1]
			i.N, _ = v.Shape[:n-1].Elements()
		}
	default:
		return refuse(ErrUnsupported, "no op takes weights of this role yet")
	}
	return i, nil
}

// DescribePacked is Describe for panels. Every ImportPacked starts with it.
func DescribePacked(v tensor.View, layout Layout, n, k int) (WeightInfo, error) {
	refuse := func(kind error, format string, args ...any) (WeightInfo, error) {
		return WeightInfo{}, &OpError{Op: "import", Kind: kind, Reason: fmt.Sprintf(format, args...),
			Operands: []Operand{{"packed weight", v.Shape, v.DType}}}
	}
	form, err := pack.ParseForm(layout.Name)
	if err != nil {
		return refuse(ErrUnsupported, "%v", err)
	}
	if layout.Version != form.Version() {
		return refuse(ErrUnsupported, "%v version %d, not %d", form, layout.Version, form.Version())
	}
	if v.DType != form.DType() {
		return refuse(ErrUnsupported, "panels of %v are %v", form, form.DType())
	}
	p, err := pack.Sized(form, n, k)
	if err != nil {
		return refuse(ErrShape, "%v", err)
	}
	if want := p.Shape(); !v.Shape.Equal(want) {
		return refuse(ErrShape, "a weight of [%d, %d] has panels of %v", n, k, want)
	}
	if p.Bytes() != len(v.Data) {
		return refuse(ErrShape, "the view holds %d bytes", len(v.Data))
	}
	return WeightInfo{Role: tensor.Linear, N: n, K: k, DType: v.DType, Layout: layout, PadN: p.PadN, PadK: p.PadK}, nil
}

// Group is weights that are multiplied as one, such as Q, K and V of a layer, without lying side by side: the columns
// of the result are those of the first weight, then those of the second, and so on. Immutable.
type Group struct {
	weights []*Weight
	biases  []*Weight // as many, entries may be nil
	gates   []*region.Gate
	n, k    int
}

// NewGroup joins weights of one device and the same K. biases is nil or as long as weights; an entry may be nil.
func NewGroup(weights, biases []*Weight) (*Group, error) {
	g := &Group{weights: append([]*Weight(nil), weights...), biases: make([]*Weight, len(weights))}
	refuse := func(kind error, reason string, ops ...Operand) (*Group, error) {
		return nil, &OpError{Op: "linear", Kind: kind, Reason: reason, Operands: ops}
	}
	if len(weights) == 0 {
		return refuse(ErrShape, "a group needs a weight")
	}
	if len(biases) != 0 && len(biases) != len(weights) {
		return refuse(ErrShape, fmt.Sprintf("%d biases for %d weights", len(biases), len(weights)))
	}
	copy(g.biases, biases)
	for i, w := range weights {
		name := fmt.Sprintf("weight %d", i)
		if w == nil {
			return refuse(ErrShape, name+" is nil")
		}
		switch w.Role {
		case tensor.Linear, tensor.LinearT, tensor.LookupLinear:
		default:
			return refuse(ErrUnsupported, "a weight of role "+w.Role.String()+" is not multiplied", w.operand(name))
		}
		if w.dev != weights[0].dev {
			return refuse(ErrDevice, "the weights are on different devices", w.operand(name))
		}
		if i == 0 {
			g.k = w.K
		}
		if w.K != g.k {
			return refuse(ErrShape, "the weights of a group take the same number of columns", weights[0].operand("weight 0"), w.operand(name))
		}
		if b := g.biases[i]; b != nil {
			if b.N != 1 || b.K != w.N || b.Role != tensor.Other {
				return refuse(ErrShape, "a bias has one element for each output", w.operand(name), b.operand("bias"))
			}
			if b.dev != w.dev {
				return refuse(ErrDevice, "the bias is on another device", b.operand("bias"))
			}
		}
		g.n += w.N
		g.gated(w)
		g.gated(g.biases[i])
	}
	return g, nil
}

// gated notes the gate of a weight, each gate once.
func (g *Group) gated(w *Weight) {
	if w != nil && w.gate != nil && !slices.Contains(g.gates, w.gate) {
		g.gates = append(g.gates, w.gate)
	}
}

// N is the number of outputs of all weights together.
func (g *Group) N() int { return g.n }

// K is the number of inputs.
func (g *Group) K() int { return g.k }

// Len is the number of weights.
func (g *Group) Len() int { return len(g.weights) }

// At is a weight and its bias, which may be nil.
func (g *Group) At(i int) (w, bias *Weight) { return g.weights[i], g.biases[i] }
