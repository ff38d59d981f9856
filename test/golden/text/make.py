"""Tiny text pipelines, and what transformers and sentence-transformers answer. Run in this folder, offline; versions go to
golden.json. All models share base/ (a BERT encoder and the tokenizer of ../intents); a folder of heads/ or st/ has what is laid
over a copy of it. Weights are random and wide, so that answers differ."""
import json
import os
import shutil
import tempfile

import numpy
import sentence_transformers
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from transformers import (BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification,
                          BertForTokenClassification, BertModel, PreTrainedTokenizerFast, RobertaConfig,
                          RobertaForQuestionAnswering, RobertaTokenizerFast, pipeline)

try:
    from sentence_transformers.base.modules import Dense
except ImportError:
    from sentence_transformers.sentence_transformer.modules import Dense

torch.set_num_threads(1)
for d in ("base", "heads", "st"):
    shutil.rmtree(d, ignore_errors=True)

TEXTS = [
    "please show me the models", "what is the weather in Paris today?", "remove the old model and free the memory",
    "Play some music, loud.", "", "zcstore", "How many workers hold the model named minilm?", "unfathomable antidisestablishment",
    "the quick brown fox jumps over the lazy dog while seven workers wait for the weights of the largest model that was ever "
    "stored in shared memory on a machine with two cores and little else to do but count its tokens again and again and again",
    "Grüße aus Zürich, naïve café!", "a", "set an alarm for seven in the morning",
]
CONTEXT = ("The store keeps weights in shared memory. Workers attach to the daemon and map the same pages read-only. A model has "
           "versions, and tags point at them. When a worker ends, its lease ends too. The daemon was written in Go by people in Paris, "
           "and it never computes anything. A version that nobody holds may leave memory, and it comes back from the disk.")
QUESTIONS = ["Where was the daemon written?", "What do tags point at?", "What ends with a worker?", "who?"]
MAX = 48


def config(**more):
    return BertConfig(vocab_size=400, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
                      max_position_embeddings=64, initializer_range=0.35, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **more)


def make(cls, folder, seed, wide=1.0, noise=0.2, **more):
    torch.manual_seed(seed)
    m = cls(config(**more)).eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "LayerNorm" in n or n.endswith("bias"):
                p.add_(noise * torch.randn_like(p))
            if n.startswith(("classifier", "qa_outputs")):
                p.mul_(wide)
    m.save_pretrained(folder)
    return m


tokenizer = PreTrainedTokenizerFast.from_pretrained("../intents", model_max_length=MAX)
tokenizer.save_pretrained("base")
make(BertModel, "base", 1)
golden = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                       "sentence_transformers": sentence_transformers.__version__},
          "texts": TEXTS, "context": CONTEXT, "questions": QUESTIONS, "st": {}, "heads": {}}


def plain(v):
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    if isinstance(v, (numpy.generic, torch.Tensor)):
        return v.item()
    return v


def head(name, cls, seed, task, run, **more):
    make(cls, f"heads/{name}", seed, **more)
    p = pipeline(task, model=f"heads/{name}", tokenizer=tokenizer, device="cpu")
    golden["heads"][name] = plain(run(p))


NAMES = ["alarm", "music", "weather", "model"]
labels = dict(id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)})
classify = lambda p: [p(t, top_k=None, truncation=True) for t in TEXTS]
head("single", BertForSequenceClassification, 2, "text-classification", classify, wide=3, **labels)
head("multi", BertForSequenceClassification, 3, "text-classification", classify, wide=3, problem_type="multi_label_classification", **labels)
head("regression", BertForSequenceClassification, 4, "text-classification", classify, wide=3, num_labels=1, problem_type="regression")
head("one", BertForSequenceClassification, 5, "text-classification", classify, wide=3, num_labels=1)

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
tags = dict(id2label=dict(enumerate(TAGS)), label2id={n: i for i, n in enumerate(TAGS)})
head("tags", BertForTokenClassification, 44, "token-classification",
     lambda p: {s: [p(t, aggregation_strategy=s) if t else [] for t in TEXTS] for s in ("none", "simple", "first", "average", "max")}, wide=2, noise=0, **tags)


def answers(p):
    out = []
    for q in QUESTIONS:
        for context in (CONTEXT, CONTEXT[:80]):
            for args in (dict(), dict(top_k=4), dict(max_seq_len=32, doc_stride=8, top_k=3, max_answer_len=6),
                         dict(handle_impossible_answer=True, top_k=2), dict(handle_impossible_answer=True, top_k=25), dict(align_to_words=False, top_k=3)):
                got = p(question=q, context=context, **args)
                out.append({"question": q, "context": context, "args": args, "answers": got if isinstance(got, list) else [got]})
    return out


head("qa", BertForQuestionAnswering, 7, "question-answering", answers, wide=2)
# A tokenizer whose tokens do not tell where words begin.
byte_level = RobertaTokenizerFast("../oldtokenizers/roberta/vocab.json", "../oldtokenizers/roberta/merges.txt", model_max_length=MAX)
torch.manual_seed(13)
roberta = RobertaForQuestionAnswering(RobertaConfig(**{**config().to_diff_dict(), "model_type": "roberta", "vocab_size": len(byte_level), "type_vocab_size": 1, "pad_token_id": 1}))
roberta.eval().save_pretrained("heads/qa-roberta")
byte_level.save_pretrained("heads/qa-roberta")
golden["heads"]["qa-roberta"] = plain(answers(pipeline("question-answering", model=roberta, tokenizer=byte_level, device="cpu")))
MASKED = ["show me the [MASK]", "[MASK] the old [MASK] please", "what is the weather in [MASK]?"]
head("mlm", BertForMaskedLM, 8, "fill-mask", lambda p: [{"text": t, "answers": p(t, top_k=4)} for t in MASKED])


def rerank(name, seed, **more):
    make(BertForSequenceClassification, f"heads/{name}", seed, wide=3, num_labels=1, **more)
    with tempfile.TemporaryDirectory() as d:
        shutil.copytree(f"heads/{name}", d, dirs_exist_ok=True)
        tokenizer.save_pretrained(d)
        ce = CrossEncoder(d, device="cpu", max_length=MAX)
        golden["heads"][name] = [[float(s) for s in ce.predict([(q, t) for t in TEXTS])] for q in QUESTIONS]


rerank("rerank", 9)
rerank("rerank-identity", 10, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity", "version": "5"})

embeddings = {}


def sentence(name, modules, encode=None, edit=None, **more):
    model = SentenceTransformer(modules=modules, device="cpu", **more)
    folder = f"st/{name}"
    model.save_pretrained(folder, create_model_card=False)
    for f in os.listdir(folder):  # what base/ has
        if os.path.exists(f"base/{f}") and f not in ("sentence_bert_config.json",) and "Static" not in str(modules[0]):
            os.remove(f"{folder}/{f}")
    if edit:
        edit(folder)
        with tempfile.TemporaryDirectory() as d:
            shutil.copytree("base", d, dirs_exist_ok=True)
            shutil.copytree(folder, d, dirs_exist_ok=True)
            model = SentenceTransformer(d, device="cpu")
            model.max_seq_length = model.max_seq_length
    calls = encode or {"": {}}
    for call, args in calls.items():
        key = name + (":" + call if call else "")
        embeddings[key] = torch.tensor(numpy.stack([model.encode(t, **args) for t in TEXTS])).contiguous()
        golden["st"][key] = {"folder": name, "args": args}


base = lambda: st.Transformer("base") if hasattr(st, "Transformer") else None
if base() is None:
    raise SystemExit("no Transformer module")
for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"):
    sentence(mode, [base(), st.Pooling(24, mode)])


def legacy(folder):
    with open(f"{folder}/1_Pooling/config.json", "w") as f:
        json.dump({"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True,
                   "pooling_mode_mean_sqrt_len_tokens": False}, f)


def older(folder):
    legacy(folder)
    with open(f"{folder}/sentence_bert_config.json", "w") as f:
        json.dump({"max_seq_length": 12, "do_lower_case": True}, f)


torch.manual_seed(11)
sentence("legacy", [base(), st.Pooling(24, ("cls", "max", "mean"))], edit=legacy)
sentence("older", [base(), st.Pooling(24, ("cls", "max", "mean"))], edit=older)
sentence("dense", [base(), st.Pooling(24, ("mean", "cls")), Dense(48, 16), st.LayerNorm(16), st.Dropout(0.1), st.Normalize()],
         encode={"": {}, "cut": {"truncate_dim": 5}, "cut-normal": {"truncate_dim": 5, "normalize_embeddings": True}})
for name, act in {"relu": torch.nn.ReLU(), "gelu": torch.nn.GELU(), "sigmoid": torch.nn.Sigmoid(), "identity": torch.nn.Identity()}.items():
    sentence("dense-" + name, [base(), st.Pooling(24, "mean"), Dense(24, 8, bias=name != "identity", activation_function=act)])
prompts = dict(prompts={"query": "show me the ", "document": "weather: "}, default_prompt_name="query")
for include in (True, False):
    sentence(f"prompt-{include}".lower(), [base(), st.Pooling(24, "mean", include_prompt=include)], encode={
        "": {}, "document": {"prompt_name": "document"}, "own": {"prompt": "play the music "}, "none": {"prompt": ""}}, **prompts)
torch.manual_seed(12)
sentence("static", [st.StaticEmbedding(tokenizer, embedding_dim=8), st.Normalize()])
save_file(embeddings, "golden.safetensors")
with open("golden.json", "w") as f:
    json.dump(golden, f, indent=0)
    f.write("\n")
