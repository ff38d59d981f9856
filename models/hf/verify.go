package hf

import (
	"encoding/json"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// verify builds the pipeline on memory that stands for the files' bytes and throws it away: a directory whose weights do not
// fit its config is refused at put, not in the first worker. Building reads names, shapes and dtypes, and no weight.
func (im *Import) verify(dir, config string, root *manifest.Node) error {
	largest := 1
	for i := range im.Draft.Tensors {
		largest = max(largest, bytesOf(&im.Draft.Tensors[i]))
	}
	// Zeros that cost no memory, as many as the largest tensor needs: a file's own tensors need not be aligned.
	zeros, err := unix.Mmap(-1, 0, largest, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w", largest, err)
	}
	defer unix.Munmap(zeros)
	_, err = models.Build(root.Impl, &draftSource{im: im, config: config, zeros: zeros, n: root})
	if err != nil && zcerr.HintOf(err) == "" {
		err = zcerr.New(zcerr.KindOf(err), "%w", err).WithHint("the weights are not what %s says: take both from one download", config)
	}
	return zcerr.Wrap("import", dir, err)
}

// bytesOf is the size of a tensor; the reader of its file has checked that there is one.
func bytesOf(t *manifest.DraftTensor) int {
	n, _ := tensor.SizeBytes(t.DType, t.Shape)
	return n
}

// draftSource is a module of a draft as its constructor sees it.
type draftSource struct {
	im     *Import
	config string // the config.json that the model's config is from
	zeros  []byte
	n      *manifest.Node
	path   string
}

func (s *draftSource) Path() string {
	if s.path == "" {
		return "the pipeline"
	}
	return s.path
}

func (s *draftSource) Config(into any) error {
	if err := json.Unmarshal(s.n.Config, into); err != nil {
		return badJSON(s.config, err) // the other configs are of our own making
	}
	return nil
}

func (s *draftSource) find(name string) (*manifest.DraftTensor, bool) {
	for _, p := range s.n.Params {
		if p.Name == name {
			return &s.im.Draft.Tensors[p.Tensor], true
		}
	}
	return nil, false
}

func (s *draftSource) Has(name string) bool { _, ok := s.find(name); return ok }

func (s *draftSource) Names() []string {
	var names []string
	for _, p := range s.n.Params {
		names = append(names, p.Name)
	}
	return names
}

func (s *draftSource) Tensor(name string, want tensor.Shape) (tensor.View, tensor.Role, error) {
	st, ok := s.find(name)
	if !ok {
		return tensor.View{}, 0, zcerr.New(zcerr.Invalid, "%s: tensor %q %v is missing", s.Path(), name, want)
	}
	got := st.Shape
	if want != nil && !got.Fits(want) {
		return tensor.View{}, 0, zcerr.New(zcerr.Invalid, "%s is %v %v, config.json asks for %v", name, st.DType, got, want)
	}
	v, err := tensor.New(st.DType, st.Shape, s.zeros[:bytesOf(st)])
	return v, tensor.Other, err
}

func (s *draftSource) item(name string) *manifest.Node {
	for _, it := range s.n.Items {
		if it.Key == name {
			return it.Node
		}
	}
	return nil
}

func (s *draftSource) Child(name string) (models.Module, error) {
	n := s.item(name)
	if n == nil || n.Kind != manifest.Module {
		return nil, zcerr.New(zcerr.Invalid, "%s has no part %s", s.Path(), name)
	}
	path := strings.TrimPrefix(s.path+"."+name, ".")
	return models.Build(n.Impl, &draftSource{im: s.im, config: s.config, zeros: s.zeros, n: n, path: path})
}

func (s *draftSource) Value(name string) ([]byte, bool) {
	if n := s.item(name); n != nil && n.Kind == manifest.Value {
		return n.Value, true
	}
	return nil, false
}

// Tables implements models.TableSource.
func (s *draftSource) Tables(name string) ([]byte, error) {
	if name == text.PartTokenizer {
		return s.im.tables, nil
	}
	return nil, nil
}

func (s *draftSource) ChildNames() []string {
	var names []string
	for _, it := range s.n.Items {
		if it.Node.Kind == manifest.Module {
			names = append(names, it.Key)
		}
	}
	return names
}

func (s *draftSource) Device() gpu.Device { return nil }
