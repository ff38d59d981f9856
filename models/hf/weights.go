package hf

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/pickle"
	"github.com/zcstore/zcstore/models/safetensors"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// weights collects tensors of files.
type weights struct {
	im    *Import
	found []stored
	from  map[string]string // tensor name -> file
}

// stored is a tensor in a file.
type stored struct {
	name  string
	dtype tensor.DType
	shape tensor.Shape
	data  io.ReaderAt // nil for a stream
	at    place       // where it lies; zero for a stream and for what has to be packed
}

// place is the same for two tensors on the same bytes.
type place struct {
	file  *os.File
	start int64
}

// directory finds the weights of a model directory: one file, or shards with an index; safetensors before PyTorch's.
func (w *weights) directory(dir string) error {
	// Whatever has the name counts: a link to a file that was not downloaded is told of when it is opened.
	for _, name := range []string{"model.safetensors", "pytorch_model.bin"} {
		if index := filepath.Join(dir, name+".index.json"); exists(index) {
			return w.shards(dir, index)
		}
		if one := filepath.Join(dir, name); exists(one) {
			return w.file(one)
		}
	}
	return zcerr.New(zcerr.Invalid, "%s has no weights: neither model.safetensors nor pytorch_model.bin, and no index of one", dir).
		WithHint("download the weights into the directory, as safetensors where they are published so")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}

// shards reads an index and the files it names. Every tensor must be where the index says, and nowhere else.
func (w *weights) shards(dir, path string) error {
	b, err := readSmall(path)
	if err != nil {
		return err
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return badJSON(path, err)
	}
	if len(index.WeightMap) == 0 {
		return zcerr.New(zcerr.Invalid, "%s: weight_map is missing or empty", path)
	}
	var files []string
	for name, file := range index.WeightMap {
		if file == "" || file != filepath.Base(file) || file == "." || file == ".." {
			return zcerr.New(zcerr.Invalid, "%s: weight_map[%q] is %q, which is no file name in the directory", path, name, file)
		}
		if !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	sort.Strings(files)
	for _, file := range files {
		err := w.file(filepath.Join(dir, file))
		if errors.Is(err, os.ErrNotExist) {
			return zcerr.New(zcerr.Invalid, "shard %s is missing, and %s names it", filepath.Join(dir, file), filepath.Base(path)).WithHint("download the file again into %s", dir)
		}
		if err != nil {
			return err
		}
	}
	for name, file := range index.WeightMap {
		switch at := filepath.Base(w.from[name]); {
		case w.from[name] == "":
			return zcerr.New(zcerr.Invalid, "tensor %q is not in shard %s, where %s has it", name, file, filepath.Base(path))
		case at != file:
			return zcerr.New(zcerr.Invalid, "tensor %q is in shard %s, %s says %s", name, at, filepath.Base(path), file)
		}
	}
	for name, file := range w.from {
		if _, ok := index.WeightMap[name]; !ok {
			return zcerr.New(zcerr.Invalid, "tensor %q of shard %s is not in %s", name, filepath.Base(file), filepath.Base(path))
		}
	}
	return nil
}

// file adds the tensors of one file.
func (w *weights) file(path string) error {
	f, st, err := openRegular(path)
	if err != nil {
		return err
	}
	w.im.files = append(w.im.files, f)
	head := make([]byte, 16)
	n, _ := f.ReadAt(head, 0)
	if pickle.Is(head[:n]) {
		return w.pickled(path, f, st.Size())
	}
	h, err := safetensors.Read(f, st.Size())
	if err != nil {
		return zcerr.New(zcerr.Invalid, "%s: %w", path, err).WithHint("the file is damaged, or neither safetensors nor of torch.save; download it again")
	}
	return w.entries(path, h, f)
}

// pickled adds the tensors of a file of torch.save.
func (w *weights) pickled(path string, f *os.File, size int64) error {
	p, err := pickle.Read(f, size)
	if err == nil {
		err = p.Verify(context.Background())
	}
	if err != nil {
		return zcerr.Wrap("read", path, err)
	}
	for i := range p.Tensors {
		t := &p.Tensors[i]
		s := stored{name: t.Name, dtype: t.DType, shape: t.Shape, data: p.Data(t)}
		if t.Contiguous() {
			s.at = place{f, t.Offset}
		}
		if err := w.add(path, s); err != nil {
			return err
		}
	}
	return nil
}

// entries adds the tensors of a header; file is nil for a stream.
func (w *weights) entries(path string, h *safetensors.Header, f *os.File) error {
	for _, e := range h.Entries {
		if manifest.CheckTensorName(e.Name) != nil && isPadding(e.Name) {
			continue
		}
		s := stored{name: e.Name, dtype: e.DType, shape: e.Shape}
		if f != nil {
			s.at = place{f, h.DataStart + e.Begin}
			s.data = io.NewSectionReader(f, s.at.start, e.SizeBytes())
		}
		if err := w.add(path, s); err != nil {
			return err
		}
	}
	return nil
}

func (w *weights) add(path string, s stored) error {
	if err := manifest.CheckTensorName(s.name); err != nil {
		return zcerr.New(zcerr.Invalid, "%s: %w", path, err)
	}
	if other, dup := w.from[s.name]; dup {
		return zcerr.New(zcerr.Invalid, "tensor %q is in %s and in %s", s.name, other, path)
	}
	if w.from == nil {
		w.from = map[string]string{}
	}
	w.from[s.name] = path
	w.found = append(w.found, s)
	return nil
}

// into makes the tensors found the params of a module at a path. Tensors on the same bytes are one of the draft.
func (w *weights) into(n *manifest.Node, path string, roles func(string) tensor.Role) {
	d := w.im.Draft
	type same struct {
		place
		dtype tensor.DType
		shape string
	}
	ties := map[same]int{}
	for _, s := range w.found {
		role := roles(s.name)
		if len(s.shape) != 2 && (role == tensor.Linear || role == tensor.LinearT || role == tensor.Lookup) {
			role = tensor.Other
		}
		name := s.name
		if path != "" {
			name = manifest.Join(path, s.name)
		}
		key := same{s.at, s.dtype, s.shape.String()}
		if i, tied := ties[key]; tied && s.at != (place{}) {
			t := &d.Tensors[i]
			if merged, ok := t.Role.Merge(role); ok {
				t.Role, t.Names = merged, append(t.Names, name)
				n.Params = append(n.Params, manifest.Param{Name: s.name, Tensor: i})
				continue
			}
		}
		ties[key] = len(d.Tensors)
		n.Params = append(n.Params, manifest.Param{Name: s.name, Tensor: len(d.Tensors)})
		d.Tensors = append(d.Tensors, manifest.DraftTensor{Names: []string{name}, DType: s.dtype, Shape: s.shape, Role: role, Data: s.data})
	}
}
