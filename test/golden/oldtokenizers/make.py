"""What transformers makes of tokenizers without a tokenizer.json: vocab.txt, vocab.json + merges.txt and SentencePiece models.

    python make.py GOLDEN      GOLDEN: the large reference data, of which tokenizers/*/spiece.model and corpus.jsonl are taken

"fast" is what AutoTokenizer gives, "slow" the older Python classes; they differ on a few odd texts."""
import json
import os
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import (AlbertTokenizer, AlbertTokenizerFast, BertTokenizer, BertTokenizerFast, DebertaV2Tokenizer, DebertaV2TokenizerFast,
                          RobertaTokenizer, RobertaTokenizerFast, XLMRobertaTokenizer, XLMRobertaTokenizerFast)

golden = sys.argv[1]
texts = [json.loads(line)["text"] for line in open(f"{golden}/tokenizers/corpus.jsonl")][::7]
texts += ["state-of-the-art, 1,000 (9,5) things!", "Héllo  WORLD <mask> [MASK] </s>x", "  leading and trailing  "]
pair = ["How many  tokens?", "café, 42."]

os.makedirs("roberta", exist_ok=True)
os.makedirs("bert", exist_ok=True)
bpe = ByteLevelBPETokenizer()
bpe.train_from_iterator(texts, vocab_size=400, min_frequency=2, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
bpe.save_model("roberta")
vocab = json.load(open("../intents/tokenizer.json"))["model"]["vocab"]
with open("bert/vocab.txt", "w") as f:
    f.write("\n".join(sorted(vocab, key=vocab.get)) + "\n")

cases = {
    "bert": (BertTokenizerFast, BertTokenizer, "bert", {"vocab_file": "bert/vocab.txt"}, {}),
    "bert-cased": (BertTokenizerFast, BertTokenizer, "bert", {"vocab_file": "bert/vocab.txt"}, {"do_lower_case": False, "tokenize_chinese_chars": False}),
    "roberta": (RobertaTokenizerFast, RobertaTokenizer, "roberta", {"vocab_file": "roberta/vocab.json", "merges_file": "roberta/merges.txt"}, {}),
    "roberta-prefix": (RobertaTokenizerFast, RobertaTokenizer, "roberta", {"vocab_file": "roberta/vocab.json", "merges_file": "roberta/merges.txt"}, {"add_prefix_space": True}),
    "xlm-roberta": (XLMRobertaTokenizerFast, XLMRobertaTokenizer, "xlm-roberta", {"vocab_file": f"{golden}/tokenizers/unigram-xlmr/spiece.model"}, {}),
    "albert": (AlbertTokenizerFast, AlbertTokenizer, "albert", {"vocab_file": f"{golden}/tokenizers/unigram-albert/spiece.model"}, {}),
    "albert-cased": (AlbertTokenizerFast, AlbertTokenizer, "albert", {"vocab_file": f"{golden}/tokenizers/unigram-albert/spiece.model"}, {"do_lower_case": False, "keep_accents": True}),
    "deberta-v2": (DebertaV2TokenizerFast, DebertaV2Tokenizer, "deberta-v2", {"vocab_file": f"{golden}/tokenizers/unigram-albert/spiece.model"}, {}),
    "deberta-v2-split": (DebertaV2TokenizerFast, DebertaV2Tokenizer, "deberta-v2", {"vocab_file": f"{golden}/tokenizers/unigram-albert/spiece.model"}, {"do_lower_case": True, "split_by_punct": True}),
}
out = {"versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__},
       "texts": texts, "pair": pair, "cases": {}}
for name, (fast, slow, family, files, options) in cases.items():
    s = slow(**files, **options)
    with tempfile.TemporaryDirectory() as d:  # through a tokenizer.json, as it is published
        fast(**files, **options).save_pretrained(d)
        f = fast.from_pretrained(d)
    out["cases"][name] = {"model_type": family, "config": options, "fast": [f(t)["input_ids"] for t in texts], "pair": f(*pair)["input_ids"],
                          "types": f(*pair, return_token_type_ids=True)["token_type_ids"]}
    slow_ids = [s(t)["input_ids"] for t in texts]
    out["cases"][name]["slow_differs"] = sum(a != b for a, b in zip(slow_ids, out["cases"][name]["fast"]))
    print(name, out["cases"][name]["slow_differs"], "of", len(texts))
with open("golden.json", "w") as f:
    json.dump(out, f)
    f.write("\n")
