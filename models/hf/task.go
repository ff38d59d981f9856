package hf

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// heads are what a model is for, by the end of its class's name.
var heads = []struct{ suffix, task string }{
	{"ForSequenceClassification", text.Classify}, {"ForTokenClassification", text.Tag},
	{"ForQuestionAnswering", text.Answer}, {"ForMaskedLM", text.FillMask},
}

// task says what the directory is for: its modules and architectures say it.
func (c *config) task(modules []module, cfg *text.Config) error {
	cfg.Task = text.Encode
	for _, h := range heads {
		if len(c.Architectures) > 0 && strings.HasSuffix(c.Architectures[0], h.suffix) {
			cfg.Task = h.task
		}
	}
	if len(modules) > 1 || len(modules) == 1 && cfg.Task == text.Encode {
		cfg.Task = text.Embed
	}
	if cfg.Task != text.Classify && cfg.Task != text.Tag {
		return nil
	}
	var err error
	if cfg.Labels, err = c.labels(); err != nil {
		return err
	}
	if cfg.Task == text.Tag {
		return nil
	}
	cfg.ProblemType = c.ProblemType
	path := c.SentenceTransformers.Activation
	if path == "" {
		path = c.CrossEncoderActivation
	}
	if path == "" && (len(cfg.Labels) != 1 || c.ProblemType != "") {
		return nil
	}
	cfg.Task = text.Rerank
	switch name := lastPart(path); name {
	case "":
	case "Sigmoid":
		cfg.Activation = "sigmoid"
	case "Identity":
		cfg.Activation = "identity"
	default:
		return zcerr.New(zcerr.Unsupported, "%s: the activation %q of a cross-encoder is not supported", c.path, path).WithHint("Sigmoid and Identity are")
	}
	return nil
}

// labels are the names of the classes in their order.
func (c *config) labels() ([]string, error) {
	n := c.NumLabels
	if n == 0 {
		n = len(c.ID2Label)
	}
	if n == 0 {
		n = 2 // as for every key left out
	}
	if n < 0 || n > 1<<20 {
		return nil, zcerr.New(zcerr.Invalid, "%s: num_labels is %d", c.path, n)
	}
	out := make([]string, n)
	for i := range out {
		out[i] = c.ID2Label[strconv.Itoa(i)]
		if out[i] == "" {
			out[i] = fmt.Sprintf("LABEL_%d", i)
		}
	}
	return out, nil
}

// lastPart is a class of Python without the path of its module, which changes between versions.
func lastPart(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }
