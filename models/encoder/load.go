package encoder

import (
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/shm/tensor"
)

func init() {
	for _, f := range families {
		models.Register(f.name, f.build)
	}
}

// build rebuilds a stored encoder.
func (f *family) build(src models.Source) (models.Module, error) {
	var raw json.RawMessage
	if err := src.Config(&raw); err != nil {
		return nil, err
	}
	c, err := f.parse(raw)
	if err != nil {
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
}

// Roles is how an encoder uses the tensor of that name, with or without a prefix.
func Roles(name string) tensor.Role {
	owner, ok := strings.CutSuffix(name, ".weight")
	if !ok {
		return tensor.Other
	}
	owner = owner[strings.LastIndexByte(owner, '.')+1:]
	switch {
	case strings.Contains(strings.ToLower(owner), "norm"):
		return tensor.Other
	case strings.HasSuffix(owner, "_embeddings"), owner == "relative_attention_bias":
		return tensor.Lookup
	case owner == "conv":
		return tensor.Conv
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
	sizes  Sizes
	prefix string // "" or that of the family, in front of all but the head
	have   map[string]bool
	used   map[string]bool
	params []models.Param
	e      nn.StateError
}

func newLoader(dev gpu.Device, src Weights, prefix string) *loader {
	l := &loader{dev: dev, src: src, have: map[string]bool{}, used: map[string]bool{}}
	for _, n := range src.Names() {
		l.have[n] = true
		if strings.HasPrefix(n, prefix) {
			l.prefix = prefix
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
	v, role, ok := l.tensor(name, shape)
	if !ok {
		return nil
	}
	return l.imported(name, v, role)
}

func (l *loader) imported(name string, v tensor.View, role tensor.Role) *gpu.Weight {
	w, err := l.dev.Import(v, role)
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load %s: %w", name, err))
		return nil
	}
	return w
}

// tensor is a tensor of the checkpoint, as a param of the model.
func (l *loader) tensor(name string, shape tensor.Shape) (tensor.View, tensor.Role, bool) {
	name, ok := l.find(name)
	if !ok {
		l.e.Missing = append(l.e.Missing, name)
		return tensor.View{}, 0, false
	}
	first := !l.used[name]
	l.used[name] = true
	v, stored, err := l.src.Tensor(name, shape)
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, err)
		return tensor.View{}, 0, false
	}
	role, ok := Roles(name).Merge(stored) // it may also be used in another way, elsewhere
	if !ok || (role != Roles(name) && role != tensor.LookupLinear) {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load %s: it is stored as %v, used as %v", name, stored, Roles(name)))
		return tensor.View{}, 0, false
	}
	if first {
		l.params = append(l.params, models.Param{Name: name, Tensor: v, Role: role})
	}
	return v, role, true
}

// group is the linear layers of those names, run as one.
func (l *loader) group(out, in int, names ...string) *gpu.Group {
	return l.join(out, in, true, names...)
}

// join is group with biases or without.
func (l *loader) join(out, in int, bias bool, names ...string) *gpu.Group {
	var ws, bs []*gpu.Weight
	whole := true
	for _, n := range names {
		w := l.weight(n+".weight", out, in)
		var b *gpu.Weight
		if bias {
			b = l.weight(n+".bias", out)
		}
		whole = whole && w != nil && (b != nil || !bias)
		ws, bs = append(ws, w), append(bs, b)
	}
	if !whole {
		return nil // reported already
	}
	return l.grouped(ws, bs, strings.Join(names, " "))
}

func (l *loader) grouped(ws, bs []*gpu.Weight, names string) *gpu.Group {
	g, err := gpu.NewGroup(ws, bs)
	if err != nil {
		l.e.Wrong = append(l.e.Wrong, fmt.Errorf("load %s: %w", names, err))
	}
	return g
}

func (l *loader) norm(name string, size int) norm {
	return norm{weight: l.weight(name+".weight", size), bias: l.weight(name+".bias", size)}
}

// step is a linear layer of a head.
func (l *loader) step(name string, out, in int, act gpu.Act) step {
	return step{linear: l.group(out, in, name), act: act}
}

// decoder is the last layer of a masked language model: the table of word embeddings, with a bias. Checkpoints that repeat
// the table have it under a name of its own, and may repeat the bias.
func (l *loader) decoder(words, own, bias string, vocab, in int) step {
	l.used[own+".bias"] = l.have[own+".bias"]
	b := l.weight(bias, vocab)
	var w *gpu.Weight
	if l.have[own+".weight"] {
		w = l.weight(own+".weight", vocab, in)
	} else if v, _, err := l.src.Tensor(words, tensor.Shape{vocab, in}); err == nil { // else it is reported as the table
		w = l.imported(words, v, tensor.Linear)
	}
	if w == nil || b == nil {
		return step{}
	}
	return step{linear: l.grouped([]*gpu.Weight{w}, []*gpu.Weight{b}, own)}
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
// with the family's prefix; which head there is says architectures, and without that the names. What is missing, unexpected or
// of another shape is listed in one [*nn.StateError].
func Load(dev gpu.Device, c *Config, src Weights) (*Model, error) {
	if dev == nil {
		return nil, errors.New("encoder: no device")
	}
	l := newLoader(dev, src, c.family.prefix)
	l.sizes = c.sizes
	m := &Model{config: c, sizes: c.sizes, dev: dev, task: c.task, together: min(128*max(dev.Info().Threads, 1), 512)}
	if !c.given && (l.have["classifier.weight"] || l.have["classifier.out_proj.weight"]) {
		m.task = Classify
	}
	m.net = c.keys.load(l)
	m.head, m.pooler = c.keys.head(l, m.task)
	if err := l.finish(); err != nil {
		return nil, fmt.Errorf("%s: %w", c.family.name, err)
	}
	m.params = l.params
	return m, nil
}
