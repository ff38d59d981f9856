package pipeline_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/client/pipeline"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/proto/zcerr"
	"github.com/zcstore/zcstore/shm/tensor"
)

// answer takes a tied pipeline through both of its uses of the table.
func answer(t *testing.T, p *Tied) (looked, product []float32) {
	t.Helper()
	ids, err := nn.NewInts(tensor.Shape{3}, []int32{0, 499, 7})
	if err != nil {
		t.Fatal(err)
	}
	x, err := p.Embed.Forward(ids)
	if err != nil {
		t.Fatal(err)
	}
	y, err := p.Head.Forward(x)
	if err != nil {
		t.Fatal(err)
	}
	if looked, err = x.Float32s(); err == nil {
		product, err = y.Float32s()
	}
	if err != nil {
		t.Fatal(err)
	}
	return looked, product
}

// A pipeline is loaded in the form that is asked for: by the options, by the environment, by the tag. Rows that are looked up are
// plain in any; a packed product is the plain one to the last bit; and what was loaded packed is put as what it was.
func TestLoadInAForm(t *testing.T) {
	c := daemon(t)
	r, err := pipeline.Put(ctx, c, "tied", tied(t, 1), pipeline.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.TagAs(ctx, "tied", "tied:fast", false, "bf16"); err != nil {
		t.Fatal(err)
	}
	looked, product := answer(t, tied(t, 1))
	for _, try := range []struct {
		ref, env, form, want string
	}{
		{"tied", "", "", "plain"},
		{"tied", "", "packed", "packed"},
		{"tied", "int8", "", "int8"},
		{"tied", "int8", "packed", "packed"},
		{"tied:fast", "", "", "bf16"},
		{"tied:fast", "packed", "", "packed"},
		{"tied:fast", "", "plain", "plain"},
	} {
		t.Setenv(client.EnvForm, try.env)
		var got Tied
		m, err := pipeline.Load(ctx, c, try.ref, &got, pipeline.LoadOptions{Form: try.form})
		if err != nil {
			t.Fatal(err)
		}
		if m.Form() != try.want {
			t.Errorf("%+v: loaded as %s", try, m.Form())
		}
		if v := got.Head.Spec().Params[0].Tensor; (v.Packed != nil) != (try.want != "plain") {
			t.Errorf("%+v: packed %v", try, v.Packed)
		}
		x, y := answer(t, &got)
		if exact := try.want == "plain" || try.want == "packed"; !slices.Equal(x, looked) || slices.Equal(y, product) != exact {
			t.Errorf("%+v: looked up the same %v, the same product %v", try, slices.Equal(x, looked), slices.Equal(y, product))
		}
		again, err := pipeline.Put(ctx, c, "again", &got, pipeline.PutOptions{})
		if err != nil || again.Digest != r.Digest {
			t.Errorf("%+v: put again it is %v, want %v (%v)", try, again.Digest, r.Digest, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	var got Tied
	if _, err := pipeline.Load(ctx, c, "tied", &got, pipeline.LoadOptions{Form: "p17"}); !errors.Is(err, zcerr.Invalid) {
		t.Errorf("a form that is none: %v", err)
	}
	t.Setenv(client.EnvForm, "p17")
	if _, err := pipeline.Load(ctx, c, "tied", &got, pipeline.LoadOptions{}); !errors.Is(err, zcerr.Invalid) {
		t.Errorf("a form of the environment that is none: %v", err)
	}
}
