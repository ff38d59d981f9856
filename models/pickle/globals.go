package pickle

import (
	"fmt"

	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// GlobalError is a name in a pickle that is not on the list of those that build tensors. It was not called.
type GlobalError struct{ Module, Name string }

func (e *GlobalError) Error() string {
	return fmt.Sprintf("the pickle names %s.%s, which builds no tensor and is not run", e.Module, e.Name)
}

// ErrorKind is the kind of zcerr.Unsupported.
func (e *GlobalError) ErrorKind() string { return "unsupported" }

// saveHint says how to make a file that is read.
const saveHint = `save only the tensors: torch.save(model.state_dict(), FILE), or model.save_pretrained(DIR) for safetensors`

// storages are the classes of torch that name an element type.
var storages = map[string]tensor.DType{
	"DoubleStorage": tensor.F64, "FloatStorage": tensor.F32, "HalfStorage": tensor.F16, "BFloat16Storage": tensor.BF16,
	"LongStorage": tensor.I64, "IntStorage": tensor.I32, "ShortStorage": tensor.I16, "CharStorage": tensor.I8,
	"ByteStorage": tensor.U8, "BoolStorage": tensor.BOOL, "ComplexFloatStorage": tensor.C64,
}

// untyped is the storage of tensors that say their element type themselves.
const untyped = "UntypedStorage"

// dtypes are the names of element types in torch.
var dtypes = map[string]tensor.DType{
	"float64": tensor.F64, "float32": tensor.F32, "float16": tensor.F16, "bfloat16": tensor.BF16,
	"int64": tensor.I64, "int32": tensor.I32, "int16": tensor.I16, "int8": tensor.I8,
	"uint64": tensor.U64, "uint32": tensor.U32, "uint16": tensor.U16, "uint8": tensor.U8,
	"bool": tensor.BOOL, "complex64": tensor.C64, "float8_e4m3fn": tensor.F8E4M3, "float8_e5m2": tensor.F8E5M2,
}

// known is the list of what a pickle may name.
func known(g global) bool {
	switch g.module {
	case "torch":
		_, isStorage := storages[g.name]
		_, isType := dtypes[g.name]
		return isStorage || isType || g.name == "Size"
	case "torch.storage":
		return g.name == untyped
	case "torch._utils":
		switch g.name {
		case "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter":
			return true
		}
	case "collections":
		return g.name == "OrderedDict" || g.name == "Counter"
	}
	return false
}

// call is what a known function makes of its arguments.
func call(f global, args tuple) (any, error) {
	switch f.name {
	case "OrderedDict", "Counter":
		return &dict{}, nil
	case "Size":
		if len(args) == 1 {
			return args[0], nil
		}
	case "_rebuild_parameter":
		if len(args) > 0 {
			return args[0], nil
		}
	case "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3":
		return rebuild(f.name, args)
	}
	return none{}, damaged("%s.%s is called with %d arguments", f.module, f.name, len(args))
}

// rebuild notes a tensor: (storage, offset, size, stride, ...), offset and stride in elements.
func rebuild(name string, args tuple) (any, error) {
	if len(args) < 4 {
		return none{}, damaged("%s is called with %d arguments", name, len(args))
	}
	s, ok := args[0].(storage)
	offset, okOffset := args[1].(int64)
	size, okSize := ints(args[2])
	stride, okStride := ints(args[3])
	if !ok || !okOffset || !okSize || !okStride || len(size) != len(stride) || len(size) > tensor.MaxRank {
		return none{}, damaged("%s is called with (%s, %s, %s, %s)", name, describe(args[0]), describe(args[1]), describe(args[2]), describe(args[3]))
	}
	dtype, ok := storages[s.kind]
	if name == "_rebuild_tensor_v3" {
		if len(args) < 7 {
			return none{}, damaged("%s is called with %d arguments", name, len(args))
		}
		g, _ := args[6].(global)
		dtype, ok = dtypes[g.name]
	}
	if !ok {
		return none{}, zcerr.New(zcerr.Unsupported, "a tensor on a torch.%s without an element type is not supported", s.kind)
	}
	return &Tensor{DType: dtype, Shape: size, storage: s, offset: offset, strides: stride}, nil
}

func ints(v any) (tensor.Shape, bool) {
	t, ok := v.(tuple)
	if l, isList := v.(*list); isList {
		t, ok = l.items, true
	}
	out := make(tensor.Shape, len(t))
	for i := range t {
		n, isInt := t[i].(int64)
		ok = ok && isInt
		out[i] = int(n)
	}
	return out, ok
}

// persistent is a storage: ("storage", class, key, location, elements), and in the stream layout a view, which is None.
func persistent(v any) (any, error) {
	t, _ := v.(tuple)
	if len(t) < 5 {
		return none{}, damaged("a storage is described by a %s of %d", describe(v), len(t))
	}
	tag, _ := t[0].(string)
	class, _ := t[1].(global)
	key, _ := t[2].(string)
	n, ok := t[4].(int64)
	if tag != "storage" || key == "" || !ok || n < 0 {
		return none{}, damaged("a storage is described by (%s, %s, %s, ...)", describe(t[0]), describe(t[1]), describe(t[2]))
	}
	if len(t) > 5 && t[5] != (none{}) {
		return none{}, zcerr.New(zcerr.Unsupported, "storage %q is a part of another one, as very old files have it", key).WithHint(convertHint)
	}
	return storage{key: key, kind: class.name, length: n}, nil
}

// convertHint says how to make an old file new.
const convertHint = `convert it: python -c "import torch; torch.save(torch.load('FILE', weights_only=True, map_location='cpu'), 'NEW')"`
