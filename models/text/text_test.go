package text

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/gpu"
	"github.com/zcstore/zcstore/models"
	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// stored is a pipeline as it may lie in a daemon: what an importer makes is tested in models/hf.
type stored struct {
	kind, path, config string
	names              []string
	children           map[string]*stored
	views              map[string]tensor.Shape
}

func (s *stored) Path() string          { return s.path }
func (s *stored) Config(into any) error { return json.Unmarshal([]byte(s.config), into) }
func (s *stored) Has(name string) bool  { _, ok := s.views[name]; return ok }
func (s *stored) Names() (names []string) {
	for n := range s.views {
		names = append(names, n)
	}
	return names
}

func (s *stored) Tensor(name string, want tensor.Shape) (tensor.View, tensor.Role, error) {
	n, err := tensor.SizeBytes(tensor.F32, want)
	if err != nil {
		return tensor.View{}, 0, err
	}
	v, err := tensor.New(tensor.F32, want, make([]byte, n))
	return v, encoder.Roles(name), err
}

func (s *stored) Child(name string) (models.Module, error) {
	c := s.children[name]
	return models.Build(c.kind, c)
}
func (s *stored) Value(string) ([]byte, bool) { return nil, false }
func (s *stored) ChildNames() []string        { return s.names }
func (s *stored) Device() gpu.Device          { return nil }

func pipelineOf(config string, steps ...*stored) *stored {
	model := &stored{kind: "bert", path: "model", views: map[string]tensor.Shape{}}
	model.config = `{"architectures":["BertModel"],"vocab_size":7,"hidden_size":4,"num_hidden_layers":0,"num_attention_heads":2,"intermediate_size":8,"max_position_embeddings":9,"type_vocab_size":2}`
	for _, n := range []string{"word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"} {
		model.views["embeddings."+n] = nil
	}
	s := &stored{kind: Kind, path: "the pipeline", config: config, names: []string{PartModel}, children: map[string]*stored{PartModel: model}}
	for i, c := range steps {
		name := fmt.Sprint(i + 1)
		s.names, s.children[name] = append(s.names, name), c
	}
	return s
}

func TestLoadChecks(t *testing.T) {
	pooling := func(mode string, dim int) *stored {
		return &stored{kind: PoolingKind, path: "1_Pooling", config: fmt.Sprintf(`{"pooling_mode":%q,"word_embedding_dimension":%d}`, mode, dim)}
	}
	const good = `{"task":"embed","max_length":9}`
	for _, tt := range []struct {
		name string
		s    *stored
		kind zcerr.Kind
		says string // "": it loads
	}{
		{"good", pipelineOf(good), 0, ""},
		{"mean", pipelineOf(good, pooling("mean", 4)), 0, ""},
		{"cls of no size, normalised", pipelineOf(good, pooling("cls", 0), &stored{kind: NormalizeKind}), 0, ""},
		{"one token", pipelineOf(`{"task":"encode","max_length":1}`), 0, ""},
		{"no length", pipelineOf(`{"task":"embed"}`), zcerr.Invalid, "max_length is 0, the model takes 1 to 9"},
		{"too long", pipelineOf(`{"task":"embed","max_length":10}`), zcerr.Invalid, "max_length is 10, the model takes 1 to 9"},
		{"another task", pipelineOf(`{"task":"sing","max_length":9}`), zcerr.Unsupported, `task "sing"`},
		{"another mode", pipelineOf(good, pooling("sum", 4)), zcerr.Unsupported, `pooling mode "sum"`},
		{"another size", pipelineOf(good, pooling("mean", 5)), zcerr.Invalid, "word_embedding_dimension is 5, the model's hidden_size 4"},
		{"a pipeline as a step", pipelineOf(good, pipelineOf(good)), zcerr.Unsupported, "is no step of a text pipeline"},
	} {
		m, err := models.Build(Kind, tt.s)
		switch {
		case tt.says == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.says == "" && m.(*Pipeline).Dim() != 4:
			t.Errorf("%s: dim %d", tt.name, m.(*Pipeline).Dim())
		case tt.says != "" && (zcerr.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%s: got %v of kind %v, want %q", tt.name, err, zcerr.KindOf(err), tt.says)
		}
	}
}
