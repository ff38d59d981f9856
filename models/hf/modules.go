package hf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models/arch"
	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// module is an entry of modules.json.
type module struct {
	Idx  int    `json:"idx"`
	Name string `json:"name"`
	Path string `json:"path"`
	Type string `json:"type"`
}

func (m module) kind() string { return lastPart(m.Type) }

// key is the name of the module in a stored pipeline.
func (m module) key() string { return strconv.Itoa(m.Idx) + "_" + m.kind() }

func (m module) file(dir, name string) string {
	return filepath.Join(dir, filepath.FromSlash(m.Path), name)
}

// The first modules of a pipeline.
const (
	transformerKind = "Transformer"
	staticKind      = "StaticEmbedding"
)

// moduleKinds are those behind the first.
var moduleKinds = []string{"Pooling", "Dense", "LayerNorm", "Normalize", "Dropout"}

// readModules reads modules.json of sentence-transformers; none without the file.
func readModules(dir string) ([]module, error) {
	path := filepath.Join(dir, "modules.json")
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []module
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, badJSON(path, err)
	}
	for i, m := range list {
		if m.Idx != i {
			return nil, zcerr.New(zcerr.Invalid, "%s: entry %d has idx %d", path, i, m.Idx)
		}
		if !filepath.IsLocal(m.Path) && m.Path != "" {
			return nil, zcerr.New(zcerr.Invalid, "%s: path %q leaves the directory", path, m.Path)
		}
		k := m.kind()
		if first := k == transformerKind || k == staticKind; first != (i == 0) {
			return nil, zcerr.New(zcerr.Unsupported, "%s: entry %d is a %s; a pipeline begins with its one Transformer or StaticEmbedding", path, i, k)
		}
		if i > 0 && !slices.Contains(moduleKinds, k) {
			return nil, zcerr.New(zcerr.Unsupported, "%s: module type %q is not supported", path, m.Type).
				WithHint("supported are %s, %s, %s", transformerKind, staticKind, strings.Join(moduleKinds, ", "))
		}
		if i > 0 && (k == "Pooling") != (i == 1 && list[0].kind() == transformerKind) {
			return nil, zcerr.New(zcerr.Unsupported, "%s: entry %d is a %s after a %s; the Pooling is the one entry behind the Transformer", path, i, k, list[i-1].kind())
		}
	}
	if len(list) == 0 {
		return nil, zcerr.New(zcerr.Invalid, "%s lists no modules", path)
	}
	return list, nil
}

// layer is a module that is one of models/nn.
func layer(kind string, config any) (*manifest.Node, error) {
	b, err := canonical(config)
	return &manifest.Node{Kind: manifest.Module, Impl: kind, Config: b}, err
}

// none is the config of a layer that has none.
type none struct{}

// module makes the node of a module behind the first.
func (im *Import) module(m module, dir string) (*manifest.Node, error) {
	switch m.kind() {
	case "Normalize":
		return layer(text.NormalizeKind, none{})
	case "Pooling":
		cfg, err := readPooling(m.file(dir, "config.json"))
		if err != nil {
			return nil, err
		}
		return layer(text.PoolingKind, cfg)
	case "Dropout":
		return layer("nn.Dropout", none{})
	case "LayerNorm":
		var c struct {
			Dimension int `json:"dimension"`
		}
		if err := readModule(m.file(dir, "config.json"), &c); err != nil {
			return nil, err
		}
		n, err := layer("nn.LayerNorm", map[string]int{"normalized_shape": c.Dimension})
		if err != nil {
			return nil, err
		}
		return n, im.layerWeights(n, m, dir, m.key(), "norm.")
	case "Dense":
		return im.dense(m, dir)
	}
	return nil, fmt.Errorf("module %s", m.kind()) // readModules has refused it
}

// activations are the layers of torch.nn that a Dense may have behind its linear one.
var activations = map[string]string{"Tanh": "nn.Tanh", "ReLU": "nn.ReLU", "GELU": "nn.GELU", "SiLU": "nn.SiLU", "Sigmoid": "nn.Sigmoid", "Identity": "nn.Identity"}

// dense is a linear layer and an activation.
func (im *Import) dense(m module, dir string) (*manifest.Node, error) {
	path := m.file(dir, "config.json")
	c := struct {
		In         int    `json:"in_features"`
		Out        int    `json:"out_features"`
		Bias       bool   `json:"bias"`
		Activation string `json:"activation_function"`
		Input      string `json:"module_input_name"`
		Output     string `json:"module_output_name"`
	}{Bias: true, Activation: "Tanh"}
	if err := readModule(path, &c); err != nil {
		return nil, err
	}
	for _, name := range []string{c.Input, c.Output} {
		if name != "" && name != "sentence_embedding" {
			return nil, zcerr.New(zcerr.Unsupported, "%s: a Dense of %q is not supported (sentence_embedding is)", path, name)
		}
	}
	act, ok := activations[lastPart(c.Activation)]
	if !ok {
		return nil, zcerr.New(zcerr.Unsupported, "%s: activation_function %q is not supported", path, c.Activation).
			WithHint("those of torch.nn are: Tanh, ReLU, GELU, SiLU, Sigmoid, Identity")
	}
	linear, err := layer("nn.Linear", map[string]any{"in_features": c.In, "out_features": c.Out, "bias": c.Bias})
	if err != nil {
		return nil, err
	}
	if err := im.layerWeights(linear, m, dir, manifest.Join(m.key(), "0"), "linear."); err != nil {
		return nil, err
	}
	for i, p := range linear.Params {
		if p.Name == "weight" {
			im.Draft.Tensors[linear.Params[i].Tensor].Role = tensor.Linear
		}
	}
	activation, err := layer(act, none{})
	if err != nil {
		return nil, err
	}
	n, err := layer("nn.Sequential", none{})
	n.Items = []manifest.Item{{Key: "0", Node: linear}, {Key: "1", Node: activation}}
	return n, err
}

// layerWeights makes the tensors of a module's own folder, whose names begin with prefix, the params of its layer.
func (im *Import) layerWeights(n *manifest.Node, m module, dir, path, prefix string) error {
	w := weights{im: im}
	if err := w.directory(m.file(dir, "")); err != nil {
		return err
	}
	for i := range w.found {
		w.found[i].name = strings.TrimPrefix(w.found[i].name, prefix)
	}
	w.into(n, path, func(string) tensor.Role { return tensor.Other })
	return nil
}

// static adds the vectors and the tokenizer of a StaticEmbedding.
func (im *Import) static(root *manifest.Node, dir string, cfg *text.Config) error {
	cfg.Task, cfg.NoSpecial = text.Embed, true
	w := weights{im: im}
	if err := w.directory(dir); err != nil {
		return err
	}
	if len(w.found) != 1 || len(w.found[0].shape) != 2 || w.found[0].name != "embedding.weight" && w.found[0].name != "embeddings" {
		return zcerr.New(zcerr.Invalid, "%s: a StaticEmbedding has one table, embedding.weight or embeddings; found %d tensors", dir, len(w.found))
	}
	w.found[0].name = "weight"
	shape := w.found[0].shape
	n, err := layer("nn.Embedding", map[string]int{"num_embeddings": shape[0], "embedding_dim": shape[1]})
	if err != nil {
		return err
	}
	w.into(n, text.PartModel, func(string) tensor.Role { return tensor.Lookup })
	root.Items = append(root.Items, manifest.Item{Key: text.PartModel, Node: n})
	return im.tokenizer(root, dir, &config{path: filepath.Join(dir, "model.safetensors"), sizes: arch.Sizes{Vocab: shape[0]}}, cfg)
}

// readModule reads the config.json of a module's folder.
func readModule(path string, into any) error {
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return zcerr.New(zcerr.Invalid, "%s is not there, and modules.json has a module in that folder", path).WithHint("download the file again")
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return badJSON(path, err)
	}
	return nil
}

type legacyMode struct{ key, mode string }

// legacyModes are the older keys of pooling modes, in the order in which their vectors follow each other.
var legacyModes = []legacyMode{
	{"pooling_mode_cls_token", text.PoolCLS}, {"pooling_mode_max_tokens", text.PoolMax}, {"pooling_mode_mean_tokens", text.PoolMean},
	{"pooling_mode_mean_sqrt_len_tokens", text.PoolSqrtLen}, {"pooling_mode_weightedmean_tokens", text.PoolWeighted}, {"pooling_mode_lasttoken", text.PoolLast},
}

// readPooling takes both spellings: pooling_mode with one mode or several, and the older booleans, one a mode.
func readPooling(path string) (text.PoolingConfig, error) {
	var c struct {
		Modes   text.Modes `json:"pooling_mode"`
		Dim     int        `json:"embedding_dimension"`
		OldDim  int        `json:"word_embedding_dimension"`
		Include *bool      `json:"include_prompt"`
	}
	if err := readModule(path, &c); err != nil {
		return text.PoolingConfig{}, err
	}
	var raw map[string]json.RawMessage
	if err := readModule(path, &raw); err != nil {
		return text.PoolingConfig{}, err
	}
	cfg := text.PoolingConfig{Modes: c.Modes, Dim: max(c.Dim, c.OldDim), SkipPrompt: c.Include != nil && !*c.Include}
	for _, l := range legacyModes {
		if len(c.Modes) == 0 && string(raw[l.key]) == "true" {
			cfg.Modes = append(cfg.Modes, l.mode)
		}
	}
	for key, v := range raw { // a mode that nobody here knows is not left out
		mode, isMode := strings.CutPrefix(key, "pooling_mode_")
		if isMode && string(v) == "true" && !slices.ContainsFunc(legacyModes, func(l legacyMode) bool { return l.key == key }) {
			cfg.Modes = append(cfg.Modes, mode)
		}
	}
	if len(cfg.Modes) == 0 {
		cfg.Modes = text.Modes{text.PoolMean}
	}
	for _, mode := range cfg.Modes {
		if !slices.Contains(text.AllModes, mode) {
			return text.PoolingConfig{}, zcerr.New(zcerr.Unsupported, "%s: pooling mode %q is not supported", path, mode).
				WithHint("supported are %s", strings.Join(text.AllModes, ", "))
		}
	}
	return cfg, nil
}

// readPrompts reads config_sentence_transformers.json; without it there are no prompts.
func readPrompts(dir string, cfg *text.Config) error {
	path := filepath.Join(dir, "config_sentence_transformers.json")
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var c struct {
		Prompts map[string]string `json:"prompts"`
		Default string            `json:"default_prompt_name"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return badJSON(path, err)
	}
	for name, text := range c.Prompts {
		if text == "" {
			delete(c.Prompts, name) // as those that every model has
		}
	}
	cfg.Prompts = c.Prompts
	if _, ok := c.Prompts[c.Default]; ok {
		cfg.Prompt = c.Default
	}
	return nil
}
