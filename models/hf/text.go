package hf

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// module is an entry of modules.json, which lists the steps of a sentence-transformers directory.
type module struct {
	Idx  int    `json:"idx"`
	Name string `json:"name"`
	Path string `json:"path"`
	Type string `json:"type"`
}

// kind is the last part of the class path: its module part changed between releases.
func (m module) kind() string {
	return m.Type[strings.LastIndexByte(m.Type, '.')+1:]
}

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
		if (m.kind() == "Transformer") != (i == 0) {
			return nil, zcerr.New(zcerr.Unsupported, "%s: entry %d is a %s; a pipeline begins with its one Transformer", path, i, m.kind())
		}
		if i > 0 && (m.kind() == list[i-1].kind() || m.kind() == "Pooling" && list[i-1].kind() == "Normalize") {
			return nil, zcerr.New(zcerr.Unsupported, "%s: entry %d is a %s after a %s; the order is Transformer, Pooling, Normalize", path, i, m.kind(), list[i-1].kind())
		}
	}
	if len(list) == 0 {
		return nil, zcerr.New(zcerr.Invalid, "%s lists no modules", path)
	}
	return list, nil
}

// node imports one module after the Transformer.
func (m module) node(dir string) (*manifest.Node, error) {
	switch m.kind() {
	case "Normalize":
		return &manifest.Node{Kind: manifest.Module, Impl: text.NormalizeKind, Config: json.RawMessage("{}")}, nil
	case "Pooling":
		cfg, err := readPooling(filepath.Join(dir, filepath.FromSlash(m.Path), "config.json"))
		if err != nil {
			return nil, err
		}
		b, err := canonical(cfg)
		return &manifest.Node{Kind: manifest.Module, Impl: text.PoolingKind, Config: b}, err
	}
	return nil, zcerr.New(zcerr.Unsupported, "%s: module type %q is not supported", filepath.Join(dir, "modules.json"), m.Type).WithHint("supported are Transformer, Pooling and Normalize")
}

// readPooling reads either spelling: a boolean per mode, or one name.
func readPooling(path string) (text.PoolingConfig, error) {
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return text.PoolingConfig{}, zcerr.New(zcerr.Invalid, "%s is not there, and modules.json has a Pooling in that folder", path).WithHint("download the file again")
	}
	if err != nil {
		return text.PoolingConfig{}, err
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return text.PoolingConfig{}, badJSON(path, err)
	}
	var cfg text.PoolingConfig
	if err := json.Unmarshal(b, &cfg); err != nil {
		return text.PoolingConfig{}, badJSON(path, err)
	}
	var modes []string
	for key, v := range raw {
		if mode, ok := strings.CutPrefix(key, "pooling_mode_"); ok && string(v) == "true" {
			modes = append(modes, mode)
		}
	}
	sort.Strings(modes)
	if cfg.Mode == "" && len(modes) == 1 {
		cfg.Mode = modes[0]
	}
	switch cfg.Mode {
	case "mean_tokens":
		cfg.Mode = "mean"
	case "cls_token":
		cfg.Mode = "cls"
	}
	if cfg.Mode != "mean" && cfg.Mode != "cls" {
		return text.PoolingConfig{}, zcerr.New(zcerr.Unsupported, "%s: pooling mode %q (of %v) is not supported", path, cfg.Mode, modes).WithHint("supported are mean and cls")
	}
	return cfg, nil
}

// tokenizer adds the tokenizer's files, after trying them, and settles the longest text. sentence-transformers' own limit
// overrides the tokenizer's, and nothing is padded but to the longest of a batch.
func (im *Import) tokenizer(root *manifest.Node, modelDir string, c *config, cfg *text.Config) error {
	cfg.MaxLength = c.MaxPositions
	var tc struct {
		MaxLength float64 `json:"model_max_length"`
	}
	add := func(key string) ([]byte, error) {
		b, err := readSmall(filepath.Join(modelDir, key))
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	keep := func(key string, b []byte, media string) {
		root.Items = append(root.Items, manifest.Item{Key: key, Node: &manifest.Node{Kind: manifest.Value, MediaType: media, Value: b}})
	}
	tcb, err := add(text.PartTokenizerConfig)
	if err != nil {
		return err
	}
	if tcb != nil {
		if err := json.Unmarshal(tcb, &tc); err != nil {
			return badJSON(filepath.Join(modelDir, text.PartTokenizerConfig), err)
		}
		keep(text.PartTokenizerConfig, tcb, text.FileMedia)
	}
	if n := tc.MaxLength; n >= 1 && n < float64(cfg.MaxLength) {
		cfg.MaxLength = int(n)
	}
	if err := readLimits(modelDir, c, cfg); err != nil {
		return err
	}
	tj, err := add(text.PartTokenizer)
	if err != nil {
		return err
	}
	vocab, err := add(text.PartVocab)
	if err != nil {
		return err
	}
	var tok *tokenizer.Tokenizer
	file := filepath.Join(modelDir, text.PartTokenizer)
	switch {
	case tj != nil:
		keep(text.PartTokenizer, tj, text.FileMedia)
		tok, err = tokenizer.FromJSON(tj)
	case vocab != nil:
		keep(text.PartVocab, vocab, text.FileMedia)
		file = filepath.Join(modelDir, text.PartVocab)
		tok, err = text.TokenizerFromVocab(vocab, tcb)
	default:
		im.Notes = append(im.Notes, "no tokenizer: the pipeline takes token ids")
		return nil
	}
	if err != nil {
		return zcerr.New(tokenizerKind(err), "%s/%w", modelDir, err) // it begins with the file's name
	}
	if n := tok.VocabSize(); c.VocabSize > 0 && n > c.VocabSize {
		return zcerr.New(zcerr.Invalid, "%s has %d tokens, %s says vocab_size %d: they are of different models", file, n, c.path, c.VocabSize)
	}
	return nil
}

// tokenizerKind is Unsupported for a part that is not built, else Invalid.
func tokenizerKind(err error) zcerr.Kind {
	if zcerr.KindOf(err) == zcerr.Unsupported {
		return zcerr.Unsupported
	}
	return zcerr.Invalid
}

// readLimits reads what sentence-transformers has beside a Transformer's config.
func readLimits(dir string, c *config, cfg *text.Config) error {
	path := filepath.Join(dir, "sentence_bert_config.json")
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var s struct {
		MaxSeqLength *int `json:"max_seq_length"`
		Lowercase    bool `json:"do_lower_case"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return badJSON(path, err)
	}
	cfg.Lowercase = s.Lowercase
	if s.MaxSeqLength == nil {
		return nil
	}
	if n := *s.MaxSeqLength; n < 3 || n > c.MaxPositions {
		return zcerr.New(zcerr.Invalid, "%s: max_seq_length is %d, the model takes 3 to %d", path, n, c.MaxPositions)
	}
	cfg.MaxLength = *s.MaxSeqLength
	return nil
}
