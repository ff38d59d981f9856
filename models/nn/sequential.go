package nn

import (
	"fmt"
	"strconv"

	"github.com/zcstore/zcstore/models"
)

func init() { models.Register("nn.Sequential", loadSequential) }

// Sequential runs layers one after the other. Its children are named "0", "1" and so on, as those of
// torch.nn.Sequential. An activation behind a Linear is computed with it.
type Sequential struct{ layers []Layer }

// NewSequential makes a Sequential of the layers.
func NewSequential(layers ...Layer) *Sequential {
	return &Sequential{layers: append([]Layer(nil), layers...)}
}

func loadSequential(src models.Source) (models.Module, error) {
	q := &Sequential{}
	for i, name := range src.ChildNames() {
		if name != strconv.Itoa(i) {
			return nil, fmt.Errorf("%s: child %d of an nn.Sequential is called %q", src.Path(), i, name)
		}
		m, err := src.Child(name)
		if err != nil {
			return nil, err
		}
		l, ok := m.(Layer)
		if !ok {
			return nil, fmt.Errorf("%s.%s: a %s cannot stand in an nn.Sequential (it has no Forward of one tensor)", src.Path(), name, m.Spec().Kind)
		}
		q.layers = append(q.layers, l)
	}
	return q, nil
}

// Spec implements models.Module.
func (q *Sequential) Spec() models.Spec {
	s := models.Spec{Kind: "nn.Sequential"}
	for i, l := range q.layers {
		if l != nil {
			s.Children = append(s.Children, models.Child{Name: strconv.Itoa(i), Module: l})
		}
	}
	return s
}

// Len is the number of layers.
func (q *Sequential) Len() int { return len(q.layers) }

// At is layer i.
func (q *Sequential) At(i int) Layer { return q.layers[i] }

// Forward implements Layer. Layers of this package run on one stream, and only the last result is kept.
func (q *Sequential) Forward(x *Tensor) (*Tensor, error) {
	if x == nil {
		return nil, shapeError("nn.Sequential", nil, "x is nil")
	}
	flat, err := q.flatten(nil)
	if err != nil {
		return nil, err
	}
	var steps []step
	for i := 0; i < len(flat); {
		steps = steps[:0]
		for ; i < len(flat); i++ {
			s, ok := flat[i].(step)
			if !ok {
				break
			}
			steps = append(steps, s)
		}
		if len(steps) > 0 {
			x, err = forward(x, steps...)
		} else {
			x, err = flat[i].Forward(x)
			i++
		}
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// flatten lists the layers, those of inner Sequentials in their place, without those that do nothing.
func (q *Sequential) flatten(to []Layer) ([]Layer, error) {
	var err error
	for i, l := range q.layers {
		switch l := l.(type) {
		case nil:
			return nil, fmt.Errorf("nn.Sequential: layer %d is nil", i)
		case *Identity, *Dropout:
		case *Sequential:
			if to, err = l.flatten(to); err != nil {
				return nil, err
			}
		default:
			to = append(to, l)
		}
	}
	return to, nil
}
