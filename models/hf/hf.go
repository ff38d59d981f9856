// Package hf imports what people have on disk: Hugging Face and sentence-transformers directories, and single files of weights,
// safetensors or PyTorch's. It turns them into drafts that a put streams straight from the files; nothing is loaded into memory.
//
// The tree of a directory is one module of kind "text": its children are the model, the tokenizer's files as values (older ones
// as the tokenizer.json that they come to), and the modules that sentence-transformers adds. Weights are stored as they are (F32, F16, BF16), under the checkpoint's own names,
// with the role that the architecture gives them.
package hf

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
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
	Kind  string   // "text": a pipeline; "tensors": a bare file of weights
	Notes []string // what was seen and left alone, for people

	files  []*os.File
	tables []byte // of the tokenizer, so that it is read once
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
		return nil, zcerr.New(zcerr.NotFound, "%s is not there", path).WithHint("give a Hugging Face or sentence-transformers directory, or a .safetensors or PyTorch file")
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
	root := &manifest.Node{Kind: manifest.Module, Impl: text.Kind}
	im.Draft = &manifest.Draft{Root: root}
	var cfg text.Config
	config := "" // the file that the model's sizes are from
	if len(modules) > 0 && modules[0].kind() == staticKind {
		err = im.static(root, filepath.Join(dir, filepath.FromSlash(modules[0].Path)), &cfg)
	} else {
		config, err = im.transformer(root, dir, modules, &cfg)
	}
	if err != nil {
		return err
	}
	for _, m := range modules[min(1, len(modules)):] {
		node, err := im.module(m, dir)
		if err != nil {
			return err
		}
		root.Items = append(root.Items, manifest.Item{Key: m.key(), Node: node})
	}
	if err := readPrompts(dir, &cfg); err != nil {
		return err
	}
	if root.Config, err = canonical(cfg); err != nil {
		return err
	}
	return im.verify(dir, config, root)
}

// transformer adds the model of a directory and its tokenizer, and says which config.json they are of.
func (im *Import) transformer(root *manifest.Node, dir string, modules []module, cfg *text.Config) (string, error) {
	if len(modules) > 0 {
		dir = filepath.Join(dir, filepath.FromSlash(modules[0].Path))
	}
	config, err := readConfig(dir)
	if err != nil {
		return "", err
	}
	a, ok := arch.Find(config.ModelType)
	if !ok {
		return "", zcerr.New(zcerr.Unsupported, "%s: model_type %q is not supported", config.path, config.ModelType).
			WithHint("supported are: %s", strings.Join(arch.Types(), ", "))
	}
	var wrong *json.UnmarshalTypeError
	if config.sizes, err = a.Sizes(config.canonical); errors.As(err, &wrong) {
		return "", badJSON(config.path, err)
	} else if err != nil {
		return "", zcerr.New(zcerr.KindOf(err), "%s: %w", config.path, err).WithHint("the model of another directory, or a config.json that was edited: download it again")
	}
	if err := config.task(modules, cfg); err != nil {
		return "", err
	}
	model := &manifest.Node{Kind: manifest.Module, Impl: a.Kind, Config: config.canonical}
	w := weights{im: im}
	if err := w.directory(dir); err != nil {
		return "", err
	}
	w.into(model, "", a.Roles)
	root.Items = append(root.Items, manifest.Item{Key: text.PartModel, Node: model})
	return config.path, im.tokenizer(root, dir, config, cfg)
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
	ID2Label      map[string]string `json:"id2label"`
	NumLabels     int               `json:"num_labels"`
	ProblemType   string            `json:"problem_type"`

	// How a cross-encoder makes scores, now and in older files.
	SentenceTransformers struct {
		Activation string `json:"activation_fn"`
	} `json:"sentence_transformers"`
	CrossEncoderActivation string `json:"sbert_ce_default_activation_function"`

	sizes     arch.Sizes // of the model; the zero ones of what has no such limits
	path      string
	canonical json.RawMessage
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
	c := &config{path: path}
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
