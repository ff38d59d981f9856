package pipeline

import (
	"bytes"
	"context"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strconv"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// DefaultMaxCopy is how large a plain field may be before Put asks whether it was meant to be a tensor.
const DefaultMaxCopy = 1 << 20

// PutOptions are the choices of a put. The zero value is the default.
type PutOptions struct {
	Replace  bool // let an explicit tag move to other bytes
	MaxCopy  int  // bytes of one plain field that each process may copy; 0: DefaultMaxCopy; negative: any
	Progress func(stage string, done, total int)
}

// Report says what became of every part of a pipeline.
type Report struct {
	Ref           string // name:tag
	Digest        manifest.Digest
	Existed       bool // the same digest was stored already
	SharedTensors int
	SharedBytes   int     // of all tensors, each once
	WrittenBytes  int     // by which the store grew; less than SharedBytes when versions share tensors
	Copied        []Field // plain values, copied into each process
	Skipped       []Field // left out, and why
}

// Field is one part of a pipeline in a report.
type Field struct {
	Path  string
	Type  string
	Bytes int    // as stored
	Why   string // for skipped ones
}

// Put stores the pipeline that p points at. Errors: Invalid names the field; others as for client.Put.
func Put(ctx context.Context, c *client.Client, ref string, p any, opt PutOptions) (*Report, error) {
	draft, report, err := Describe(p, opt)
	if err != nil {
		return nil, zcerr.Wrap("put", ref, err)
	}
	done, err := c.Put(ctx, ref, draft, client.PutOptions{Replace: opt.Replace, Progress: opt.Progress})
	if err != nil {
		return nil, err
	}
	report.Ref = done.Version.Name
	if len(done.Version.Tags) > 0 {
		report.Ref += ":" + done.Version.Tags[0]
	}
	report.Digest = client.Digest(done.Version.Digest)
	report.Existed = done.Existed
	report.SharedTensors = int(done.Version.Tensors)
	report.SharedBytes = int(done.Version.TensorBytes)
	report.WrittenBytes = int(done.WrittenBytes)
	return report, nil
}

// Describe walks a pipeline without storing it: the draft that a put would send, and the report so far.
func Describe(p any, opt PutOptions) (*manifest.Draft, *Report, error) {
	v := reflect.ValueOf(p)
	if !v.IsValid() || (v.Kind() == reflect.Pointer && v.IsNil()) {
		return nil, nil, zcerr.New(zcerr.Invalid, "there is nothing to put: the pipeline is nil")
	}
	w := walker{opt: opt, report: &Report{}, draft: &manifest.Draft{}, seen: map[models.Module]string{}, open: map[uintptr]bool{}}
	root, err := w.value(v, "")
	if err != nil {
		return nil, nil, err
	}
	if root == nil {
		return nil, nil, zcerr.New(zcerr.Invalid, "a %v cannot be stored", v.Type())
	}
	if len(w.draft.Tensors) == 0 {
		return nil, nil, zcerr.New(zcerr.Invalid, "the pipeline %v has no models in it, so nothing would be shared", v.Type()).
			WithHint("models are fields whose types implement models.Module, such as *nn.Sequential; unexported fields are not seen")
	}
	w.draft.Root = root
	return w.draft, w.report, nil
}

var (
	moduleType   = reflect.TypeFor[models.Module]()
	viewType     = reflect.TypeFor[tensor.View]()
	jsonType     = reflect.TypeFor[json.Marshaler]()
	textType     = reflect.TypeFor[encoding.TextMarshaler]()
	jsonReadType = reflect.TypeFor[json.Unmarshaler]()
	textReadType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// viewKind is the module kind of a bare tensor.View.
const viewKind = "tensor"

// kinds of Dict nodes.
const (
	dictStruct = "struct"
	dictMap    = "map"
)

// jsonMedia is the media type of copied fields.
const jsonMedia = "application/json"

// busy marks a module whose children are being walked. It is no path.
const busy = "\x00"

type walker struct {
	opt    PutOptions
	report *Report
	draft  *manifest.Draft
	seen   map[models.Module]string // path of the first
	open   map[uintptr]bool         // pointers being walked, against cycles
}

func at(path string) string {
	if path == "" {
		return "the pipeline"
	}
	return path
}

func (w *walker) skip(path string, t reflect.Type, why string) {
	w.report.Skipped = append(w.report.Skipped, Field{Path: at(path), Type: t.String(), Why: why})
}

// value is the node of v, or nil when v was skipped.
func (w *walker) value(v reflect.Value, path string) (*manifest.Node, error) {
	if m, ok := asModule(v); ok {
		if m == nil {
			w.skip(path, v.Type(), "nil")
			return nil, nil
		}
		return w.module(m, path)
	}
	if v.Type() == viewType {
		return w.view(v.Interface().(tensor.View), path)
	}
	switch v.Kind() {
	case reflect.Interface:
		if v.IsNil() {
			return w.plain(v, path)
		}
		return w.value(v.Elem(), path)
	case reflect.Pointer:
		return w.pointer(v, path)
	case reflect.Struct:
		if encodesItself(v.Type()) {
			return w.plain(v, path)
		}
		return w.structure(v, path)
	case reflect.Map:
		return w.mapping(v, path)
	case reflect.Slice, reflect.Array:
		return w.sequence(v, path)
	case reflect.Chan, reflect.Func, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128:
		if mayHoldTensor(v.Type(), nil) {
			return nil, zcerr.New(zcerr.Invalid, "%s: a %v may hold tensors and can be neither shared nor copied", at(path), v.Type()).WithHint("leave it out with a field tag `zcstore:\"-\"`")
		}
		w.skip(path, v.Type(), "a "+v.Kind().String()+" cannot be stored")
		return nil, nil
	}
	return w.plain(v, path)
}

// asModule finds a module in v. ok with a nil module means a nil pointer or interface of a module type.
func asModule(v reflect.Value) (models.Module, bool) {
	t := v.Type()
	if t.Implements(moduleType) {
		if (v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface) && v.IsNil() {
			return nil, true
		}
		m, ok := v.Interface().(models.Module)
		return m, ok
	}
	if v.CanAddr() && reflect.PointerTo(t).Implements(moduleType) {
		m, ok := v.Addr().Interface().(models.Module)
		return m, ok
	}
	return nil, false
}

func (w *walker) pointer(v reflect.Value, path string) (*manifest.Node, error) {
	if v.IsNil() {
		return w.plain(v, path)
	}
	p := v.Pointer()
	if w.open[p] {
		return nil, zcerr.New(zcerr.Invalid, "%s: the pipeline contains itself", at(path))
	}
	w.open[p] = true
	defer delete(w.open, p)
	if encodesItself(v.Type()) {
		return w.plain(v, path)
	}
	return w.value(v.Elem(), path)
}

func (w *walker) structure(v reflect.Value, path string) (*manifest.Node, error) {
	n := &manifest.Node{Kind: manifest.Dict, Impl: dictStruct}
	t := v.Type()
	for _, i := range fieldOrder(t) {
		f := t.Field(i)
		key, use := fieldKey(f)
		sub := manifest.Join(path, key)
		if !use {
			w.skip(sub, f.Type, "left out by its tag")
			continue
		}
		if !f.IsExported() {
			if holdsTensor(v.Field(i), nil) {
				return nil, zcerr.New(zcerr.Invalid, "%s: a %v holds tensors, and its field is not exported, so it can be neither shared nor restored", sub, f.Type).
					WithHint("export the field, or leave it out with a field tag `zcstore:\"-\"`")
			}
			w.skip(sub, f.Type, "not exported")
			continue
		}
		kid, err := w.value(v.Field(i), sub)
		if err != nil {
			return nil, err
		}
		if kid != nil {
			n.Items = append(n.Items, manifest.Item{Key: key, Node: kid})
		}
	}
	return n, nil
}

// fieldOrder lists the fields by the order of their keys, which is the order of the stored tree: a module that is met twice
// is stored where it comes first there.
func fieldOrder(t reflect.Type) []int {
	order := make([]int, t.NumField())
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool {
		ka, _ := fieldKey(t.Field(order[a]))
		kb, _ := fieldKey(t.Field(order[b]))
		return ka < kb
	})
	return order
}

// fieldKey is a field's name in the store; use is false when its tag leaves it out.
func fieldKey(f reflect.StructField) (key string, use bool) {
	switch tag := f.Tag.Get("zcstore"); tag {
	case "":
		return f.Name, true
	case "-":
		return f.Name, false
	default:
		return tag, true
	}
}

func (w *walker) mapping(v reflect.Value, path string) (*manifest.Node, error) {
	if v.IsNil() || !composite(v.Type().Elem()) {
		return w.plain(v, path)
	}
	if v.Type().Key().Kind() != reflect.String {
		if holdsTensor(v, nil) {
			return nil, zcerr.New(zcerr.Invalid, "%s: a %v holds tensors under keys that are no strings", at(path), v.Type()).WithHint("use a map with string keys")
		}
		return w.plain(v, path)
	}
	n := &manifest.Node{Kind: manifest.Dict, Impl: dictMap}
	keys := v.MapKeys()
	sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
	for _, k := range keys {
		kid, err := w.value(v.MapIndex(k), manifest.Join(path, k.String()))
		if err != nil {
			return nil, err
		}
		if kid != nil {
			n.Items = append(n.Items, manifest.Item{Key: k.String(), Node: kid})
		}
	}
	return n, nil
}

func (w *walker) sequence(v reflect.Value, path string) (*manifest.Node, error) {
	if (v.Kind() == reflect.Slice && v.IsNil()) || !composite(v.Type().Elem()) {
		return w.plain(v, path)
	}
	n := &manifest.Node{Kind: manifest.List}
	for i := range v.Len() {
		sub := manifest.Join(path, strconv.Itoa(i))
		kid, err := w.value(v.Index(i), sub)
		if err != nil {
			return nil, err
		}
		if kid == nil { // a hole would move the ones after it
			return nil, zcerr.New(zcerr.Invalid, "%s: a list cannot leave an item out (%s)", sub, w.report.Skipped[len(w.report.Skipped)-1].Why)
		}
		n.Items = append(n.Items, manifest.Item{Key: strconv.Itoa(i), Node: kid})
	}
	return n, nil
}

// composite reports whether values of the type are walked, not encoded as one JSON text: they may have modules or
// unexported fields inside.
func composite(t reflect.Type) bool {
	if t.Implements(moduleType) || reflect.PointerTo(t).Implements(moduleType) || t == viewType {
		return true
	}
	if encodesItself(t) {
		return false
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Interface, reflect.Chan, reflect.Func, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128:
		return true
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return composite(t.Elem())
	}
	return false
}

// encodesItself reports whether a type has its own JSON or text form, both ways.
func encodesItself(t reflect.Type) bool {
	if t.Kind() == reflect.Interface {
		return false
	}
	p := t
	if t.Kind() != reflect.Pointer {
		p = reflect.PointerTo(t)
	}
	return (p.Implements(jsonType) && p.Implements(jsonReadType)) || (p.Implements(textType) && p.Implements(textReadType))
}

// plain is a value that each process copies.
func (w *walker) plain(v reflect.Value, path string) (*manifest.Node, error) {
	b, err := json.Marshal(v.Interface())
	if err != nil {
		return nil, zcerr.New(zcerr.Invalid, "%s: a %v cannot be copied: %w", at(path), v.Type(), err).WithHint("leave it out with a field tag `zcstore:\"-\"`")
	}
	limit := w.opt.MaxCopy
	if limit == 0 {
		limit = DefaultMaxCopy
	}
	if limit > 0 && len(b) > limit {
		return nil, zcerr.New(zcerr.Invalid, "%s: a %v of %d bytes would be copied into each process", at(path), v.Type(), len(b)).
			WithHint("make it a tensor.View, which is shared, or allow the copy with PutOptions.MaxCopy")
	}
	w.report.Copied = append(w.report.Copied, Field{Path: at(path), Type: v.Type().String(), Bytes: len(b)})
	return &manifest.Node{Kind: manifest.Value, MediaType: jsonMedia, Value: b}, nil
}

// view is a bare tensor, stored as a module of its own.
func (w *walker) view(v tensor.View, path string) (*manifest.Node, error) {
	if !v.DType.Valid() {
		w.skip(path, viewType, "an empty view")
		return nil, nil
	}
	n := &manifest.Node{Kind: manifest.Module, Impl: viewKind, Config: json.RawMessage("{}")}
	return n, w.param(n, models.Param{Name: "data", Tensor: v}, path, at(path))
}

func (w *walker) module(m models.Module, path string) (*manifest.Node, error) {
	t := reflect.TypeOf(m)
	if !t.Comparable() {
		return nil, zcerr.New(zcerr.Invalid, "%s: modules are pointers, a %v is none", at(path), t)
	}
	// Pointers to types without fields may be equal by accident, and there is nothing to share in them.
	identified := t.Kind() != reflect.Pointer || t.Elem().Size() > 0
	if first, ok := w.seen[m]; ok && identified {
		if first == busy {
			return nil, zcerr.New(zcerr.Invalid, "%s: the module contains itself", at(path))
		}
		return &manifest.Node{Kind: manifest.Ref, Ref: first}, nil
	}
	w.seen[m] = busy
	spec := m.Spec()
	if spec.Kind == "" {
		return nil, zcerr.New(zcerr.Invalid, "%s: a %T gives no kind", at(path), m)
	}
	config := json.RawMessage("{}")
	if spec.Config != nil {
		b, err := json.Marshal(spec.Config)
		if err == nil {
			config, err = manifest.CanonicalJSON(b)
		}
		if err != nil {
			return nil, zcerr.New(zcerr.Invalid, "%s: config of %s: %w", at(path), spec.Kind, err)
		}
	}
	n := &manifest.Node{Kind: manifest.Module, Impl: spec.Kind, Config: config}
	for _, p := range spec.Params {
		if err := w.param(n, p, path, manifest.Join(path, p.Name)); err != nil {
			return nil, err
		}
	}
	for _, c := range spec.Children {
		kid, err := w.module(c.Module, manifest.Join(path, c.Name))
		if err != nil {
			return nil, err
		}
		n.Items = append(n.Items, manifest.Item{Key: c.Name, Node: kid})
	}
	for _, v := range spec.Values {
		n.Items = append(n.Items, manifest.Item{Key: v.Name, Node: &manifest.Node{Kind: manifest.Value, MediaType: v.MediaType, Value: append([]byte{}, v.Data...)}})
		w.report.Copied = append(w.report.Copied, Field{Path: manifest.Join(path, v.Name), Type: "[]byte", Bytes: len(v.Data)})
	}
	// After its children: a ref may only point at a module that is whole by then.
	w.seen[m] = path
	return n, nil
}

func (w *walker) param(n *manifest.Node, p models.Param, path, name string) error {
	want, err := tensor.SizeBytes(p.Tensor.DType, p.Tensor.Shape)
	if err == nil && want != len(p.Tensor.Data) {
		err = fmt.Errorf("%v %v needs %d bytes, there are %d", p.Tensor.DType, p.Tensor.Shape, want, len(p.Tensor.Data))
	}
	if err != nil {
		return zcerr.New(zcerr.Invalid, "%s: tensor %s: %w", at(path), p.Name, err)
	}
	n.Params = append(n.Params, manifest.Param{Name: p.Name, Tensor: len(w.draft.Tensors)})
	w.draft.Tensors = append(w.draft.Tensors, manifest.DraftTensor{
		Names: []string{name}, DType: p.Tensor.DType, Shape: p.Tensor.Shape, Role: p.Role, Data: bytes.NewReader(p.Tensor.Data),
	})
	return nil
}

// holdsTensor reports whether a value that is not walked has a module or a tensor in it.
func holdsTensor(v reflect.Value, seen map[reflect.Type]bool) bool {
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		if v.IsNil() {
			return false
		}
		return mayHoldTensor(v.Elem().Type(), seen) || mayHoldTensor(v.Type(), seen) || holdsTensor(v.Elem(), seen)
	case reflect.Map:
		if v.Len() == 0 {
			return false
		}
	case reflect.Slice:
		if v.Len() == 0 {
			return false
		}
		if v.Type().Elem().Kind() == reflect.Interface {
			for i := range v.Len() {
				if holdsTensor(v.Index(i), seen) {
					return true
				}
			}
		}
	}
	return mayHoldTensor(v.Type(), seen)
}

// mayHoldTensor reports whether values of a type can have a module or a tensor in them, as far as the type tells.
func mayHoldTensor(t reflect.Type, seen map[reflect.Type]bool) bool {
	if t == viewType || t.Implements(moduleType) && t != moduleType || t == moduleType || reflect.PointerTo(t).Implements(moduleType) {
		return true
	}
	if seen[t] {
		return false
	}
	if seen == nil {
		seen = map[reflect.Type]bool{}
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan:
		return mayHoldTensor(t.Elem(), seen)
	case reflect.Map:
		return mayHoldTensor(t.Elem(), seen) || mayHoldTensor(t.Key(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if mayHoldTensor(t.Field(i).Type, seen) {
				return true
			}
		}
	}
	return false
}
