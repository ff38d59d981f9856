// Package hf imports what people have on disk: Hugging Face and sentence-transformers directories, and single safetensors
// files. It turns them into drafts that a put streams straight from the files; nothing is loaded into memory.
//
// The tree of a directory is one module of kind "text": its children are the model, the tokenizer's files as values, and the
// modules that sentence-transformers adds. Weights are stored as they are (F32, F16, BF16), under the checkpoint's own names,
// with the role that the architecture gives them.
package hf

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models/arch"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Import is a draft with the files behind it.
type Import struct {
	Draft *manifest.Draft
	Kind  string   // "text": a pipeline; "tensors": a bare safetensors file
	Notes []string // what was seen and left alone, for people

	files []*os.File
}

// Close closes the files. The draft must not be used any more.
func (im *Import) Close() error {
	var errs []error
	for _, f := range im.files {
		errs = append(errs, f.Close())
	}
	im.files = nil
	return errors.Join(errs...)
}

const maxJSON = 64 << 20

// TensorsKind is the module kind of a bare safetensors file: weights without a model.
const TensorsKind = "tensors"

// Open imports a directory or a file. Errors: NotFound, Invalid (which file, which key, what to do), Unsupported (an
// architecture or format that is not built).
func Open(path string) (*Import, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, zcerr.New(zcerr.NotFound, "%s is not there", path).WithHint("give a Hugging Face or sentence-transformers directory, or a .safetensors file")
	}
	if err != nil {
		return nil, cannotRead(path, err)
	}
	im := &Import{}
	if st.IsDir() {
		err = im.directory(path)
	} else {
		err = im.single(path)
	}
	if err != nil {
		_ = im.Close()
		return nil, err
	}
	return im, nil
}

// single imports one safetensors file as tensors without a model.
func (im *Import) single(path string) error {
	im.Kind = TensorsKind
	root := &manifest.Node{Kind: manifest.Module, Impl: TensorsKind, Config: json.RawMessage("{}")}
	im.Draft = &manifest.Draft{Root: root}
	w := weights{im: im}
	if err := w.file(path); err != nil {
		return err
	}
	if len(w.found) == 0 {
		return zcerr.New(zcerr.Invalid, "%s has no tensors", path)
	}
	w.into(root, "", func(string) tensor.Role { return tensor.Other })
	return nil
}

// directory imports a model directory.
func (im *Import) directory(dir string) error {
	im.Kind = text.Kind
	modules, err := readModules(dir)
	if err != nil {
		return err
	}
	modelDir := dir
	for _, m := range modules {
		if m.kind() == "Transformer" {
			modelDir = filepath.Join(dir, filepath.FromSlash(m.Path))
		}
	}
	config, err := readConfig(modelDir)
	if err != nil {
		return err
	}
	a, ok := arch.Find(config.ModelType)
	if !ok {
		return zcerr.New(zcerr.Unsupported, "%s: model_type %q is not supported", filepath.Join(modelDir, "config.json"), config.ModelType).
			WithHint("supported are: %s", strings.Join(arch.Types(), ", "))
	}
	cfg := text.Config{Task: task(config, modules)}
	root := &manifest.Node{Kind: manifest.Module, Impl: text.Kind}
	im.Draft = &manifest.Draft{Root: root}
	model := &manifest.Node{Kind: manifest.Module, Impl: a.Kind, Config: config.canonical}
	w := weights{im: im}
	if err := w.directory(modelDir); err != nil {
		return err
	}
	w.into(model, "", a.Roles)
	root.Items = append(root.Items, manifest.Item{Key: text.PartModel, Node: model})
	if err := im.tokenizer(root, modelDir, config, &cfg); err != nil {
		return err
	}
	for _, m := range modules {
		if m.kind() == "Transformer" {
			continue
		}
		node, err := m.node(dir)
		if err != nil {
			return err
		}
		root.Items = append(root.Items, manifest.Item{Key: strconv.Itoa(m.Idx) + "_" + m.kind(), Node: node})
	}
	if root.Config, err = canonical(cfg); err != nil {
		return err
	}
	return w.verify(dir, config.path, root)
}

func canonical(v any) (json.RawMessage, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return manifest.CanonicalJSON(b)
}

// config is config.json as far as the importer itself reads it.
type config struct {
	ModelType     string            `json:"model_type"`
	Architectures []string          `json:"architectures"`
	MaxPositions  int               `json:"max_position_embeddings"`
	VocabSize     int               `json:"vocab_size"`
	ID2Label      map[string]string `json:"id2label"`
	path          string
	canonical     json.RawMessage
}

func readConfig(dir string) (*config, error) {
	path := filepath.Join(dir, "config.json")
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, zcerr.New(zcerr.Invalid, "%s has no config.json", dir).WithHint("a model directory has config.json and model.safetensors (or its index) in it")
	}
	if err != nil {
		return nil, err
	}
	c := &config{path: path, MaxPositions: 512} // BERT's, as for every key left out
	if err := json.Unmarshal(b, c); err != nil {
		return nil, badJSON(path, err)
	}
	if c.canonical, err = manifest.CanonicalJSON(b); err != nil {
		return nil, badJSON(path, err)
	}
	if c.ModelType == "" {
		return nil, zcerr.New(zcerr.Invalid, "%s: model_type is missing", path).WithHint("it says which architecture the weights are of, as in \"model_type\": \"bert\"")
	}
	return c, nil
}

// readSmall reads a text file of a model directory whole. The error is an os.ErrNotExist where nothing has the name, else it
// has a kind.
func readSmall(path string) ([]byte, error) {
	f, st, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st.Size() > maxJSON {
		return nil, zcerr.New(zcerr.Invalid, "%s has %d bytes, at most %d are read", path, st.Size(), maxJSON)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxJSON))
	if err != nil {
		return nil, cannotRead(path, err)
	}
	return b, nil
}

// task is what the directory is for: its modules and architectures say it.
func task(c *config, modules []module) string {
	if len(modules) > 0 {
		return text.Embed
	}
	for _, a := range c.Architectures {
		if strings.HasSuffix(a, "ForSequenceClassification") {
			return text.Classify
		}
	}
	return text.Encode
}
