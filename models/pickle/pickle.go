package pickle

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"runtime"
	"sort"
	"strings"
	"sync"

	"github.com/zcstore/zcstore/internal/parallel"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// maxPickle is the size of the largest data.pkl that is read, in bytes.
const maxPickle = 256 << 20

// File is a state dict.
type File struct {
	Tensors []Tensor // in the order of the dict

	r       io.ReaderAt
	entries []entry // of the zip layout, whose checksums Verify compares
}

// Tensor is a tensor of a state dict.
type Tensor struct {
	Name   string
	DType  tensor.DType
	Shape  tensor.Shape
	Offset int64 // where the first element lies in the file. Tensors on the same bytes have the same

	storage storage
	offset  int64        // in the storage, in elements
	strides tensor.Shape // in elements; nil when the elements lie as they are to be stored
}

// span is where a storage lies.
type span struct{ start, size int64 }

// streamMagic begins a file of the stream layout: a pickle of one number.
const streamMagic = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."

// Is reports whether a file begins as those of torch.save do.
func Is(head []byte) bool {
	return bytes.HasPrefix(head, []byte("PK\x03\x04")) || bytes.HasPrefix(head, []byte(streamMagic))
}

// Read finds the tensors of a file of size bytes. Errors: Invalid, Unsupported, [GlobalError].
func Read(r io.ReaderAt, size int64) (*File, error) {
	head := make([]byte, min(size, int64(len(streamMagic))))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return nil, err
	}
	f := &File{r: r}
	var err error
	switch {
	case string(head) == streamMagic:
		err = f.readStream(size)
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		err = f.readZip(size)
	default:
		err = zcerr.New(zcerr.Invalid, "it is no file of torch.save").WithHint("download the file again; files of versions before 0.4 have to be saved again")
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) readZip(size int64) error {
	entries, err := readDirectory(f.r, size)
	if err != nil {
		return err
	}
	var pkl *entry
	root := ""
	for i := range entries {
		e := &entries[i]
		dir, base, _ := strings.Cut(e.name, "/")
		switch {
		case base == "data.pkl":
			if pkl != nil {
				return zcerr.New(zcerr.Invalid, "the zip archive has both %s and %s", pkl.name, e.name)
			}
			pkl, root = e, dir+"/"
		case strings.HasPrefix(base, "code/"):
			return zcerr.New(zcerr.Unsupported, "it is a TorchScript archive, not a state dict").WithHint(saveHint)
		}
	}
	if pkl == nil {
		return zcerr.New(zcerr.Invalid, "the zip archive has no data.pkl: it was not made by torch.save")
	}
	spans := map[string]span{}
	for _, e := range entries {
		rest, inside := strings.CutPrefix(e.name, root)
		key, isData := strings.CutPrefix(rest, "data/")
		if !inside || (!isData && rest != "byteorder" && rest != "data.pkl") {
			continue
		}
		if e.compressed {
			return zcerr.New(zcerr.Unsupported, "entry %s of the zip archive is compressed, and torch.save does not do that", e.name).WithHint(convertHint)
		}
		switch {
		case rest == "byteorder":
			order := make([]byte, min(e.size, 16))
			if _, err := f.r.ReadAt(order, e.start); err != nil {
				return err
			}
			if string(order) != "little" {
				return zcerr.New(zcerr.Unsupported, "its bytes are in the order %q; little is supported", order)
			}
		case isData:
			if _, dup := spans[key]; dup {
				return zcerr.New(zcerr.Invalid, "the zip archive has %s twice", e.name)
			}
			spans[key] = span{e.start, e.size}
			f.entries = append(f.entries, e)
		}
	}
	if pkl.size > maxPickle {
		return zcerr.New(zcerr.Invalid, "%s has %d bytes, at most %d are read", pkl.name, pkl.size, maxPickle)
	}
	if err := f.verify(context.Background(), *pkl, make([]byte, 64<<10)); err != nil {
		return err
	}
	v, err := newMachine(io.NewSectionReader(f.r, pkl.start, pkl.size), pkl.size).run()
	if err != nil {
		return err
	}
	return f.place(v, spans)
}

// readStream reads the layout of before 1.6: magic number, version, system, state dict, keys of its storages, and those one
// after the other, each with the number of its elements in front.
func (f *File) readStream(size int64) error {
	m := newMachine(io.NewSectionReader(f.r, 0, size), size)
	var parts [5]any
	for i := range parts {
		var err error
		if parts[i], err = m.run(); err != nil {
			return err
		}
	}
	if v, ok := parts[1].(int64); !ok || v != 1001 {
		return zcerr.New(zcerr.Unsupported, "version %v of the stream layout is not supported (1001 is)", parts[1]).WithHint(convertHint)
	}
	if sys, ok := parts[2].(*dict); !ok || sys.values["little_endian"] != true {
		return zcerr.New(zcerr.Unsupported, "its bytes are in another order than little-endian")
	}
	keys, ok := parts[4].(*list)
	if !ok {
		return damaged("a %s stands where the keys of storages are listed", describe(parts[4]))
	}
	sizes := map[string]int64{} // of an element, by storage
	if d, ok := parts[3].(*dict); ok {
		for _, v := range d.values {
			if t, ok := v.(*Tensor); ok {
				sizes[t.storage.key] = int64(storages[t.storage.kind].Size())
			}
		}
	}
	spans := map[string]span{}
	at := m.at
	for _, k := range keys.items {
		key, _ := k.(string)
		elem, used := sizes[key]
		if !used {
			return damaged("no tensor of the dict is on storage %q, so where the next one begins is not known", key)
		}
		var head [8]byte
		if _, err := f.r.ReadAt(head[:], at); err != nil {
			return damaged("it ends before storage %q", key)
		}
		n := binary.LittleEndian.Uint64(head[:])
		if _, dup := spans[key]; dup || n > uint64(size-at-8)/uint64(elem) {
			return damaged("storage %q has %d elements at byte %d of %d, or stands twice", key, n, at, size)
		}
		spans[key] = span{at + 8, int64(n) * elem}
		at += 8 + int64(n)*elem
	}
	return f.place(parts[3], spans)
}

// place finds the tensors of a state dict in the file.
func (f *File) place(v any, spans map[string]span) error {
	d, ok := v.(*dict)
	if !ok {
		return zcerr.New(zcerr.Unsupported, "it has a %s, not a dict of tensors", describe(v)).WithHint(saveHint)
	}
	for _, name := range d.keys {
		t, ok := d.values[name].(*Tensor)
		if !ok {
			return zcerr.New(zcerr.Unsupported, "%q is a %s, not a tensor", name, describe(d.values[name])).WithHint(saveHint)
		}
		c := *t // one tensor may stand under two names
		c.Name = name
		if err := c.place(spans); err != nil {
			return zcerr.New(zcerr.KindOf(err), "tensor %q: %w", name, err)
		}
		f.Tensors = append(f.Tensors, c)
	}
	return nil
}

func (t *Tensor) place(spans map[string]span) error {
	s, ok := spans[t.storage.key]
	if !ok {
		return zcerr.New(zcerr.Invalid, "storage %q is not in the file", t.storage.key).WithHint("download the file again")
	}
	elem := int64(t.DType.Size())
	if t.storage.kind != untyped {
		if hi, lo := bits.Mul64(uint64(t.storage.length), uint64(elem)); hi != 0 || lo != uint64(s.size) {
			return zcerr.New(zcerr.Invalid, "storage %q has %d bytes, the pickle says %d elements of %v", t.storage.key, s.size, t.storage.length, t.DType)
		}
	}
	have := s.size / elem
	n, ok := t.Shape.Elements()
	if _, err := tensor.SizeBytes(t.DType, t.Shape); err != nil || !ok {
		return zcerr.New(zcerr.Invalid, "%v of %v is no shape", t.Shape, t.DType)
	}
	if int64(n) > have {
		return zcerr.New(zcerr.Unsupported, "%v has %d elements on a storage of %d: it repeats some", t.Shape, n, have).WithHint("save it with .contiguous()")
	}
	if t.offset < 0 || t.offset > have {
		return zcerr.New(zcerr.Invalid, "it begins at element %d of a storage of %d", t.offset, have)
	}
	last, dense, want := t.offset, true, 1
	for i := len(t.Shape) - 1; i >= 0 && n > 0; i-- {
		if t.Shape[i] == 1 {
			continue
		}
		dense = dense && t.strides[i] == want
		want *= t.Shape[i]
		hi, lo := bits.Mul64(uint64(t.Shape[i]-1), uint64(t.strides[i]))
		if t.strides[i] < 0 || hi != 0 || lo > uint64(have) {
			last = have
			break
		}
		if last += int64(lo); last >= have {
			break
		}
	}
	if n > 0 && last >= have {
		return zcerr.New(zcerr.Invalid, "%v with strides %v from element %d on ends outside of its storage of %d", t.Shape, t.strides, t.offset, have)
	}
	if dense {
		t.strides = nil
	}
	t.Offset = s.start + t.offset*elem
	return nil
}

// Data is the plain bytes of a tensor, row by row: a section of the file where they lie so, else packed in memory when they
// are first read.
func (f *File) Data(t *Tensor) io.ReaderAt {
	n, _ := tensor.SizeBytes(t.DType, t.Shape) // checked by place
	if t.strides == nil {
		return io.NewSectionReader(f.r, t.Offset, int64(n))
	}
	return &packed{read: sync.OnceValues(func() ([]byte, error) { return f.pack(t, n) })}
}

// Contiguous reports whether the tensor's bytes lie in the file as they are to be stored.
func (t *Tensor) Contiguous() bool { return t.strides == nil }

// packed is a tensor whose elements lie apart in the file.
type packed struct{ read func() ([]byte, error) }

func (p *packed) ReadAt(b []byte, at int64) (int, error) {
	all, err := p.read()
	if err != nil {
		return 0, err
	}
	return bytes.NewReader(all).ReadAt(b, at)
}

// pack reads the part of the storage that the tensor lies in and copies its elements.
func (f *File) pack(t *Tensor, size int) ([]byte, error) {
	reach := 1
	for i, d := range t.Shape {
		reach += (d - 1) * t.strides[i]
	}
	elem := t.DType.Size()
	from := make([]byte, reach*elem)
	if _, err := f.r.ReadAt(from, t.Offset); err != nil {
		return nil, err
	}
	out := make([]byte, 0, size)
	index, at := make([]int, len(t.Shape)), 0
	for len(out) < size {
		out = append(out, from[at*elem:(at+1)*elem]...)
		for i := len(index) - 1; i >= 0; i-- {
			index[i]++
			at += t.strides[i]
			if index[i] < t.Shape[i] {
				break
			}
			at -= index[i] * t.strides[i]
			index[i] = 0
		}
	}
	return out, nil
}

// Verify reads the storages of a zip archive, on all cores, and compares them with its checksums. The stream layout has none.
func (f *File) Verify(ctx context.Context) error {
	entries := f.entries
	sort.Slice(entries, func(i, j int) bool { return entries[i].size > entries[j].size }) // so that none is left for the end
	return parallel.Each(ctx, runtime.GOMAXPROCS(0), len(entries), func(ctx context.Context) func(int) error {
		buf := make([]byte, 256<<10)
		return func(i int) error { return f.verify(ctx, entries[i], buf) }
	})
}

// verify reads an entry through buf and compares its checksum.
func (f *File) verify(ctx context.Context, e entry, buf []byte) error {
	sum := uint32(0)
	for at := int64(0); at < e.size; {
		b := buf[:min(int64(len(buf)), e.size-at)]
		if n, err := f.r.ReadAt(b, e.start+at); n < len(b) {
			return fmt.Errorf("read %s: %w", e.name, err)
		}
		sum = crc32.Update(sum, crc32.IEEETable, b)
		at += int64(len(b))
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if sum != e.crc {
		return zcerr.New(zcerr.Invalid, "%s has the checksum %08x, the zip archive says %08x: it is damaged", e.name, sum, e.crc).WithHint("download the file again")
	}
	return nil
}
