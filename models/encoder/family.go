package encoder

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/zcstore/zcstore/gpu"
)

// Task is what a head is for.
type Task string

// The tasks.
const (
	Base     Task = "hidden states"
	Classify Task = "sequence classification" // also of several labels at once, and regression
	Tag      Task = "token classification"
	Answer   Task = "question answering"
	FillMask Task = "masked language model"
	Detect   Task = "replaced token detection"
)

// suffixes are how classes of heads are called, behind the name of the family.
var suffixes = map[string]Task{"Model": Base, "ForSequenceClassification": Classify, "ForTokenClassification": Tag,
	"ForQuestionAnswering": Answer, "ForMaskedLM": FillMask, "ForPreTraining": Detect}

// family is a kind of encoder. A new one is a file with its config and a line in families.
type family struct {
	name   string // model_type, and the kind that it is stored as
	class  string // that class names begin with
	prefix string // of all tensors but the head's, where there is a head
	tasks  []Task
	config func() config // with the values that keys left out have
}

// config is a family's config.json.
type config interface {
	shared() *common
	// check settles the sizes and refuses what the family cannot run.
	check(k *checker) Sizes
	// load makes the encoder.
	load(l *loader) net
	// head makes what stands on it, and the pooler where there is one.
	head(l *loader, t Task) (head, pooler *top)
}

var families = []*family{bert, roberta, xlmRoberta, distilbert, electra, albert, mpnet, deberta, modernbert}

func find(name string) *family {
	for _, f := range families {
		if f.name == name {
			return f
		}
	}
	return nil
}

// Families lists the model types, in the order in which docs name them.
func Families() []string {
	var names []string
	for _, f := range families {
		names = append(names, f.name)
	}
	return names
}

// Tasks lists what heads a family has.
func Tasks(modelType string) []Task {
	if f := find(modelType); f != nil {
		return slices.Clone(f.tasks)
	}
	return nil
}

// Config is a config.json that was checked.
type Config struct {
	raw    json.RawMessage
	family *family
	keys   config
	sizes  Sizes
	task   Task
	given  bool // architectures says the task
}

// ParseConfig reads config.json. Without a model_type it is a bert's. Errors: [*ConfigError] names the key.
func ParseConfig(raw []byte) (*Config, error) {
	var c common
	if err := decode("encoder", raw, &c); err != nil {
		return nil, err
	}
	name := c.ModelType
	if name == "" {
		name = bert.name
	}
	f := find(name)
	if f == nil {
		return nil, &ConfigError{"encoder", "model_type", c.ModelType, fmt.Sprintf("one of %v", Families())}
	}
	return f.parse(raw)
}

func (f *family) parse(raw []byte) (*Config, error) {
	p := &Config{raw: slices.Clone(raw), family: f, keys: f.config(), task: Base}
	if err := decode(f.name, raw, p.keys); err != nil {
		return nil, err
	}
	k := &checker{family: f.name}
	c := p.keys.shared()
	k.encoderOnly(c)
	if c.ModelType != "" && c.ModelType != f.name {
		k.refuse("model_type", c.ModelType, f.name)
	}
	p.sizes = p.keys.check(k)
	if k.err == nil && len(c.Architectures) > 0 {
		p.given = true
		suffix, ok := strings.CutPrefix(c.Architectures[0], f.class)
		if p.task = suffixes[suffix]; !ok || !slices.Contains(f.tasks, p.task) {
			k.refuse("architectures", c.Architectures[0], fmt.Sprintf("one of %v", f.classes()))
		}
	}
	if n := c.NumLabels; n < 0 || n > 1<<20 {
		k.refuse("num_labels", n, "a number from 1 on")
	}
	return p, k.err
}

func (f *family) classes() []string {
	var names []string
	for _, s := range slices.Sorted(maps.Keys(suffixes)) {
		if slices.Contains(f.tasks, suffixes[s]) {
			names = append(names, f.class+s)
		}
	}
	return names
}

// Sizes are the model's.
func (c *Config) Sizes() Sizes { return c.sizes }

// Task is what architectures says that the model is for.
func (c *Config) Task() Task { return c.task }

// For is the config of the same encoder with another head, which must be one of its family's. Base is none.
func (c *Config) For(t Task) (*Config, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(c.raw, &keys); err != nil {
		return nil, err
	}
	for s, task := range suffixes {
		if task == t {
			keys["architectures"] = json.RawMessage(fmt.Sprintf("[%q]", c.family.class+s))
		}
	}
	raw, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	return c.family.parse(raw)
}

// MarshalJSON writes the file as it was read.
func (c *Config) MarshalJSON() ([]byte, error) { return c.raw, nil }

// top is what stands on an encoder: layers over each row of states.
type top struct {
	mean  bool // over the mean of a text's states; else over those of its first token
	steps []step
}

// step is y = norm(act(W x + b)).
type step struct {
	linear *gpu.Group
	act    gpu.Act
	norm   norm
	eps    float32
}

func (t *top) width() int { return t.steps[len(t.steps)-1].linear.N() }

// run launches the steps on rows of states.
func (t *top) run(s *gpu.Stream, x gpu.Matrix) gpu.Matrix {
	for _, st := range t.steps {
		y := s.F32(x.Rows, st.linear.N())
		s.Linear(y, x, st.linear, gpu.Epilogue{Act: st.act})
		if st.norm.weight != nil {
			s.LayerNorm(y, y, gpu.Matrix{}, st.norm.weight, st.norm.bias, st.eps)
		}
		x = y
	}
	return x
}
