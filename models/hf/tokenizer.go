package hf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/zcstore/zcstore/models/manifest"
	"github.com/zcstore/zcstore/models/text"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

// tokenizerConfig is tokenizer_config.json as far as the importer itself reads it.
type tokenizerConfig struct {
	MaxLength float64      `json:"model_max_length"`
	CutSide   string       `json:"truncation_side"`
	Cls       specialToken `json:"cls_token"`
	Unk       specialToken `json:"unk_token"`
	Mask      specialToken `json:"mask_token"`
	Prefix    bool         `json:"add_prefix_space"`

	Lowercase    *bool `json:"do_lower_case"`
	KeepAccents  bool  `json:"keep_accents"`
	SplitByPunct bool  `json:"split_by_punct"`
}

// specialToken is a token, or an object that has it.
type specialToken string

func (t *specialToken) UnmarshalJSON(b []byte) error {
	var o struct {
		Content string `json:"content"`
	}
	if len(b) > 0 && b[0] == '{' {
		err := json.Unmarshal(b, &o)
		*t = specialToken(o.Content)
		return err
	}
	return json.Unmarshal(b, (*string)(t))
}

// optional reads a file of the directory that may be left out: nil then.
func optional(dir, name string) ([]byte, error) {
	b, err := readSmall(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// tokenizer adds the tokenizer, as a tokenizer.json whatever it was, and the length that texts are cut to. c says what the model
// takes.
func (im *Import) tokenizer(root *manifest.Node, dir string, c *config, cfg *text.Config) error {
	var tc tokenizerConfig
	keep := func(key string, b []byte) {
		root.Items = append(root.Items, manifest.Item{Key: key, Node: &manifest.Node{Kind: manifest.Value, MediaType: text.FileMedia, Value: b}})
	}
	special, err := optional(dir, "special_tokens_map.json")
	if err != nil {
		return err
	}
	if special != nil { // which tokenizer_config.json may say otherwise
		if err := json.Unmarshal(special, &tc); err != nil {
			return badJSON(filepath.Join(dir, "special_tokens_map.json"), err)
		}
	}
	tcb, err := optional(dir, text.PartTokenizerConfig)
	if err != nil {
		return err
	}
	if tcb != nil {
		if err := json.Unmarshal(tcb, &tc); err != nil {
			return badJSON(filepath.Join(dir, text.PartTokenizerConfig), err)
		}
		keep(text.PartTokenizerConfig, tcb)
	}
	if cfg.MaxLength = c.sizes.MaxTokens; tc.MaxLength >= 1 && tc.MaxLength < float64(cfg.MaxLength) {
		cfg.MaxLength = int(tc.MaxLength)
	}
	cfg.CutLeft = tc.CutSide == "left"
	switch cfg.Task {
	case text.Tag:
		cfg.UnknownToken = string(tc.Unk)
	case text.Answer:
		cfg.ClassToken = string(tc.Cls)
	case text.FillMask:
		cfg.MaskToken = string(tc.Mask)
	}
	if err := readLimits(dir, c, cfg); err != nil {
		return err
	}
	file, tj, err := tokenizerJSON(dir, c, &tc, tcb)
	if err != nil {
		return err
	}
	if tj == nil {
		im.Notes = append(im.Notes, "no tokenizer: the pipeline takes token ids")
		return nil
	}
	keep(text.PartTokenizer, tj)
	tok, err := tokenizer.FromJSON(tj)
	if err != nil {
		return zcerr.New(tokenizerKind(err), "%s/%w", dir, err) // it begins with the file's name
	}
	im.tables = tok.Compiled()
	if n := tok.VocabSize(); c.sizes.Vocab > 0 && n > c.sizes.Vocab {
		return zcerr.New(zcerr.Invalid, "%s has %d tokens, %s says vocab_size %d: they are of different models", file, n, c.path, c.sizes.Vocab).
			WithHint("take the tokenizer and the weights from one download")
	}
	return nil
}

// tokenizerJSON is the tokenizer.json of a directory, or what its older files come to as one; and the file that it is from.
func tokenizerJSON(dir string, c *config, tc *tokenizerConfig, tcb []byte) (file string, tj []byte, err error) {
	read := func(name string) []byte {
		if err != nil {
			return nil
		}
		var b []byte
		b, err = optional(dir, name)
		return b
	}
	if tj := read(text.PartTokenizer); tj != nil || err != nil {
		return filepath.Join(dir, text.PartTokenizer), tj, err
	}
	file = "vocab.txt"
	if vocab := read(file); vocab != nil {
		tj, err = convertVocab(vocab, c, tcb)
	} else if vocab, merges := read("vocab.json"), read("merges.txt"); vocab != nil && merges != nil {
		file = "vocab.json"
		var opt tokenizer.MergesOptions
		if opt, err = mergesOptions(c, tc); err == nil {
			tj, err = tokenizer.ConvertMerges(vocab, merges, opt)
		}
	} else if name, ok := sentencePieces[c.ModelType]; ok {
		if model := read(name); model != nil {
			file = name
			o := tokenizer.FamilyOptions{Lowercase: c.ModelType == "albert", KeepAccents: tc.KeepAccents, SplitByPunct: tc.SplitByPunct}
			if tc.Lowercase != nil {
				o.Lowercase = *tc.Lowercase
			}
			if tj, err = tokenizer.ConvertSentencePiece(model, tokenizer.Family(c.ModelType), o); err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if err != nil {
		return "", nil, zcerr.New(tokenizerKind(err), "%s/%w", dir, err).WithHint("%s", zcerr.HintOf(err))
	}
	return filepath.Join(dir, file), tj, nil
}

// sentencePieces are the files of families that have one.
var sentencePieces = map[string]string{"xlm-roberta": "sentencepiece.bpe.model", "albert": "spiece.model", "deberta-v2": "spm.model"}

// makeJSON says how to get a file that is read.
const makeJSON = "make a tokenizer.json: python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('DIR').save_pretrained('DIR')\""

// convertVocab takes a vocab.txt as families of BERT do.
func convertVocab(vocab []byte, c *config, tcb []byte) ([]byte, error) {
	switch c.ModelType {
	case "", "bert", "distilbert", "electra":
	default: // which frames texts in another way
		return nil, zcerr.New(zcerr.Unsupported, "vocab.txt of a %s is not supported", c.ModelType).WithHint(makeJSON)
	}
	opt := tokenizer.DefaultVocabOptions()
	if tcb != nil {
		var err error
		if opt, err = tokenizer.VocabOptionsFromConfig(tcb); err != nil {
			return nil, err
		}
	}
	return tokenizer.ConvertVocab(vocab, opt)
}

// mergesOptions says how the family of a model uses a vocab.json and a merges.txt.
func mergesOptions(c *config, tc *tokenizerConfig) (tokenizer.MergesOptions, error) {
	var o tokenizer.MergesOptions
	switch c.ModelType {
	case "gpt2":
		o = tokenizer.GPT2Options()
	case "roberta", "bart":
		o = tokenizer.RobertaOptions()
	default:
		return o, zcerr.New(zcerr.Unsupported, "vocab.json and merges.txt of a %s are not supported", c.ModelType).
			WithHint(makeJSON)
	}
	o.AddPrefixSpace = tc.Prefix
	return o, nil
}

// tokenizerKind keeps what is not built apart from what is broken.
func tokenizerKind(err error) zcerr.Kind {
	if zcerr.KindOf(err) == zcerr.Unsupported {
		return zcerr.Unsupported
	}
	return zcerr.Invalid
}

// readLimits reads sentence_bert_config.json, which overrides the tokenizer's length.
func readLimits(dir string, c *config, cfg *text.Config) error {
	path := filepath.Join(dir, "sentence_bert_config.json")
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var s struct {
		MaxSeqLength *int `json:"max_seq_length"`
		Lowercase    bool `json:"do_lower_case"`
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return badJSON(path, err)
	}
	cfg.Lowercase = s.Lowercase
	if s.MaxSeqLength == nil {
		return nil
	}
	if n, limit := *s.MaxSeqLength, c.sizes.MaxTokens; n < 3 || n > limit {
		return zcerr.New(zcerr.Invalid, "%s: max_seq_length is %d, the model takes 3 to %d", path, n, limit)
	}
	cfg.MaxLength = *s.MaxSeqLength
	return nil
}
