package manifest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sort"
	"sync"

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

// Sealed is a draft with every tensor hashed: the manifest, its canonical form and digest, and the bytes of each of its rows.
type Sealed struct {
	Manifest *Manifest
	Encoded  []byte
	Digest   Digest
	Data     []io.ReaderAt // one a row of Manifest.Tensors
}

// Seal reads and hashes every tensor, on all cores, joins tensors with equal bytes, dtype and shape into one row, and puts
// rows and params in order. progress, when not nil, is told the bytes hashed so far; it is called from several goroutines.
// The draft's tree is taken over and changed.
func (d *Draft) Seal(ctx context.Context, progress func(bytes int)) (*Sealed, error) {
	sums, err := d.hash(ctx, progress)
	if err != nil {
		return nil, err
	}
	type identity struct {
		sum   Digest
		dtype tensor.DType
		shape string
	}
	type row struct {
		Tensor
		data io.ReaderAt
	}
	var rows []*row
	rowOf := make([]*row, len(d.Tensors)) // draft index -> row
	byContent := map[identity]*row{}
	for i, t := range d.Tensors {
		id := identity{sums[i], t.DType, t.Shape.String()}
		if r := byContent[id]; r != nil {
			if role, ok := r.Role.Merge(t.Role); ok {
				r.Role = role
				r.Names = append(r.Names, t.Names...)
				rowOf[i] = r
				continue
			}
		}
		r := &row{Tensor: Tensor{Names: append([]string(nil), t.Names...), DType: t.DType, Shape: t.Shape, Role: t.Role, SHA256: sums[i]}, data: t.Data}
		byContent[id] = r
		rows = append(rows, r)
		rowOf[i] = r
	}
	for _, r := range rows {
		sort.Strings(r.Names)
	}
	sort.SliceStable(rows, func(i, j int) bool { return first(rows[i].Names) < first(rows[j].Names) })
	index := make(map[*row]int, len(rows))
	s := &Sealed{Manifest: &Manifest{Root: d.Root, Tensors: make([]Tensor, len(rows))}, Data: make([]io.ReaderAt, len(rows))}
	for i, r := range rows {
		index[r], s.Manifest.Tensors[i], s.Data[i] = i, r.Tensor, r.data
	}
	if err := renumber(d.Root, func(i int) (int, bool) {
		if i < 0 || i >= len(rowOf) {
			return 0, false
		}
		return index[rowOf[i]], true
	}); err != nil {
		return nil, err
	}
	s.Encoded, s.Digest, err = s.Manifest.Encode()
	if err != nil {
		return nil, err
	}
	return s, nil
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// renumber moves every param from the draft's index to the row's, and sorts what has to be sorted.
func renumber(n *Node, to func(int) (int, bool)) error {
	if n == nil {
		return nil
	}
	for i := range n.Params {
		row, ok := to(n.Params[i].Tensor)
		if !ok {
			return fmt.Errorf("parameter %s points at no tensor of the draft", quote(n.Params[i].Name))
		}
		n.Params[i].Tensor = row
	}
	sort.Slice(n.Params, func(i, j int) bool { return n.Params[i].Name < n.Params[j].Name })
	if n.Kind == Dict {
		sort.Slice(n.Items, func(i, j int) bool { return n.Items[i].Key < n.Items[j].Key })
	}
	for _, it := range n.Items {
		if err := renumber(it.Node, to); err != nil {
			return err
		}
	}
	return nil
}

// hash gives the SHA-256 of every tensor, several tensors at a time.
func (d *Draft) hash(ctx context.Context, progress func(int)) ([]Digest, error) {
	sums := make([]Digest, len(d.Tensors))
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
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
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			buf := make([]byte, 1<<20)
			for i := range next {
				t := &d.Tensors[i]
				sum, err := hashTensor(ctx, t, buf, count)
				if err != nil {
					cancel(fmt.Errorf("read tensor %s: %w", quote(first(t.Names)), err))
					continue
				}
				sums[i] = sum
			}
		}()
	}
feed:
	for i := range d.Tensors {
		select {
		case next <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(next)
	wg.Wait()
	return sums, context.Cause(ctx)
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
