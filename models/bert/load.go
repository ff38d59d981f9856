package bert

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

// Kind is the kind under which the model is stored.
const Kind = "bert"

func init() {
	models.Register(Kind, func(src models.Source) (models.Module, error) {
		var c Config
		if err := src.Config(&c); err != nil {
			return nil, err
		}
		dev := src.Device()
		if dev == nil {
			dev = nn.Default()
		}
		m, err := Load(dev, c, src)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", src.Path(), err)
		}
		return m, nil
	})
}

// Roles is how the model uses the tensor of that name, with or without a prefix.
func Roles(name string) tensor.Role {
	switch {
	case strings.Contains(name, "LayerNorm"), !strings.HasSuffix(name, ".weight"):
		return tensor.Other
	case strings.HasSuffix(name, "_embeddings.weight"):
		return tensor.Lookup
	}
	return tensor.Linear
}

// Weights is where tensors come from: a models.Source, or [Views].
type Weights interface {
	Names() []string
	// Tensor is the tensor of that name. A shape other than want is an error.
	Tensor(name string, want tensor.Shape) (tensor.View, tensor.Role, error)
}

// Views are named tensors, as a safetensors file has them.
type Views map[string]tensor.View

// Names implements Weights.
func (v Views) Names() []string {
	names := make([]string, 0, len(v))
	for n := range v {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Tensor implements Weights.
func (v Views) Tensor(name string, want tensor.Shape) (tensor.View, tensor.Role, error) {
	t, ok := v[name]
	if !ok {
		return tensor.View{}, 0, fmt.Errorf("no tensor %s", name)
	}
	if !t.Shape.Equal(want) {
		return tensor.View{}, 0, &gpu.OpError{Op: "load " + name, Kind: gpu.ErrShape, Reason: "the config asks for another shape",
			Operands: []gpu.Operand{{Name: "config", Shape: want}, {Name: "tensor", Shape: t.Shape, DType: t.DType}}}
	}
	return t, Roles(name), nil
}

// loader resolves the model's names to those of the checkpoint and notes what was used.
type loader struct {
	dev    gpu.Device
	src    Weights
	prefix string // "" or "bert.", in front of all but the head
	have   map[string]bool
	used   map[string]bool
	params []models.Param
	e      nn.StateError
}

func newLoader(dev gpu.Device, src Weights) *loader {
	l := &loader{dev: dev, src: src, have: map[string]bool{}, used: map[string]bool{}}
	for _, n := range src.Names() {
		l.have[n] = true
		if strings.HasPrefix(n, "bert.embeddings.") {
			l.prefix = "bert."
		}
	}
	return l
}

// find is the checkpoint's name for a tensor: LayerNorm once called its weight gamma and its bias beta.
func (l *loader) find(name string) (string, bool) {
	if l.have[name] {
		return name, true
	}
	if head, ok := strings.CutSuffix(name, "LayerNorm.weight"); ok && l.have[head+"LayerNorm.gamma"] {
		return head + "LayerNorm.gamma", true
	}
	if head, ok := strings.CutSuffix(name, "LayerNorm.bias"); ok && l.have[head+"LayerNorm.beta"] {
		return head + "LayerNorm.beta", true
	}
	return name, false
}

// weight imports a tensor; what is wrong is kept for finish.
func (l *loader) weight(name string, shape ...int) *gpu.Weight {
	name, ok := l.find(name)
	if !ok {
		l.e.Missing = append(l.e.Missing, name)
		return nil
	}
	l.used[name] = true
	v, stored, err := l.src.Tensor(name, shape)
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, err)
		return nil
	}
	role, ok := Roles(name).Merge(stored) // it may also be used in another way, elsewhere
	if !ok || (role != Roles(name) && role != tensor.LookupLinear) {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load %s: it is stored as %v, used as %v", name, stored, Roles(name)))
		return nil
	}
	w, err := l.dev.Import(v, role)
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load %s: %w", name, err))
		return nil
	}
	l.params = append(l.params, models.Param{Name: name, Tensor: v, Role: role})
	return w
}

// group is the linear layers of those names, run as one.
func (l *loader) group(out, in int, names ...string) *gpu.Group {
	var ws, bs []*gpu.Weight
	for _, n := range names {
		ws = append(ws, l.weight(n+".weight", out, in))
		bs = append(bs, l.weight(n+".bias", out))
	}
	for i := range ws {
		if ws[i] == nil || bs[i] == nil {
			return nil // reported already
		}
	}
	g, err := gpu.NewGroup(ws, bs)
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load %s: %w", strings.Join(names, " "), err))
	}
	return g
}

func (l *loader) norm(name string, size int) norm {
	return norm{weight: l.weight(name+".weight", size), bias: l.weight(name+".bias", size)}
}

// finish says what is missing, unexpected and wrong.
func (l *loader) finish() error {
	for n := range l.have {
		if !l.used[n] && !strings.HasSuffix(n, "embeddings.position_ids") && !strings.HasSuffix(n, "embeddings.token_type_ids") {
			l.e.Unexpected = append(l.e.Unexpected, n)
		}
	}
	sort.Strings(l.e.Unexpected)
	if len(l.e.Missing)+len(l.e.Unexpected)+len(l.e.Wrong) > 0 {
		return &l.e
	}
	return nil
}

// Load makes a model of its tensors, which it uses in place: they have to live as long as the model. Names may begin
// with "bert."; which head there is says architectures, and without that the names. What is missing, unexpected or of
// another shape is listed in one [*nn.StateError].
func Load(dev gpu.Device, c Config, src Weights) (*Model, error) {
	if dev == nil {
		return nil, errors.New("bert: no device")
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	l := newLoader(dev, src)
	head, _ := c.head()
	if len(c.Architectures) == 0 && l.have["classifier.weight"] {
		head = classification
	}
	m := &Model{config: c, dev: dev, act: activations[c.HiddenAct]}
	h, p := c.HiddenSize, l.prefix
	m.word = l.weight(p+"embeddings.word_embeddings.weight", c.VocabSize, h)
	m.position = l.weight(p+"embeddings.position_embeddings.weight", c.MaxPositionEmbeddings, h)
	m.kind = l.weight(p+"embeddings.token_type_embeddings.weight", c.TypeVocabSize, h)
	m.norm = l.norm(p+"embeddings.LayerNorm", h)
	for i := range c.NumHiddenLayers {
		p := fmt.Sprintf("%sencoder.layer.%d.", p, i)
		m.layers = append(m.layers, layer{
			qkv:      l.group(h, h, p+"attention.self.query", p+"attention.self.key", p+"attention.self.value"),
			attn:     l.group(h, h, p+"attention.output.dense"),
			attnNorm: l.norm(p+"attention.output.LayerNorm", h),
			up:       l.group(c.IntermediateSize, h, p+"intermediate.dense"),
			down:     l.group(h, c.IntermediateSize, p+"output.dense"),
			norm:     l.norm(p+"output.LayerNorm", h),
		})
	}
	if head == classification || l.have[p+"pooler.dense.weight"] {
		m.pooler = l.group(h, h, p+"pooler.dense")
	}
	switch head {
	case classification:
		m.classifier = l.group(c.Labels(), h, "classifier")
	case tokenClassification:
		m.tokens = l.group(c.Labels(), h, "classifier")
	case questionAnswering:
		m.tokens = l.group(2, h, "qa_outputs")
	case maskedLM:
		m.masked = l.masked(&c)
	}
	if err := l.finish(); err != nil {
		return nil, fmt.Errorf("bert: %w", err)
	}
	m.params = l.params
	return m, nil
}
