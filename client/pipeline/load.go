package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/table"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// LoadOptions are the choices of a load. The zero value is the default.
type LoadOptions struct {
	Device   gpu.Device            // where the models compute; nil: the CPU, in place on the shared pages
	Prefault client.PrefaultPolicy // when the pages are mapped in; zero: $ZCSTORE_PREFAULT, else by their first use
	Form     string                // of the weights, see client.Form; empty: $ZCSTORE_FORM, else the tag's default, else plain
}

// Load attaches a version and fills the value that into points at: its models on shared memory, everything else copied. The
// models compute until the returned model is closed, or its client: closing waits for Forward calls that run, and those that
// come later are errors of kind Canceled. Errors: Invalid names the path, what the value wants and what is stored; NotFound,
// Corrupt, Unavailable, Fault as for client.Attach; Unsupported for a kind that this program does not know.
func Load(ctx context.Context, c *client.Client, ref string, into any, opt LoadOptions) (*client.Model, error) {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return nil, zcerr.Wrap("load", ref, zcerr.New(zcerr.Invalid, "load into a pointer to a pipeline, not into a %T", into))
	}
	m, err := c.Attach(ctx, ref, client.Prefault(opt.Prefault), client.Form(opt.Form), client.Tokenizers())
	if err != nil {
		return nil, err
	}
	fresh := reflect.New(v.Type().Elem()) // into stays as it is when anything fails
	l := loader{m: m, opt: opt, built: map[string]models.Module{}}
	if err := m.Read(func() error { return l.root(fresh) }); err != nil {
		_ = m.Close()
		return nil, zcerr.Wrap("load", ref, err)
	}
	v.Elem().Set(fresh.Elem())
	return m, nil
}

// Build gives the module at the root of an attached version, in the form that it was attached in. Errors as for Load.
func Build(m *client.Model, opt LoadOptions) (mod models.Module, err error) {
	err = m.Read(func() error {
		mod, err = build(m, opt)
		return err
	})
	return mod, err
}

func build(m *client.Model, opt LoadOptions) (models.Module, error) {
	root := m.Table().Root()
	if root.Kind() != manifest.Module {
		return nil, zcerr.Wrap("load", m.Ref(), zcerr.New(zcerr.Invalid, "it is a %s, not one module", describe(root)).WithHint("load it with pipeline.Load into a value of its shape: zcctl show %s", m.Ref()))
	}
	l := loader{m: m, opt: opt, built: map[string]models.Module{}}
	mod, err := l.module(root, "")
	return mod, zcerr.Wrap("load", m.Ref(), err)
}

type loader struct {
	m       *client.Model
	opt     LoadOptions
	built   map[string]models.Module // by path
	modules map[string]table.Node    // by path; nil until the first ref
}

// root fills *dst, or, when dst itself is the module, replaces what it points at.
func (l *loader) root(dst reflect.Value) error {
	return l.fill(l.m.Table().Root(), dst.Elem(), "")
}

func (l *loader) mismatch(n table.Node, t reflect.Type, path string) error {
	return zcerr.New(zcerr.Invalid, "%s: the value wants a %v, stored is a %s", at(path), t, describe(n)).WithHint("zcctl show %s", l.m.Ref())
}

// describe names a node for errors.
func describe(n table.Node) string {
	switch n.Kind() {
	case manifest.Module:
		return "module " + n.Impl()
	case manifest.Dict:
		var keys []string
		for _, c := range n.Children() {
			keys = append(keys, c.Key())
		}
		what := n.Impl()
		if what == "" {
			what = "dict"
		}
		return fmt.Sprintf("%s with %s", what, strings.Join(keys[:min(len(keys), 10)], ", "))
	case manifest.List:
		return fmt.Sprintf("list of %d", len(n.Children()))
	case manifest.Value:
		if _, large := n.ValueRow(); large {
			return n.MediaType() + " value"
		}
		b := n.Value()
		return fmt.Sprintf("value %.40q", b[:min(len(b), 40)])
	}
	return n.Kind().String()
}

func (l *loader) fill(n table.Node, dst reflect.Value, path string) error {
	switch n.Kind() {
	case manifest.Module, manifest.Ref:
		return l.fillModule(n, dst, path)
	case manifest.Value:
		return l.fillValue(n, dst, path)
	}
	switch dst.Kind() {
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		if err := l.fill(n, p.Elem(), path); err != nil {
			return err
		}
		dst.Set(p)
		return nil
	case reflect.Interface:
		if dst.NumMethod() > 0 {
			return l.mismatch(n, dst.Type(), path)
		}
		var inner reflect.Value
		if n.Kind() == manifest.List {
			inner = reflect.New(reflect.TypeFor[[]any]()).Elem()
		} else {
			inner = reflect.New(reflect.TypeFor[map[string]any]()).Elem()
		}
		if err := l.fill(n, inner, path); err != nil {
			return err
		}
		dst.Set(inner)
		return nil
	}
	switch {
	case n.Kind() == manifest.Dict && dst.Kind() == reflect.Struct:
		return l.fillStruct(n, dst, path)
	case n.Kind() == manifest.Dict && dst.Kind() == reflect.Map && dst.Type().Key().Kind() == reflect.String:
		return l.fillMap(n, dst, path)
	case n.Kind() == manifest.List && (dst.Kind() == reflect.Slice || dst.Kind() == reflect.Array):
		return l.fillList(n, dst, path)
	}
	return l.mismatch(n, dst.Type(), path)
}

// fillStruct matches stored keys and fields by name. What is on one side only is an error.
func (l *loader) fillStruct(n table.Node, dst reflect.Value, path string) error {
	stored := map[string]table.Node{}
	var order []string
	for _, c := range n.Children() {
		stored[c.Key()] = c
		order = append(order, c.Key())
	}
	t := dst.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		key, use := fieldKey(f)
		if !use || !f.IsExported() {
			continue
		}
		kid, ok := stored[key]
		if !ok {
			if neverStored(f.Type) {
				continue
			}
			return zcerr.New(zcerr.Invalid, "%s: the value wants a %v, and nothing of that name is stored (stored are: %s)", manifest.Join(path, key), f.Type, strings.Join(order, ", ")).
				WithHint("zcctl show %s", l.m.Ref())
		}
		delete(stored, key)
		if err := l.fill(kid, dst.Field(i), manifest.Join(path, key)); err != nil {
			return err
		}
	}
	for _, key := range order {
		if kid, left := stored[key]; left {
			return zcerr.New(zcerr.Invalid, "%s: stored is a %s, and %v has no field for it", manifest.Join(path, key), describe(kid), t).WithHint("zcctl show %s", l.m.Ref())
		}
	}
	return nil
}

// neverStored reports whether Put skips values of this type, or may have skipped a nil one.
func neverStored(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.UnsafePointer, reflect.Complex64, reflect.Complex128:
		return true
	}
	return false
}

func (l *loader) fillMap(n table.Node, dst reflect.Value, path string) error {
	kids := n.Children()
	m := reflect.MakeMapWithSize(dst.Type(), len(kids))
	for _, c := range kids {
		item := reflect.New(dst.Type().Elem()).Elem()
		if err := l.fill(c, item, manifest.Join(path, c.Key())); err != nil {
			return err
		}
		m.SetMapIndex(reflect.ValueOf(c.Key()).Convert(dst.Type().Key()), item)
	}
	dst.Set(m)
	return nil
}

func (l *loader) fillList(n table.Node, dst reflect.Value, path string) error {
	kids := n.Children()
	if dst.Kind() == reflect.Slice {
		dst.Set(reflect.MakeSlice(dst.Type(), len(kids), len(kids)))
	} else if dst.Len() != len(kids) {
		return l.mismatch(n, dst.Type(), path)
	}
	for i, c := range kids {
		if err := l.fill(c, dst.Index(i), manifest.Join(path, c.Key())); err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) fillValue(n table.Node, dst reflect.Value, path string) error {
	value, err := l.m.Value(n)
	if err != nil {
		return err
	}
	if n.MediaType() != jsonMedia {
		if b, ok := dst.Addr().Interface().(*[]byte); ok { // a file of an imported directory
			*b = append([]byte(nil), value...)
			return nil
		}
		return l.mismatch(n, dst.Type(), path)
	}
	if t := dst.Type(); t == viewType || t.Implements(moduleType) || reflect.PointerTo(t).Implements(moduleType) {
		return l.mismatch(n, t, path)
	}
	dec := json.NewDecoder(bytes.NewReader(value))
	dec.DisallowUnknownFields()
	if err := dec.Decode(dst.Addr().Interface()); err != nil {
		return zcerr.New(zcerr.Invalid, "%s: the value wants a %v, stored is a %s: %w", at(path), dst.Type(), describe(n), err).WithHint("zcctl show %s", l.m.Ref())
	}
	return nil
}

func (l *loader) fillModule(n table.Node, dst reflect.Value, path string) error {
	if dst.Type() == viewType {
		if n.Impl() != viewKind {
			return l.mismatch(n, dst.Type(), path)
		}
		s := source{l: l, n: n, path: path}
		v, _, err := s.Tensor("data", nil)
		if err != nil {
			return err
		}
		dst.Set(reflect.ValueOf(v))
		return nil
	}
	mod, err := l.module(n, path)
	if err != nil {
		return err
	}
	got := reflect.ValueOf(mod)
	switch {
	case got.Type().AssignableTo(dst.Type()):
		dst.Set(got)
	case got.Kind() == reflect.Pointer && got.Type().Elem() == dst.Type() && path == "":
		dst.Set(got.Elem()) // the pipeline itself is a module
	default:
		return l.mismatch(n, dst.Type(), path)
	}
	return nil
}

// module builds the module of a node, or finds the one a ref means.
func (l *loader) module(n table.Node, path string) (models.Module, error) {
	if n.Kind() == manifest.Ref {
		target, ok := l.find(n.Ref())
		if !ok {
			return nil, zcerr.New(zcerr.Corrupt, "%s: refers to %s, which is no module", at(path), n.Ref())
		}
		return l.module(target, n.Ref())
	}
	if mod := l.built[path]; mod != nil {
		return mod, nil
	}
	s := &source{l: l, n: n, path: path}
	mod, err := models.Build(n.Impl(), s)
	if s.err != nil {
		err = s.err
	}
	if err != nil {
		return nil, err
	}
	l.built[path] = mod
	return mod, nil
}

// find is the module at a path. The paths are listed when the first ref is met.
func (l *loader) find(path string) (table.Node, bool) {
	if l.modules == nil {
		l.modules = map[string]table.Node{}
		l.list(l.m.Table().Root(), "", 0)
	}
	n, ok := l.modules[path]
	return n, ok
}

func (l *loader) list(n table.Node, path string, depth int) {
	if n.Kind() == manifest.Module {
		l.modules[path] = n
	}
	if depth < manifest.MaxDepth {
		for _, c := range n.Children() {
			l.list(c, manifest.Join(path, c.Key()), depth+1)
		}
	}
}

// source is a stored module as its constructor sees it.
type source struct {
	l    *loader
	n    table.Node
	path string
	err  error // of Value, which has no room for one
}

func (s *source) Path() string { return at(s.path) }

func (s *source) Config(into any) error {
	if err := json.Unmarshal(s.n.Config(), into); err != nil {
		return zcerr.New(zcerr.Invalid, "%s: config of %s: %w", s.Path(), s.n.Impl(), err)
	}
	return nil
}

func (s *source) Has(name string) bool { _, ok := s.n.Find(name); return ok }

func (s *source) Names() []string {
	names := make([]string, 0, s.n.Params())
	for i := range s.n.Params() {
		if name, _, err := s.n.Param(i); err == nil {
			names = append(names, name)
		}
	}
	return names
}

func (s *source) Tensor(name string, want tensor.Shape) (tensor.View, tensor.Role, error) {
	row, ok := s.n.Find(name)
	if !ok {
		return tensor.View{}, 0, zcerr.New(zcerr.Invalid, "%s: %s wants tensor %s %v, and none of that name is stored (stored are: %s)",
			s.Path(), s.n.Impl(), name, want, some(s.Names())).WithHint("zcctl show %s", s.l.m.Ref())
	}
	v, r, err := s.l.m.Tensor(row)
	if err != nil {
		return tensor.View{}, 0, err
	}
	if want != nil && !v.Shape.Fits(want) {
		return tensor.View{}, 0, zcerr.New(zcerr.Invalid, "%s: %s wants tensor %s %v, stored is %v %v", s.Path(), s.n.Impl(), name, want, v.DType, v.Shape).
			WithHint("the config and the weights are of different models: zcctl show %s", s.l.m.Ref())
	}
	return v, r.Role, nil
}

func some(names []string) string {
	if len(names) > 10 {
		return strings.Join(names[:10], ", ") + fmt.Sprintf(" and %d more", len(names)-10)
	}
	return strings.Join(names, ", ")
}

func (s *source) ChildNames() []string {
	var names []string
	for _, c := range s.n.Children() {
		if k := c.Kind(); k == manifest.Module || k == manifest.Ref {
			names = append(names, c.Key())
		}
	}
	return names
}

func (s *source) Child(name string) (models.Module, error) {
	c, ok := s.n.Child(name)
	if !ok {
		return nil, zcerr.New(zcerr.Invalid, "%s: %s wants a child %s (stored are: %s)", s.Path(), s.n.Impl(), name, some(s.ChildNames()))
	}
	if k := c.Kind(); k != manifest.Module && k != manifest.Ref {
		return nil, zcerr.New(zcerr.Invalid, "%s: child %s is a %s", s.Path(), name, describe(c))
	}
	return s.l.module(c, manifest.Join(s.path, name))
}

func (s *source) Value(name string) ([]byte, bool) {
	c, ok := s.n.Child(name)
	if !ok || c.Kind() != manifest.Value {
		return nil, false
	}
	b, err := s.l.m.Value(c)
	if err != nil {
		s.err = err
		return nil, false
	}
	return b, true
}

func (s *source) Tables(name string) ([]byte, error) {
	c, ok := s.n.Child(name)
	if !ok || c.Kind() != manifest.Value {
		return nil, nil
	}
	return s.l.m.TokenizerTables(c)
}

func (s *source) Device() gpu.Device { return s.l.opt.Device }
