// Package table is what a worker needs to use a version, as one compact binary file in shared memory.
//
// The daemon writes it once ([Encode]); every worker maps it and reads rows in place ([Open]): opening costs the same for
// ten tensors and for a hundred thousand, and nothing is parsed. Each access checks its own bounds, so that a damaged
// table is an error and never a read outside the mapping. The file is also the daemon's own record of the version: the
// whole manifest can be read back ([Table.Manifest]).
//
// # Layout, version 2
//
// All numbers are little-endian. A string is {offset u32, length u32} into the string section.
//
//	header   magic "ZCTABLE1", version u32, flags u32, total bytes u64, digest [32],
//	         crc32c u32 of all other bytes, 0 u32,
//	         8 sections, each {offset u64, count u64}
//	segments id string, bytes u64                                            16
//	tensors  sha256 [32], offset u64 in the segment's file, bytes u64,
//	         first dim u32, first name u32, names u32, segment u32,
//	         rank u16, dtype u8, role u8, 0 u32                               72
//	dims     u64                                                               8
//	names    string, grouped by tensor, sorted inside                          8
//	byname   {name u32, tensor u32}, sorted by name                            8
//	nodes    key, impl, config, media type, value, ref: strings;
//	         first param u32, params u32, end u32, kind u8, 0 [3]             64
//	         in preorder; the children of i are i+1, then its end, ... below end(i)
//	params   name string, tensor u32, 0 u32; sorted by name in each node;      16
//	         a large value has one, the row with its bytes
//	strings  bytes                                                             1
package table

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sort"
	"strconv"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Version of the layout. A table of another version is refused with both numbers.
const Version = 2

const magic = "ZCTABLE1"

const (
	secSegments = iota
	secTensors
	secDims
	secNames
	secByName
	secNodes
	secParams
	secStrings
	sections
)

var entrySize = [sections]int{16, 72, 8, 8, 8, 64, 16, 1}

const headerSize = 8 + 4 + 4 + 8 + 32 + 4 + 4 + sections*16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFormat is the target of errors about a table that is not one.
var ErrFormat = errors.New("not a table of this version")

// Segment is a file that holds tensors of the version.
type Segment struct {
	ID    string
	Bytes uint64 // size of the whole file
}

// Location is where a tensor's plain bytes lie.
type Location struct {
	Segment int    // index into the segments
	Offset  uint64 // in the segment's file
}

// Encode writes the table of a version: m is already checked, locs has one location a tensor row.
func Encode(m *manifest.Manifest, digest manifest.Digest, segs []Segment, locs []Location) ([]byte, error) {
	if len(locs) != len(m.Tensors) {
		return nil, fmt.Errorf("%d locations for %d tensors", len(locs), len(m.Tensors))
	}
	e := encoder{strings: map[string]uint32{}}
	for _, s := range segs {
		e.str(secSegments, s.ID)
		e.u64(secSegments, s.Bytes)
	}
	type named struct {
		text         string
		name, tensor uint32
	}
	var byName []named
	dims := 0
	for i := range m.Tensors {
		t, l := &m.Tensors[i], locs[i]
		size := uint64(t.Bytes())
		if l.Segment < 0 || l.Segment >= len(segs) {
			if size != 0 {
				return nil, fmt.Errorf("tensor %d lies in segment %d of %d", i, l.Segment, len(segs))
			}
		} else if l.Offset > segs[l.Segment].Bytes || size > segs[l.Segment].Bytes-l.Offset {
			return nil, fmt.Errorf("tensor %d leaves its segment", i)
		}
		e.sec[secTensors] = append(e.sec[secTensors], t.SHA256[:]...)
		e.u64(secTensors, l.Offset)
		e.u64(secTensors, size)
		e.u32(secTensors, uint32(dims), uint32(len(byName)), uint32(len(t.Names)), uint32(l.Segment))
		e.sec[secTensors] = binary.LittleEndian.AppendUint16(e.sec[secTensors], uint16(len(t.Shape)))
		e.sec[secTensors] = append(e.sec[secTensors], byte(t.DType), byte(t.Role), 0, 0, 0, 0)
		for _, d := range t.Shape {
			e.u64(secDims, uint64(d))
		}
		dims += len(t.Shape)
		for _, n := range t.Names {
			byName = append(byName, named{n, uint32(len(byName)), uint32(i)})
			e.str(secNames, n)
		}
	}
	sort.Slice(byName, func(i, j int) bool { return byName[i].text < byName[j].text })
	for _, n := range byName {
		e.u32(secByName, n.name, n.tensor)
	}
	e.node("", m.Root)
	return e.finish(digest)
}

type encoder struct {
	sec     [sections][]byte
	strings map[string]uint32
	err     error
}

func (e *encoder) u32(s int, vs ...uint32) {
	for _, v := range vs {
		e.sec[s] = binary.LittleEndian.AppendUint32(e.sec[s], v)
	}
}

func (e *encoder) u64(s int, v uint64) { e.sec[s] = binary.LittleEndian.AppendUint64(e.sec[s], v) }

// str appends a reference to a string, which is stored once.
func (e *encoder) str(s int, text string) {
	off, ok := e.strings[text]
	if !ok {
		at := len(e.sec[secStrings])
		if at+len(text) > math.MaxUint32 {
			e.err = errors.New("the texts of the manifest exceed 4 GiB")
			return
		}
		off = uint32(at)
		e.strings[text] = off
		e.sec[secStrings] = append(e.sec[secStrings], text...)
	}
	e.u32(s, off, uint32(len(text)))
}

func (e *encoder) node(key string, n *manifest.Node) {
	at := len(e.sec[secNodes])
	e.str(secNodes, key)
	e.str(secNodes, n.Impl)
	e.str(secNodes, string(n.Config))
	e.str(secNodes, n.MediaType)
	if n.Kind == manifest.Value {
		e.str(secNodes, string(n.Value))
	} else {
		e.str(secNodes, n.Ref)
	}
	e.u32(secNodes, uint32(len(e.sec[secParams])/entrySize[secParams]), uint32(len(n.Params)), 0, 0)
	e.sec[secNodes] = append(e.sec[secNodes], byte(n.Kind), 0, 0, 0)
	e.u32(secNodes, 0)
	for _, p := range n.Params {
		e.str(secParams, p.Name)
		e.u32(secParams, uint32(p.Tensor), 0)
	}
	for _, it := range n.Items {
		e.node(it.Key, it.Node)
	}
	end := uint32(len(e.sec[secNodes]) / entrySize[secNodes])
	binary.LittleEndian.PutUint32(e.sec[secNodes][at+nodeEnd:], end)
}

// Field offsets inside entries.
const (
	nodeKey, nodeImpl, nodeConfig, nodeMedia, nodeValue = 0, 8, 16, 24, 32
	nodeParam, nodeParams, nodeEnd, nodeKind            = 40, 44, 48, 56
)

func (e *encoder) finish(digest manifest.Digest) ([]byte, error) {
	if e.err != nil {
		return nil, e.err
	}
	out := make([]byte, headerSize)
	copy(out, magic)
	binary.LittleEndian.PutUint32(out[8:], Version)
	copy(out[24:], digest[:])
	for s, b := range e.sec {
		for len(out)%8 != 0 {
			out = append(out, 0)
		}
		binary.LittleEndian.PutUint64(out[64+16*s:], uint64(len(out)))
		binary.LittleEndian.PutUint64(out[64+16*s+8:], uint64(len(b)/entrySize[s]))
		out = append(out, b...)
	}
	binary.LittleEndian.PutUint64(out[16:], uint64(len(out)))
	binary.LittleEndian.PutUint32(out[56:], checksum(out))
	return out, nil
}

// checksum covers every byte but its own four.
func checksum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:56], castagnoli), castagnoli, b[60:])
}

// Table reads a table in place. It is immutable and safe for concurrent use, as long as the bytes it was opened on live.
type Table struct {
	b      []byte
	off    [sections]int
	count  [sections]int
	digest manifest.Digest
}

// Open checks the header and the section bounds, and nothing else: its cost does not depend on the number of tensors.
// The table keeps b.
func Open(b []byte) (*Table, error) {
	if len(b) < headerSize || string(b[:8]) != magic {
		return nil, fmt.Errorf("%w: no magic %q in %d bytes", ErrFormat, magic, len(b))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != Version {
		return nil, fmt.Errorf("%w: table version %d, this program reads %d", ErrFormat, v, Version)
	}
	if total := binary.LittleEndian.Uint64(b[16:]); total != uint64(len(b)) {
		return nil, fmt.Errorf("%w: the header says %d bytes, there are %d", ErrFormat, total, len(b))
	}
	t := &Table{b: b}
	copy(t.digest[:], b[24:])
	for s := range sections {
		off, count := binary.LittleEndian.Uint64(b[64+16*s:]), binary.LittleEndian.Uint64(b[64+16*s+8:])
		if off < headerSize || off > uint64(len(b)) || off%8 != 0 || count > (uint64(len(b))-off)/uint64(entrySize[s]) {
			return nil, fmt.Errorf("%w: section %d (offset %d, %d entries) leaves the %d bytes", ErrFormat, s, off, count, len(b))
		}
		t.off[s], t.count[s] = int(off), int(count)
	}
	if t.count[secNodes] == 0 {
		return nil, fmt.Errorf("%w: no root node", ErrFormat)
	}
	return t, nil
}

// Verify reads the whole table and compares its checksum.
func (t *Table) Verify() error {
	want := binary.LittleEndian.Uint32(t.b[56:])
	if got := checksum(t.b); got != want {
		return fmt.Errorf("%w: checksum %08x, the header says %08x", ErrFormat, got, want)
	}
	return nil
}

// Digest is the version's digest, as written in the header. Manifest checks it.
func (t *Table) Digest() manifest.Digest { return t.digest }

// Bytes is the size of the table.
func (t *Table) Bytes() int { return len(t.b) }

// entry is the bytes of one entry, or nil when i is out of range.
func (t *Table) entry(s, i int) []byte {
	if i < 0 || i >= t.count[s] {
		return nil
	}
	size := entrySize[s]
	at := t.off[s] + i*size
	return t.b[at : at+size : at+size]
}

// text is the string referred to by 8 bytes of an entry. It copies nothing.
func (t *Table) text(ref []byte) ([]byte, bool) {
	off, n := uint64(binary.LittleEndian.Uint32(ref)), uint64(binary.LittleEndian.Uint32(ref[4:]))
	if off+n > uint64(t.count[secStrings]) {
		return nil, false
	}
	at := uint64(t.off[secStrings]) + off
	return t.b[at : at+n : at+n], true
}

func badEntry(what string, i int) error {
	return fmt.Errorf("%w: %s %d is out of bounds", ErrFormat, what, i)
}

// Segments is the number of segments.
func (t *Table) Segments() int { return t.count[secSegments] }

// Segment is segment i.
func (t *Table) Segment(i int) (Segment, error) {
	e := t.entry(secSegments, i)
	if e == nil {
		return Segment{}, badEntry("segment", i)
	}
	id, ok := t.text(e)
	if !ok {
		return Segment{}, badEntry("segment", i)
	}
	return Segment{ID: string(id), Bytes: binary.LittleEndian.Uint64(e[8:])}, nil
}

// Tensors is the number of tensor rows.
func (t *Table) Tensors() int { return t.count[secTensors] }

// Tensor is one row as a worker needs it. The shape is copied, nothing else.
type Tensor struct {
	DType  tensor.DType
	Role   tensor.Role
	Shape  tensor.Shape
	Bytes  int // size of the plain bytes, equal to what dtype and shape ask for
	SHA256 manifest.Digest
	Location
}

// Tensor is row i, with its size and bounds inside the segment checked.
func (t *Table) Tensor(i int) (Tensor, error) {
	e := t.entry(secTensors, i)
	if e == nil {
		return Tensor{}, badEntry("tensor", i)
	}
	return t.tensor(e, i, nil)
}

// Each calls f for every row, checked as by Tensor, with one allocation for all shapes. It ends at the first row that is bad.
func (t *Table) Each(f func(i int, r Tensor)) error {
	// Rows may share dims, so the sum of their ranks is not the count; a damaged table must not make it large.
	dims := make(tensor.Shape, 0, t.count[secDims])
	for i := range t.count[secTensors] {
		if cap(dims)-len(dims) < tensor.MaxRank {
			dims = make(tensor.Shape, 0, max(tensor.MaxRank, min(t.count[secDims], 1<<16)))
		}
		r, err := t.tensor(t.entry(secTensors, i), i, dims[len(dims):])
		if err != nil {
			return err
		}
		dims = dims[:len(dims)+len(r.Shape)]
		f(i, r)
	}
	return nil
}

// tensor reads a row; its shape lies in room, which has room for MaxRank dimensions, or is allocated when that is nil.
func (t *Table) tensor(e []byte, i int, room tensor.Shape) (Tensor, error) {
	r := Tensor{DType: tensor.DType(e[66]), Role: tensor.Role(e[67])}
	copy(r.SHA256[:], e)
	r.Offset = binary.LittleEndian.Uint64(e[32:])
	size := binary.LittleEndian.Uint64(e[40:])
	first, rank := int(binary.LittleEndian.Uint32(e[48:])), int(binary.LittleEndian.Uint16(e[64:]))
	r.Segment = int(binary.LittleEndian.Uint32(e[60:]))
	if first+rank > t.count[secDims] || rank > tensor.MaxRank {
		return Tensor{}, badEntry("tensor", i)
	}
	if room == nil {
		r.Shape = make(tensor.Shape, rank)
	} else {
		r.Shape = room[:rank:rank]
	}
	for d := range r.Shape {
		v := binary.LittleEndian.Uint64(t.b[t.off[secDims]+8*(first+d):])
		if v > math.MaxInt64 {
			return Tensor{}, badEntry("tensor", i)
		}
		r.Shape[d] = int(v)
	}
	want, err := tensor.SizeBytes(r.DType, r.Shape)
	if err != nil || uint64(want) != size {
		return Tensor{}, badEntry("tensor", i)
	}
	r.Bytes = want
	if want == 0 {
		return r, nil
	}
	seg := t.entry(secSegments, r.Segment)
	if seg == nil {
		return Tensor{}, badEntry("tensor", i)
	}
	if room := binary.LittleEndian.Uint64(seg[8:]); r.Offset > room || size > room-r.Offset {
		return Tensor{}, badEntry("tensor", i)
	}
	return r, nil
}

// TensorNames lists the names of row i, sorted.
func (t *Table) TensorNames(i int) ([]string, error) {
	e := t.entry(secTensors, i)
	if e == nil {
		return nil, badEntry("tensor", i)
	}
	first, n := int(binary.LittleEndian.Uint32(e[52:])), int(binary.LittleEndian.Uint32(e[56:]))
	if first+n > t.count[secNames] {
		return nil, badEntry("names of tensor", i)
	}
	names := make([]string, n)
	for k := range names {
		b, ok := t.text(t.entry(secNames, first+k))
		if !ok {
			return nil, badEntry("names of tensor", i)
		}
		names[k] = string(b)
	}
	return names, nil
}

// Lookup finds the row of a tensor by any of its names, in logarithmic time.
func (t *Table) Lookup(name string) (row int, ok bool) {
	i := sort.Search(t.count[secByName], func(i int) bool { return bytes.Compare(t.nameAt(i), []byte(name)) >= 0 })
	if i >= t.count[secByName] || string(t.nameAt(i)) != name {
		return 0, false
	}
	return int(binary.LittleEndian.Uint32(t.entry(secByName, i)[4:])), true
}

// nameAt is the i-th name in order; a damaged entry reads as empty, so a search over it ends.
func (t *Table) nameAt(i int) []byte {
	e := t.entry(secByName, i)
	if e = t.entry(secNames, int(binary.LittleEndian.Uint32(e))); e == nil {
		return nil
	}
	b, _ := t.text(e)
	return b
}

// Root is the root of the tree.
func (t *Table) Root() Node { return Node{t: t, i: 0} }

// Node is a node of the tree, read in place. Its byte slices are the mapped memory: read-only, and to be copied by whoever
// keeps them.
type Node struct {
	t *Table
	i int
}

func (n Node) field(at int) []byte {
	b, _ := n.t.text(n.t.entry(secNodes, n.i)[at:])
	return b
}

// Index is the node's place in the table, equal for the same node.
func (n Node) Index() int { return n.i }

// Kind is the kind of node; a damaged one has kind 0.
func (n Node) Kind() manifest.NodeKind { return manifest.NodeKind(n.t.entry(secNodes, n.i)[nodeKind]) }

// Key is the node's name inside its parent.
func (n Node) Key() string { return string(n.field(nodeKey)) }

// Impl is the registered kind of a module.
func (n Node) Impl() string { return string(n.field(nodeImpl)) }

// Config is a module's config, a JSON object.
func (n Node) Config() []byte { return n.field(nodeConfig) }

// MediaType is a value's media type.
func (n Node) MediaType() string { return string(n.field(nodeMedia)) }

// Value is the bytes of a value that stand in the table. Those of a large one lie in a row.
func (n Node) Value() []byte { return n.field(nodeValue) }

// ValueRow is the row that holds the bytes of a large value.
func (n Node) ValueRow() (row int, ok bool) {
	if n.Kind() != manifest.Value || n.Params() == 0 {
		return 0, false
	}
	_, row, err := n.Param(0)
	return row, err == nil
}

// Ref is the path that a ref node refers to.
func (n Node) Ref() string { return string(n.field(nodeValue)) }

func (n Node) u32(at int) int { return int(binary.LittleEndian.Uint32(n.t.entry(secNodes, n.i)[at:])) }

// Params is the number of tensors a module has itself.
func (n Node) Params() int { return n.u32(nodeParams) }

// Param is the module's k-th tensor in the order of names: its name there and its row.
func (n Node) Param(k int) (name string, row int, err error) {
	if k < 0 || k >= n.Params() {
		return "", 0, badEntry("parameter", k)
	}
	e := n.t.entry(secParams, n.u32(nodeParam)+k)
	if e == nil {
		return "", 0, badEntry("parameter", k)
	}
	b, ok := n.t.text(e)
	if !ok {
		return "", 0, badEntry("parameter", k)
	}
	return string(b), int(binary.LittleEndian.Uint32(e[8:])), nil
}

// Find is the row of the module's tensor of that name, in logarithmic time.
func (n Node) Find(name string) (row int, ok bool) {
	first, count := n.u32(nodeParam), n.Params()
	if first+count > n.t.count[secParams] {
		return 0, false
	}
	text := func(k int) []byte {
		b, _ := n.t.text(n.t.entry(secParams, first+k))
		return b
	}
	k := sort.Search(count, func(k int) bool { return bytes.Compare(text(k), []byte(name)) >= 0 })
	if k >= count || string(text(k)) != name {
		return 0, false
	}
	return int(binary.LittleEndian.Uint32(n.t.entry(secParams, first+k)[8:])), true
}

// Children lists the nodes inside this one, in order.
func (n Node) Children() []Node {
	end := min(n.u32(nodeEnd), n.t.count[secNodes])
	var kids []Node
	for c := n.i + 1; c < end; {
		kid := Node{n.t, c}
		kids = append(kids, kid)
		next := kid.u32(nodeEnd)
		if next <= c || next > end { // damaged: stop rather than loop
			break
		}
		c = next
	}
	return kids
}

// Child is the node of that key inside this one.
func (n Node) Child(key string) (Node, bool) {
	for _, c := range n.Children() {
		if c.Key() == key {
			return c, true
		}
	}
	return Node{}, false
}

// Manifest reads the whole version back and checks it: the manifest's digest must be the table's, and every row must lie
// inside its segment.
func (t *Table) Manifest() (*manifest.Manifest, []Segment, []Location, error) {
	m := &manifest.Manifest{Tensors: make([]manifest.Tensor, t.Tensors())}
	locs := make([]Location, t.Tensors())
	segs := make([]Segment, t.Segments())
	for i := range segs {
		s, err := t.Segment(i)
		if err != nil {
			return nil, nil, nil, err
		}
		segs[i] = s
	}
	for i := range m.Tensors {
		r, err := t.Tensor(i)
		if err != nil {
			return nil, nil, nil, err
		}
		names, err := t.TensorNames(i)
		if err != nil {
			return nil, nil, nil, err
		}
		m.Tensors[i] = manifest.Tensor{Names: names, DType: r.DType, Shape: r.Shape, Role: r.Role, SHA256: r.SHA256}
		locs[i] = r.Location
	}
	budget := t.count[secNodes]
	root, err := t.node(t.Root(), 0, &budget)
	if err != nil {
		return nil, nil, nil, err
	}
	m.Root = root
	_, digest, err := m.Encode()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if digest != t.digest {
		return nil, nil, nil, fmt.Errorf("%w: its content has digest %v, the header says %v", ErrFormat, digest, t.digest)
	}
	return m, segs, locs, nil
}

func (t *Table) node(n Node, depth int, budget *int) (*manifest.Node, error) {
	if *budget--; *budget < 0 || depth > manifest.MaxDepth {
		return nil, fmt.Errorf("%w: the tree at node %s does not end", ErrFormat, strconv.Itoa(n.i))
	}
	out := &manifest.Node{Kind: n.Kind(), Impl: n.Impl(), MediaType: n.MediaType()}
	switch out.Kind {
	case manifest.Module:
		out.Config = json.RawMessage(bytes.Clone(n.Config()))
	case manifest.Value:
		if n.Params() == 0 {
			out.Value = append([]byte{}, n.Value()...)
		}
	case manifest.Ref:
		out.Ref = n.Ref()
	}
	for k := range n.Params() {
		name, row, err := n.Param(k)
		if err != nil {
			return nil, err
		}
		out.Params = append(out.Params, manifest.Param{Name: name, Tensor: row})
	}
	for _, c := range n.Children() {
		kid, err := t.node(c, depth+1, budget)
		if err != nil {
			return nil, err
		}
		out.Items = append(out.Items, manifest.Item{Key: c.Key(), Node: kid})
	}
	return out, nil
}
