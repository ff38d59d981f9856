package text

import (
	"math"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// The tasks.
const (
	Embed    = "embed"     // text in, vector out
	Encode   = "encode"    // an encoder without a head: vectors are the mean of its hidden states
	Classify = "classify"  // text in, labels and scores out
	Tag      = "tag"       // text in, labelled spans out
	Answer   = "answer"    // question and context in, spans of the context out
	FillMask = "fill-mask" // text with masks in, tokens for them out
	Rerank   = "rerank"    // query and texts in, one score for each text out
)

// Config is what a pipeline adds to its parts.
type Config struct {
	Task         string `json:"task"`
	MaxLength    int    `json:"max_length,omitempty"`   // tokens of one text, special ones included; longer texts are cut. 0: no limit
	Lowercase    bool   `json:"do_lower_case"`          // text is lower-cased before the tokenizer, as sentence-transformers can ask for
	CutLeft      bool   `json:"cut_left,omitempty"`     // texts that are too long lose their beginning, not their end
	NoSpecial    bool   `json:"no_special,omitempty"`   // the tokenizer adds no special tokens
	ProblemType  string `json:"problem_type,omitempty"` // of a classifier, as config.json has it
	Activation   string `json:"activation,omitempty"`   // of a cross-encoder's scores: "sigmoid", "identity"; empty: by its labels
	ClassToken   string `json:"cls_token,omitempty"`    // may stand in an answer's span: the one of no answer
	UnknownToken string `json:"unk_token,omitempty"`
	MaskToken    string `json:"mask_token,omitempty"`

	Labels  []string          `json:"labels,omitempty"`  // of a classifier or tagger
	Prompts map[string]string `json:"prompts,omitempty"` // put before a text by name
	Prompt  string            `json:"prompt,omitempty"`  // the name of the one that is used unless another is asked for
}

// Problem types.
const (
	regression  = "regression"
	multiLabel  = "multi_label_classification"
	singleLabel = "single_label_classification"
)

// Activations.
const (
	sigmoidActivation  = "sigmoid"
	identityActivation = "identity"
)

func (c *Config) check(path string, maxTokens int) error {
	if n := c.MaxLength; n < 1 && maxTokens > 0 || maxTokens > 0 && n > maxTokens || n < 0 {
		return zcerr.New(zcerr.Invalid, "%s: max_length is %d, the model takes 1 to %d (max_position_embeddings)", path, n, maxTokens)
	}
	switch c.Task {
	case Embed, Encode, Classify, Tag, Answer, FillMask, Rerank:
	default:
		return zcerr.New(zcerr.Unsupported, "%s: task %q is not supported", path, c.Task)
	}
	switch c.ProblemType {
	case "", regression, multiLabel, singleLabel:
	default:
		return zcerr.New(zcerr.Unsupported, "%s: problem_type %q is not supported (%s, %s and %s are)", path, c.ProblemType, regression, multiLabel, singleLabel)
	}
	switch c.Activation {
	case "", sigmoidActivation, identityActivation:
	default:
		return zcerr.New(zcerr.Unsupported, "%s: activation %q is not supported (%s and %s are)", path, c.Activation, sigmoidActivation, identityActivation)
	}
	if _, ok := c.Prompts[c.Prompt]; c.Prompt != "" && !ok {
		return zcerr.New(zcerr.Invalid, "%s: the prompt %q is asked for, and there is none of that name", path, c.Prompt)
	}
	return nil
}

func sigmoid(x float32) float32 { return float32(1 / (1 + math.Exp(-float64(x)))) }

// softmax turns logits into probabilities, in place.
func softmax(row []float32) {
	most := float32(math.Inf(-1))
	for _, x := range row {
		most = max(most, x)
	}
	sum := 0.0
	for i, x := range row {
		e := math.Exp(float64(x - most))
		row[i] = float32(e)
		sum += e
	}
	for i := range row {
		row[i] = float32(float64(row[i]) / sum)
	}
}

// best is the index of the largest value.
func best(row []float32) int {
	b := 0
	for i := range row {
		if row[i] > row[b] {
			b = i
		}
	}
	return b
}
