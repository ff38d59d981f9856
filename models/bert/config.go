package bert

import (
	"encoding/json"
	"fmt"
	"sort"

	"github.com/zcstore/zcstore/gpu"
)

// Config is config.json, with its own key names. Keys that change nothing in a forward pass (dropout, id2label) are
// kept in Extra and written back.
type Config struct {
	ModelType             string   `json:"model_type,omitempty"`
	Architectures         []string `json:"architectures,omitempty"`
	VocabSize             int      `json:"vocab_size"`
	HiddenSize            int      `json:"hidden_size"`
	NumHiddenLayers       int      `json:"num_hidden_layers"`
	NumAttentionHeads     int      `json:"num_attention_heads"`
	IntermediateSize      int      `json:"intermediate_size"`
	HiddenAct             string   `json:"hidden_act"`
	MaxPositionEmbeddings int      `json:"max_position_embeddings"`
	TypeVocabSize         int      `json:"type_vocab_size"`
	LayerNormEps          float64  `json:"layer_norm_eps"`
	PositionEmbeddingType string   `json:"position_embedding_type,omitempty"`
	NumLabels             int      `json:"num_labels,omitempty"`

	Extra map[string]json.RawMessage `json:"-"`
}

// plain is Config without its methods.
type plain Config

// UnmarshalJSON reads config.json. Keys left out have the defaults of the original.
func (c *Config) UnmarshalJSON(b []byte) error {
	p := plain{VocabSize: 30522, HiddenSize: 768, NumHiddenLayers: 12, NumAttentionHeads: 12, IntermediateSize: 3072,
		HiddenAct: "gelu", MaxPositionEmbeddings: 512, TypeVocabSize: 2, LayerNormEps: 1e-12}
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("bert config: %w", err)
	}
	if err := json.Unmarshal(b, &p.Extra); err != nil {
		return fmt.Errorf("bert config: %w", err)
	}
	known, err := json.Marshal(plain{Architectures: []string{""}, ModelType: "-", PositionEmbeddingType: "-", NumLabels: 1})
	if err != nil {
		return err
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(known, &names); err != nil {
		return err
	}
	for n := range names {
		delete(p.Extra, n)
	}
	*c = Config(p)
	return nil
}

// MarshalJSON writes all keys, those of Extra too.
func (c Config) MarshalJSON() ([]byte, error) {
	b, err := json.Marshal(plain(c))
	if err != nil || len(c.Extra) == 0 {
		return b, err
	}
	all := map[string]json.RawMessage{}
	for k, v := range c.Extra {
		all[k] = v
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// ParseConfig reads config.json and checks it.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(b, &c); err != nil {
		return Config{}, err
	}
	return c, c.Check()
}

// ConfigError says which key of a config has a value that this package cannot run.
type ConfigError struct {
	Key   string
	Value any
	Want  string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("bert config: %s is %v: want %s", e.Key, e.Value, e.Want)
}

// notBuilt are the keys whose values may be right and still name something that this package does not have.
var notBuilt = map[string]bool{"model_type": true, "architectures": true, "hidden_act": true, "position_embedding_type": true,
	"is_decoder": true, "add_cross_attention": true}

// ErrorKind is the kind in the words of proto/zcerr.
func (e *ConfigError) ErrorKind() string {
	if notBuilt[e.Key] {
		return "unsupported"
	}
	return "invalid"
}

// Unwrap makes it an error of kind gpu.ErrUnsupported, or of gpu.ErrShape for sizes that fit no model.
func (e *ConfigError) Unwrap() error {
	if notBuilt[e.Key] {
		return gpu.ErrUnsupported
	}
	return gpu.ErrShape
}

// activations are the values of hidden_act.
var activations = map[string]gpu.Act{
	"gelu": gpu.GELUErf, "gelu_new": gpu.GELUTanh, "gelu_pytorch_tanh": gpu.GELUTanh, "gelu_fast": gpu.GELUTanh,
	"relu": gpu.ReLU, "silu": gpu.SiLU, "swish": gpu.SiLU, "tanh": gpu.Tanh, "sigmoid": gpu.Sigmoid,
}

// Check says whether this package runs such a model, to the key that it does not know.
func (c *Config) Check() error {
	for _, n := range []struct {
		key   string
		value int
	}{{"vocab_size", c.VocabSize}, {"hidden_size", c.HiddenSize}, {"num_attention_heads", c.NumAttentionHeads},
		{"intermediate_size", c.IntermediateSize}, {"max_position_embeddings", c.MaxPositionEmbeddings}, {"type_vocab_size", c.TypeVocabSize}} {
		if n.value <= 0 || n.value > 1<<28 {
			return &ConfigError{n.key, n.value, "a size from 1 on"}
		}
	}
	if c.NumHiddenLayers < 0 || c.NumHiddenLayers > 1<<16 {
		return &ConfigError{"num_hidden_layers", c.NumHiddenLayers, "a number from 0 on"}
	}
	if c.HiddenSize%c.NumAttentionHeads != 0 {
		return &ConfigError{"num_attention_heads", c.NumAttentionHeads, fmt.Sprintf("a divisor of hidden_size %d", c.HiddenSize)}
	}
	if !(c.LayerNormEps >= 0) {
		return &ConfigError{"layer_norm_eps", c.LayerNormEps, "a number from 0 on"}
	}
	if c.ModelType != "" && c.ModelType != "bert" {
		return &ConfigError{"model_type", c.ModelType, "bert"}
	}
	if t := c.PositionEmbeddingType; t != "" && t != "absolute" {
		return &ConfigError{"position_embedding_type", t, "absolute"}
	}
	if _, ok := activations[c.HiddenAct]; !ok {
		names := make([]string, 0, len(activations))
		for n := range activations {
			names = append(names, n)
		}
		sort.Strings(names)
		return &ConfigError{"hidden_act", c.HiddenAct, fmt.Sprintf("one of %v", names)}
	}
	for _, k := range []string{"is_decoder", "add_cross_attention"} {
		if v, ok := c.Extra[k]; ok && string(v) == "true" {
			return &ConfigError{k, true, "false: this is the encoder"}
		}
	}
	_, err := c.head()
	return err
}

// Labels is the number of classes: num_labels, else the entries of id2label, else 2.
func (c *Config) Labels() int {
	if c.NumLabels > 0 {
		return c.NumLabels
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(c.Extra["id2label"], &m) == nil && len(m) > 0 {
		return len(m)
	}
	return 2
}
