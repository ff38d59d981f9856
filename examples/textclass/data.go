package main

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"

	"github.com/zcstore/zcstore/models/encoder"
	"github.com/zcstore/zcstore/models/nn"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/shm/tensor"
	"github.com/zcstore/zcstore/test/golden"
)

// trained gives the pipeline with the weights that PyTorch had, 300 texts, and what PyTorch made of them. All of it is inside
// the program.
func trained() (p *TextClassifier, texts []string, want [][]float32) {
	weights := must(golden.Read("intents/model.safetensors"))
	linear := nn.NewLinear(48, 5)
	find := func(name string) (tensor.View, bool) { v, ok := weights[name]; return v, ok }
	if err := nn.LoadStateDict(linear, "classifier.", find, "weight", "bias"); err != nil {
		panic(err)
	}
	maps.DeleteFunc(weights, func(name string, _ tensor.View) bool { return strings.HasPrefix(name, "classifier.") })
	config := must(must(encoder.ParseConfig(must(golden.Files.ReadFile("intents/config.json")))).For(encoder.Base))
	p = &TextClassifier{
		Tokenizer: must(text.NewTokenizer(must(golden.Files.ReadFile("intents/tokenizer.json")), 48)),
		Encoder:   must(encoder.Load(nn.Default(), config, encoder.Views(weights))),
		Head:      nn.NewSequential(linear, nn.NewSoftmax()),
	}
	for dec := json.NewDecoder(bytes.NewReader(must(golden.Files.ReadFile("intents/golden.jsonl")))); dec.More(); {
		var row struct{ Text string }
		if err := dec.Decode(&row); err != nil {
			panic(err)
		}
		texts = append(texts, row.Text)
	}
	return p, texts, must(golden.Rows(must(golden.Read("intents/golden.safetensors"))["probabilities"]))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
