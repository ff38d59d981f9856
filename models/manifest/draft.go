package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sort"
	"sync"

	"github.com/zcstore/zcstore/internal/parallel"
	"github.com/zcstore/zcstore/shm/region"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Draft is a version before its tensors were read: a tree whose params index Tensors, and where each tensor's bytes are.
type Draft struct {
	Root    *Node
	Tensors []DraftTensor
}

// DraftTensor is a tensor of a draft.
type DraftTensor struct {
	Names []string // without duplicates, in the draft too
	DType tensor.DType
	Shape tensor.Shape
	Role  tensor.Role
	Data  io.ReaderAt // the plain bytes, from 0; read more than once, from several goroutines
}

// ValueRows is the draft with the bytes of its large values (see RowValueBytes) as tensors, named by the path of the value. The
// draft is not changed, and is the result where there are none.
func (d *Draft) ValueRows() *Draft {
	moved := &Draft{Tensors: slices.Clip(d.Tensors)}
	moved.Root = moved.moveValues(d.Root, "", 0)
	if len(moved.Tensors) == len(d.Tensors) {
		return d
	}
	return moved
}

func (d *Draft) moveValues(n *Node, path string, depth int) *Node {
	if n == nil || depth > MaxDepth { // left to Check
		return n
	}
	c := *n
	if size := len(n.Value); n.Kind == Value && n.Params == nil && size >= RowValueBytes && size <= MaxValueBytes {
		c.Params, c.Value = []Param{{valueParam, len(d.Tensors)}}, nil
		d.Tensors = append(d.Tensors, DraftTensor{
			Names: []string{path}, DType: tensor.U8, Shape: tensor.Shape{size}, Role: tensor.Other, Data: bytes.NewReader(n.Value),
		})
		return &c
	}
	c.Items = slices.Clone(n.Items)
	for i, it := range c.Items {
		c.Items[i].Node = d.moveValues(it.Node, Join(path, it.Key), depth+1)
	}
	return &c
}

// Sealed is a draft as a manifest: its canonical form and digest, and the bytes of each of its rows.
type Sealed struct {
	Manifest *Manifest
	Encoded  []byte
	Digest   Digest
	Data     []io.ReaderAt // one a row of Manifest.Tensors
	Pending  []int         // rows that were not hashed, in order: their digest is zero, and Digest means nothing
	From     []int         // row -> a tensor of the draft with its bytes
}

// Seal reads and hashes every tensor and large value, on all cores, joins tensors with equal bytes, dtype and shape into one row, and puts
// rows and params in order. progress, when not nil, is told the bytes hashed so far; it is called from several goroutines.
func (d *Draft) Seal(ctx context.Context, progress func(bytes int)) (*Sealed, error) {
	d = d.ValueRows()
	all := make([]int, len(d.Tensors))
	for i := range all {
		all[i] = i
	}
	sums := make([]Digest, len(d.Tensors))
	if err := d.Hash(ctx, all, sums, progress); err != nil {
		return nil, err
	}
	return d.SealWith(sums)
}

// identity is what two tensors have in common that are one row.
type identity struct {
	sum   Digest
	dtype tensor.DType
	shape string
}

// SealWith is Seal with the tensors' digests known; a zero digest is a pending row, joined with no other. The draft is not
// changed and may be sealed again. Large values must be rows already (ValueRows).
func (d *Draft) SealWith(sums []Digest) (*Sealed, error) {
	type row struct {
		Tensor
		from int
	}
	var rows []*row
	rowOf := make([]*row, len(d.Tensors)) // draft index -> row
	byContent := map[identity]*row{}
	for i, t := range d.Tensors {
		id := identity{sums[i], t.DType, t.Shape.String()}
		known := sums[i] != Digest{}
		if r := byContent[id]; known && r != nil {
			if role, ok := r.Role.Merge(t.Role); ok {
				r.Role = role
				r.Names = append(r.Names, t.Names...)
				rowOf[i] = r
				continue
			}
		}
		r := &row{Tensor: Tensor{Names: append([]string(nil), t.Names...), DType: t.DType, Shape: t.Shape, Role: t.Role, SHA256: sums[i]}, from: i}
		if known {
			byContent[id] = r
		}
		rows = append(rows, r)
		rowOf[i] = r
	}
	for _, r := range rows {
		sort.Strings(r.Names)
	}
	sort.SliceStable(rows, func(i, j int) bool { return first(rows[i].Names) < first(rows[j].Names) })
	index := make(map[*row]int, len(rows))
	for i, r := range rows {
		index[r] = i
	}
	root, err := renumber(d.Root, func(i int) (int, bool) {
		if i < 0 || i >= len(rowOf) {
			return 0, false
		}
		return index[rowOf[i]], true
	})
	if err != nil {
		return nil, err
	}
	s := &Sealed{Manifest: &Manifest{Root: root, Tensors: make([]Tensor, len(rows))}, Data: make([]io.ReaderAt, len(rows)), From: make([]int, len(rows))}
	for i, r := range rows {
		s.Manifest.Tensors[i], s.Data[i], s.From[i] = r.Tensor, d.Tensors[r.from].Data, r.from
		if r.SHA256 == (Digest{}) {
			s.Pending = append(s.Pending, i)
		}
	}
	s.Encoded, s.Digest, err = s.Manifest.Encode()
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Twins reports whether the manifest has two rows that Seal makes one.
func (m *Manifest) Twins() bool {
	seen := make(map[identity][]tensor.Role, len(m.Tensors))
	for i := range m.Tensors {
		t := &m.Tensors[i]
		id := identity{t.SHA256, t.DType, t.Shape.String()}
		for _, role := range seen[id] {
			if _, ok := role.Merge(t.Role); ok {
				return true
			}
		}
		seen[id] = append(seen[id], t.Role)
	}
	return false
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// renumber copies a tree with every param moved from the draft's index to the row's, and sorts what has to be sorted.
func renumber(n *Node, to func(int) (int, bool)) (*Node, error) {
	if n == nil {
		return nil, nil
	}
	c := *n
	c.Params, c.Items = slices.Clone(n.Params), slices.Clone(n.Items)
	for i := range c.Params {
		row, ok := to(c.Params[i].Tensor)
		if !ok {
			return nil, fmt.Errorf("parameter %s points at no tensor of the draft", quote(c.Params[i].Name))
		}
		c.Params[i].Tensor = row
	}
	sort.Slice(c.Params, func(i, j int) bool { return c.Params[i].Name < c.Params[j].Name })
	if c.Kind == Dict {
		sort.Slice(c.Items, func(i, j int) bool { return c.Items[i].Key < c.Items[j].Key })
	}
	for i := range c.Items {
		var err error
		if c.Items[i].Node, err = renumber(c.Items[i].Node, to); err != nil {
			return nil, err
		}
	}
	return &c, nil
}

// Hash reads the tensors that which lists, several at a time, and sets their places of sums to their SHA-256. progress is as
// for Seal.
func (d *Draft) Hash(ctx context.Context, which []int, sums []Digest, progress func(bytes int)) error {
	var mu sync.Mutex
	done := 0
	count := func(n int) {
		if progress == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		done += n
		progress(done)
	}
	return parallel.Each(ctx, runtime.GOMAXPROCS(0), len(which), func(ctx context.Context) func(int) error {
		buf := make([]byte, 1<<20)
		return func(k int) error {
			i := which[k]
			t := &d.Tensors[i]
			var sum Digest
			err := region.Guard(func() (err error) { // the tensor may be a mapped one, put again
				sum, err = hashTensor(ctx, t, buf, count)
				return err
			})
			if err != nil {
				return fmt.Errorf("read tensor %s: %w", quote(first(t.Names)), err)
			}
			sums[i] = sum
			return nil
		}
	})
}

// hashTensor reads a tensor through buf, telling count about every part, until ctx ends.
func hashTensor(ctx context.Context, t *DraftTensor, buf []byte, count func(n int)) (Digest, error) {
	size, err := tensor.SizeBytes(t.DType, t.Shape)
	if err != nil {
		return Digest{}, err
	}
	h := sha256.New()
	for at := 0; at < size; {
		b := buf[:min(len(buf), size-at)]
		n, err := t.Data.ReadAt(b, int64(at))
		if n < len(b) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Digest{}, fmt.Errorf("source ends after %d of %d bytes: %w", at+n, size, err)
		}
		h.Write(b)
		count(n)
		at += n
		if err := ctx.Err(); err != nil {
			return Digest{}, err
		}
	}
	var d Digest
	h.Sum(d[:0])
	return d, nil
}
