package encoder

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/zcstore/zcstore/gpu"
)

// Sizes is what all families have in common, whatever their config.json calls it.
type Sizes struct {
	Vocab        int
	Hidden       int // of a token's state
	Embedding    int // of a token's embedding, before it is projected to Hidden
	Layers       int
	Heads        int
	Intermediate int // width of the feed-forward nets
	Positions    int // rows of the table of positions; without a table, as many
	MaxTokens    int // of one text
	Types        int // token types; 0: the model has none

	Act gpu.Act
	Eps float64 // of layer norms
	Pad int     // -1, or the id of padding: positions then count from Pad+1 on, and those of padding are Pad
}

// maxKey says where MaxTokens comes from.
func (z *Sizes) maxKey() string {
	if z.Pad >= 0 {
		return fmt.Sprintf("max_position_embeddings %d, less %d for padding", z.Positions, z.Pad+1)
	}
	return "max_position_embeddings"
}

// ConfigError says which key of a config has a value that this package cannot run.
type ConfigError struct {
	Family string // model_type
	Key    string
	Value  any
	Want   string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("%s config: %s is %v: want %s", e.Family, e.Key, e.Value, e.Want)
}

// notBuilt are the keys whose values may be right and still name something that this package does not have.
var notBuilt = map[string]bool{"model_type": true, "architectures": true, "hidden_act": true, "activation": true, "hidden_activation": true,
	"classifier_activation": true, "pooler_hidden_act": true, "conv_act": true, "conv_groups": true, "position_embedding_type": true,
	"is_decoder": true, "add_cross_attention": true, "norm_rel_ebd": true, "pos_att_type": true, "summary_type": true, "classifier_pooling": true}

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

// activations are what configs call them.
var activations = map[string]gpu.Act{
	"gelu": gpu.GELUErf, "gelu_new": gpu.GELUTanh, "gelu_pytorch_tanh": gpu.GELUTanh, "gelu_fast": gpu.GELUTanh,
	"relu": gpu.ReLU, "silu": gpu.SiLU, "swish": gpu.SiLU, "tanh": gpu.Tanh, "sigmoid": gpu.Sigmoid,
}

// common are the keys that every family spells alike.
type common struct {
	ModelType         string            `json:"model_type"`
	Architectures     []string          `json:"architectures"`
	NumLabels         int               `json:"num_labels"`
	ID2Label          map[string]string `json:"id2label"`
	IsDecoder         bool              `json:"is_decoder"`
	AddCrossAttention bool              `json:"add_cross_attention"`
	PositionType      string            `json:"position_embedding_type"`
}

// labels is the number of classes: num_labels, else the entries of id2label, else 2.
func (c *common) labels() int {
	switch {
	case c.NumLabels > 0:
		return c.NumLabels
	case len(c.ID2Label) > 0:
		return len(c.ID2Label)
	}
	return 2
}

// checker collects the first thing that is wrong with a config.
type checker struct {
	family string
	err    error
}

func (k *checker) refuse(key string, value any, want string) {
	if k.err == nil {
		k.err = &ConfigError{k.family, key, value, want}
	}
}

// size holds a number to 1..2^28.
func (k *checker) size(key string, n int) {
	if n <= 0 || n > 1<<28 {
		k.refuse(key, n, "a size from 1 on")
	}
}

func (k *checker) layers(key string, n int) {
	if n < 0 || n > 1<<16 {
		k.refuse(key, n, "a number from 0 on")
	}
}

// heads holds the number of heads to a divisor.
func (k *checker) heads(key string, heads int, of string, size int) {
	if k.size(key, heads); k.err == nil && size%heads != 0 {
		k.refuse(key, heads, fmt.Sprintf("a divisor of %s %d", of, size))
	}
}

func (k *checker) eps(key string, eps float64) {
	if !(eps >= 0) {
		k.refuse(key, eps, "a number from 0 on")
	}
}

func (k *checker) act(key, name string) gpu.Act {
	a, ok := activations[name]
	if !ok {
		k.refuse(key, name, fmt.Sprintf("one of %v", slices.Sorted(maps.Keys(activations))))
	}
	return a
}

// encoderOnly refuses what makes another model of it.
func (k *checker) encoderOnly(c *common) {
	if c.IsDecoder {
		k.refuse("is_decoder", true, "false: this is the encoder")
	}
	if c.AddCrossAttention {
		k.refuse("add_cross_attention", true, "false: this is the encoder")
	}
	if t := c.PositionType; t != "" && t != "absolute" {
		k.refuse("position_embedding_type", t, "absolute")
	}
}

// decode reads config.json over the values that keys left out have.
func decode(family string, raw []byte, into any) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s config: %w", family, err)
	}
	return nil
}
