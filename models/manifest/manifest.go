// Package manifest says what one stored version of a model is: a tree and its tensors, by content.
//
// A [Manifest] holds logical content only. Where bytes lie, how they are laid out for compute and which program made them
// are not part of it, so its digest changes exactly when the tree, a value or a tensor changes. [Manifest.Encode] is the
// canonical form, a JSON text with one spelling; its SHA-256 is the version's digest. [Decode] takes nothing else.
//
// A [Draft] is a manifest before its tensors were read: [Draft.Seal] hashes them, joins equal ones and gives the manifest.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/bits"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/zcstore/zcstore/shm/tensor"
)

// Format is the version of the canonical form. A manifest of another format is refused. In format 1 all values stood in it.
const Format = 2

// Limits of one version. A manifest over them is refused before anything is allocated for it.
const (
	MaxTensors    = 1 << 20
	MaxNodes      = 1 << 20
	MaxDepth      = 64
	MaxNameBytes  = 1 << 10
	MaxBytes      = 128 << 20 // canonical form
	MaxValueBytes = 64 << 20  // one value node
)

// RowValueBytes is the size from which the bytes of a value are a row among the tensors, U8 and one-dimensional, instead of
// standing in the tree: so versions share a tokenizer's file as they share weights. It is part of the canonical form.
const RowValueBytes = 64 << 10

// valueParam is what such a value calls its row.
const valueParam = "bytes"

// Digest is a SHA-256.
type Digest [sha256.Size]byte

// String writes a digest as "sha256:" and 64 hexadecimal digits.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// Short is the first twelve hexadecimal digits, for tables.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// Hex is the 64 digits alone, for file names.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// MarshalText writes what String does.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what String writes.
func (d *Digest) UnmarshalText(b []byte) error {
	p, err := ParseDigest(string(b))
	if err == nil {
		*d = p
	}
	return err
}

// ParseDigest reads what String writes.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) || strings.ToLower(h) != h {
		return d, fmt.Errorf("digest %s is not sha256: and 64 lower-case hexadecimal digits", quote(s))
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return Digest{}, fmt.Errorf("digest %s: %w", quote(s), err)
	}
	return d, nil
}

// Tensor is one tensor of a version. A tie, or two tensors with equal bytes, dtype and shape, is one row with several names.
type Tensor struct {
	Names  []string     `json:"names"` // sorted; each is unique in the version
	DType  tensor.DType `json:"-"`
	Shape  tensor.Shape `json:"shape"`
	Role   tensor.Role  `json:"-"`
	SHA256 Digest       `json:"sha256"` // of the plain bytes
}

// Bytes is the size of the plain bytes. A decoded manifest has no tensor whose size overflows.
func (t *Tensor) Bytes() int {
	n, err := tensor.SizeBytes(t.DType, t.Shape)
	if err != nil {
		return 0
	}
	return n
}

// NodeKind is what a node of the tree is.
type NodeKind uint8

// The kinds of node. The numbers are part of the table format: append only.
const (
	Module NodeKind = 1 // has a registered kind, a config, tensors, and modules inside it
	List   NodeKind = 2 // its items are named 0, 1, 2, ...
	Dict   NodeKind = 3 // a map, a struct, a directory
	Value  NodeKind = 4 // bytes that each worker copies, or that lie in a row
	Ref    NodeKind = 5 // the module at another path, once more
)

var nodeKinds = [...]string{Module: "module", List: "list", Dict: "dict", Value: "value", Ref: "ref"}

func (k NodeKind) String() string {
	if k == 0 || int(k) >= len(nodeKinds) {
		return "node(" + strconv.Itoa(int(k)) + ")"
	}
	return nodeKinds[k]
}

// Node is one node of the tree. Only the fields of its kind are set.
type Node struct {
	Kind NodeKind

	Impl   string          // Module: the registered kind, "nn.Linear". Dict: what it was, "struct", "map"; may be empty
	Config json.RawMessage // Module: a JSON object
	Params []Param         // Module: sorted by name

	Items []Item // Module: children in order. List: in order. Dict: sorted by key

	MediaType string // Value: "application/json" for plain fields
	Value     []byte // Value: of less than RowValueBytes; those of larger ones are the row that its only param points at

	Ref string // Ref: path of a module that comes earlier in the tree
}

// ValueRow is the row that holds the bytes of a value of RowValueBytes and more.
func (n *Node) ValueRow() (row int, ok bool) {
	if n.Kind != Value || len(n.Params) != 1 {
		return 0, false
	}
	return n.Params[0].Tensor, true
}

// Param binds a module's own name of a tensor to its row.
type Param struct {
	Name   string `json:"name"`
	Tensor int    `json:"tensor"` // index into Manifest.Tensors
}

// Item is a named node inside another.
type Item struct {
	Key  string `json:"key"`
	Node *Node  `json:"node"`
}

// Manifest is one version.
type Manifest struct {
	Root    *Node
	Tensors []Tensor // sorted by first name
}

// TensorBytes is the sum of all tensors, each once.
func (m *Manifest) TensorBytes() int {
	n := 0
	for i := range m.Tensors {
		n += m.Tensors[i].Bytes()
	}
	return n
}

// JSON shapes of the canonical form. Field order is the order here.
type (
	manifestJSON struct {
		Format  int          `json:"format"`
		Root    *Node        `json:"root"`
		Tensors []tensorJSON `json:"tensors"`
	}
	tensorJSON struct {
		Names  []string     `json:"names"`
		DType  string       `json:"dtype"`
		Shape  tensor.Shape `json:"shape"`
		Role   string       `json:"role"`
		SHA256 Digest       `json:"sha256"`
	}
	nodeJSON struct {
		Node      string          `json:"node"`
		Impl      string          `json:"kind,omitempty"`
		Config    json.RawMessage `json:"config,omitempty"`
		Params    []Param         `json:"params,omitempty"`
		Items     []Item          `json:"items,omitempty"`
		MediaType string          `json:"media_type,omitempty"`
		Value     *[]byte         `json:"value,omitempty"`
		Ref       string          `json:"ref,omitempty"`
	}
)

// MarshalJSON writes the node's canonical form.
func (n *Node) MarshalJSON() ([]byte, error) {
	j := nodeJSON{Node: n.Kind.String(), Impl: n.Impl, Config: n.Config, Params: n.Params, Items: n.Items, MediaType: n.MediaType, Ref: n.Ref}
	if n.Kind == Value && n.Params == nil {
		v := n.Value
		if v == nil {
			v = []byte{}
		}
		j.Value = &v
	}
	return marshal(j)
}

// UnmarshalJSON reads a node. Decode checks the whole.
func (n *Node) UnmarshalJSON(b []byte) error {
	var j nodeJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*n = Node{Impl: j.Impl, Config: j.Config, Params: j.Params, Items: j.Items, MediaType: j.MediaType, Ref: j.Ref}
	for k, name := range nodeKinds {
		if name == j.Node && name != "" {
			n.Kind = NodeKind(k)
		}
	}
	if n.Kind == 0 {
		return fmt.Errorf("node of unknown kind %s", quote(j.Node))
	}
	if j.Value != nil {
		n.Value = *j.Value
	}
	return nil
}

// Encode is the canonical form, and Digest its SHA-256. Errors: those of Check.
func (m *Manifest) Encode() ([]byte, Digest, error) {
	if err := m.Check(); err != nil {
		return nil, Digest{}, err
	}
	b, err := m.encode()
	if err != nil {
		return nil, Digest{}, err
	}
	return b, sha256.Sum256(b), nil
}

func (m *Manifest) encode() ([]byte, error) {
	j := manifestJSON{Format: Format, Root: m.Root, Tensors: make([]tensorJSON, len(m.Tensors))}
	for i, t := range m.Tensors {
		shape := t.Shape
		if shape == nil {
			shape = tensor.Shape{}
		}
		j.Tensors[i] = tensorJSON{Names: t.Names, DType: t.DType.String(), Shape: shape, Role: t.Role.String(), SHA256: t.SHA256}
	}
	return marshal(j)
}

// Decode reads a canonical form and gives its digest. Any other spelling of the same content is refused, so that one version
// has one digest: duplicate keys, other case, other order, spaces and unknown fields are all errors.
func Decode(b []byte) (*Manifest, Digest, error) {
	if len(b) > MaxBytes {
		return nil, Digest{}, fmt.Errorf("manifest of %d bytes is over the limit of %d", len(b), MaxBytes)
	}
	if err := checkNesting(b); err != nil {
		return nil, Digest{}, err
	}
	var j manifestJSON
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&j); err != nil {
		return nil, Digest{}, fmt.Errorf("manifest: %w", err)
	}
	if j.Format != Format {
		return nil, Digest{}, fmt.Errorf("manifest format %d is not the format %d of this program", j.Format, Format)
	}
	m := &Manifest{Root: j.Root, Tensors: make([]Tensor, len(j.Tensors))}
	for i, t := range j.Tensors {
		dt, err := tensor.ParseDType(t.DType)
		if err != nil {
			return nil, Digest{}, fmt.Errorf("manifest tensor %d: %w", i, err)
		}
		role, err := tensor.ParseRole(t.Role)
		if err != nil {
			return nil, Digest{}, fmt.Errorf("manifest tensor %d: %w", i, err)
		}
		m.Tensors[i] = Tensor{Names: t.Names, DType: dt, Shape: t.Shape, Role: role, SHA256: t.SHA256}
	}
	if err := m.Check(); err != nil {
		return nil, Digest{}, err
	}
	again, err := m.encode()
	if err != nil {
		return nil, Digest{}, err
	}
	if !bytes.Equal(again, b) {
		at := 0
		for at < len(b) && at < len(again) && b[at] == again[at] {
			at++
		}
		return nil, Digest{}, fmt.Errorf("manifest is not in canonical form: it differs at byte %d", at)
	}
	return m, sha256.Sum256(b), nil
}

// checkNesting bounds the depth before encoding/json recurses: two levels of JSON for each level of the tree, and a config
// or two below.
func checkNesting(b []byte) error {
	depth, inString, escaped := 0, false, false
	for i, c := range b {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = c == '\\'
			inString = c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > 4*MaxDepth {
				return fmt.Errorf("manifest: nested over %d levels at byte %d", 4*MaxDepth, i)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// Check holds a manifest to its rules: names, order, sizes, indices, references. Every error names the path or tensor.
func (m *Manifest) Check() error {
	if m.Root == nil {
		return fmt.Errorf("manifest has no root")
	}
	if len(m.Tensors) > MaxTensors {
		return fmt.Errorf("manifest has %d tensors, the limit is %d", len(m.Tensors), MaxTensors)
	}
	seen := make(map[string]struct{}, len(m.Tensors))
	total := uint64(0)
	for i := range m.Tensors {
		t := &m.Tensors[i]
		if len(t.Names) == 0 {
			return fmt.Errorf("tensor %d has no name", i)
		}
		for k, n := range t.Names {
			if err := CheckTensorName(n); err != nil {
				return fmt.Errorf("tensor %d: %w", i, err)
			}
			if _, dup := seen[n]; dup {
				return fmt.Errorf("tensor name %s stands twice", quote(n))
			}
			seen[n] = struct{}{}
			if k > 0 && t.Names[k-1] >= n {
				return fmt.Errorf("names of tensor %s are not sorted", quote(t.Names[0]))
			}
		}
		if i > 0 && m.Tensors[i-1].Names[0] >= t.Names[0] {
			return fmt.Errorf("tensor %s is not in order", quote(t.Names[0]))
		}
		size, err := tensor.SizeBytes(t.DType, t.Shape)
		if err != nil {
			return fmt.Errorf("tensor %s: %w", quote(t.Names[0]), err)
		}
		var carry uint64
		if total, carry = bits.Add64(total, uint64(size), 0); carry != 0 || total > 1<<62 {
			return fmt.Errorf("tensor %s: the sum of all tensors overflows", quote(t.Names[0]))
		}
	}
	c := checker{m: m, used: make([]bool, len(m.Tensors)), modules: map[string]bool{}}
	if err := c.node(m.Root, "", 0); err != nil {
		return err
	}
	for i, u := range c.used {
		if !u {
			return fmt.Errorf("tensor %s belongs to no module", quote(m.Tensors[i].Names[0]))
		}
	}
	return nil
}

type checker struct {
	m       *Manifest
	used    []bool
	modules map[string]bool // paths of modules met so far
	nodes   int
}

func (c *checker) node(n *Node, path string, depth int) error {
	at := path
	if at == "" {
		at = "the root"
	}
	if n == nil {
		return fmt.Errorf("%s: node is missing", at)
	}
	if depth > MaxDepth {
		return fmt.Errorf("%s: deeper than %d levels", at, MaxDepth)
	}
	if c.nodes++; c.nodes > MaxNodes {
		return fmt.Errorf("%s: more than %d nodes", at, MaxNodes)
	}
	if (n.Kind != Module && n.Config != nil) ||
		(n.Kind != Module && n.Kind != Value && n.Params != nil) ||
		(n.Kind != Module && n.Kind != Dict && n.Impl != "") ||
		(n.Kind != Value && (n.MediaType != "" || n.Value != nil)) ||
		(n.Kind != Ref && n.Ref != "") ||
		((n.Kind == Value || n.Kind == Ref) && n.Items != nil) {
		return fmt.Errorf("%s: a %v node has fields of another kind", at, n.Kind)
	}
	if len(n.Impl) > 256 || !utf8.ValidString(n.Impl) {
		return fmt.Errorf("%s: kind %s is not a short UTF-8 text", at, quote(n.Impl))
	}
	switch n.Kind {
	case Module:
		if err := c.module(n, at); err != nil {
			return err
		}
		c.modules[path] = true
	case Value:
		if n.MediaType == "" || len(n.MediaType) > 128 || !utf8.ValidString(n.MediaType) {
			return fmt.Errorf("%s: a value needs a media type", at)
		}
		if err := c.value(n, at); err != nil {
			return err
		}
	case Ref:
		if !c.modules[n.Ref] {
			return fmt.Errorf("%s: refers to %s, which is no module before it", at, quote(n.Ref))
		}
	case List, Dict:
	default:
		return fmt.Errorf("%s: unknown node kind %v", at, n.Kind)
	}
	for i, it := range n.Items {
		if err := CheckKey(it.Key); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		switch {
		case n.Kind == List && it.Key != strconv.Itoa(i):
			return fmt.Errorf("%s: item %d of a list is called %s", at, i, quote(it.Key))
		case n.Kind == Dict && i > 0 && n.Items[i-1].Key >= it.Key:
			return fmt.Errorf("%s: key %s is not in order", at, quote(it.Key))
		}
		if n.Kind == Module && (it.Node == nil || (it.Node.Kind == List || it.Node.Kind == Dict)) {
			return fmt.Errorf("%s: child %s of a module is neither module, value nor ref", at, quote(it.Key))
		}
		if err := c.node(it.Node, Join(path, it.Key), depth+1); err != nil {
			return err
		}
	}
	if n.Kind == Module {
		return uniqueKeys(n.Items, at)
	}
	return nil
}

func (c *checker) module(n *Node, at string) error {
	if n.Impl == "" {
		return fmt.Errorf("%s: a module needs a kind", at)
	}
	canonical, err := CanonicalJSON(n.Config)
	if err != nil {
		return fmt.Errorf("%s: config: %w", at, err)
	}
	if !bytes.Equal(canonical, n.Config) || len(canonical) == 0 || canonical[0] != '{' {
		return fmt.Errorf("%s: config is not a JSON object in canonical form", at)
	}
	for i, p := range n.Params {
		if err := CheckTensorName(p.Name); err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		if i > 0 && n.Params[i-1].Name >= p.Name {
			return fmt.Errorf("%s: parameter %s is not in order", at, quote(p.Name))
		}
		if p.Tensor < 0 || p.Tensor >= len(c.used) {
			return fmt.Errorf("%s: parameter %s points at tensor %d of %d", at, quote(p.Name), p.Tensor, len(c.used))
		}
		c.used[p.Tensor] = true
	}
	return nil
}

// value holds a value to its one spelling: small ones stand in the tree, large ones in a row.
func (c *checker) value(n *Node, at string) error {
	size := len(n.Value)
	if n.Params != nil {
		if len(n.Params) != 1 || n.Params[0].Name != valueParam || n.Value != nil {
			return fmt.Errorf("%s: a value whose bytes lie in a row has one parameter %q and nothing else", at, valueParam)
		}
		row := n.Params[0].Tensor
		if row < 0 || row >= len(c.used) {
			return fmt.Errorf("%s: the value points at tensor %d of %d", at, row, len(c.used))
		}
		t := &c.m.Tensors[row]
		if t.DType != tensor.U8 || len(t.Shape) != 1 {
			return fmt.Errorf("%s: the value's bytes are a tensor %v %v, and not a row of U8", at, t.DType, t.Shape)
		}
		c.used[row] = true
		size = t.Bytes()
	}
	switch {
	case size > MaxValueBytes:
		return fmt.Errorf("%s: value of %d bytes is over the limit of %d", at, size, MaxValueBytes)
	case (size >= RowValueBytes) != (n.Params != nil):
		return fmt.Errorf("%s: value of %d bytes: from %d on they lie in a row, and in the tree below", at, size, RowValueBytes)
	}
	return nil
}

func uniqueKeys(items []Item, at string) error {
	keys := make([]string, len(items))
	for i, it := range items {
		keys[i] = it.Key
	}
	sort.Strings(keys)
	for i := 1; i < len(keys); i++ {
		if keys[i] == keys[i-1] {
			return fmt.Errorf("%s: child %s stands twice", at, quote(keys[i]))
		}
	}
	return nil
}

// Join is the path of a key inside a path: the parts with a dot between them. Keys that hold a dot, a bracket or a quote are
// written in brackets: heads["v1.0"].
func Join(path, key string) string {
	if key == "" || strings.ContainsAny(key, ".[]\"\\ ") {
		return path + "[" + strconv.Quote(key) + "]"
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// CheckTensorName holds a tensor's name to the rules of the store: 1 to 1024 bytes of UTF-8 without control characters, and
// not the spelling of the padding rows of a segment.
func CheckTensorName(n string) error {
	switch {
	case n == "" || len(n) > MaxNameBytes:
		return fmt.Errorf("tensor name %s has %d bytes, 1 to %d are allowed", quote(n), len(n), MaxNameBytes)
	case strings.HasPrefix(n, "__"):
		return fmt.Errorf("tensor name %s begins with two underscores, which segments use themselves", quote(n))
	}
	return checkText("tensor name", n)
}

// CheckKey holds a key of the tree to the same rules, without a minimum length.
func CheckKey(k string) error {
	if len(k) > MaxNameBytes {
		return fmt.Errorf("key %s has %d bytes, the limit is %d", quote(k), len(k), MaxNameBytes)
	}
	return checkText("key", k)
}

func checkText(what, s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%s %s is not valid UTF-8", what, quote(s))
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || r == utf8.RuneError || r == 0x2028 || r == 0x2029 {
			return fmt.Errorf("%s %s holds the character %U", what, quote(s), r)
		}
	}
	return nil
}

// CanonicalJSON spells a JSON text in the one way: no spaces, object keys sorted, numbers as they were written, no HTML
// escapes. A text that is not JSON is an error.
func CanonicalJSON(b []byte) (json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, fmt.Errorf("text after the JSON value")
	}
	return marshal(v)
}

// marshal is json.Marshal without HTML escapes and without the newline of an Encoder.
func marshal(v any) (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func quote(s string) string {
	if len(s) > 128 {
		s = s[:128] + "..."
	}
	return strconv.QuoteToASCII(s)
}
