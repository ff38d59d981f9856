"""Heads of encoder families that the large goldens lack: tiny random models, and what transformers answers.

  python make.py .        # writes FAMILY-HEAD/{config.json,model.safetensors,golden.safetensors}

Made with torch 2.15.0, transformers 4.57.6, safetensors 0.8.0, seed 7, eager attention. Inputs: two texts of 9 and 6 tokens,
padded right (case `right`), and the first alone (`single`).
"""
import os, sys
import torch
from safetensors.torch import save_file
from transformers import AutoConfig
import transformers

BERT = dict(vocab_size=41, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=20)
FAMILIES = {
    "roberta": ("Roberta", dict(BERT, type_vocab_size=1, pad_token_id=1)),
    "xlm-roberta": ("XLMRoberta", dict(BERT, type_vocab_size=1, pad_token_id=1)),
    "distilbert": ("DistilBert", dict(vocab_size=41, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20)),
    "electra": ("Electra", dict(BERT, embedding_size=12)),
    "albert": ("Albert", dict(BERT, embedding_size=12)),
    "mpnet": ("MPNet", dict(BERT, pad_token_id=1)),
    "deberta-v2": ("DebertaV2", dict(BERT, relative_attention=True, position_buckets=6, max_relative_positions=20, pos_att_type="p2c|c2p",
                                     position_biased_input=False, type_vocab_size=0, norm_rel_ebd="layer_norm", share_att_key=True)),
    "modernbert": ("ModernBert", dict(vocab_size=41, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20,
                                      max_position_embeddings=32, local_attention=6, global_attn_every_n_layers=2, pad_token_id=0,
                                      cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)),
}
HEADS = {"base": "Model", "seqcls": "ForSequenceClassification", "tokcls": "ForTokenClassification", "qa": "ForQuestionAnswering", "mlm": "ForMaskedLM"}
THERE = {"roberta-base", "roberta-seqcls", "roberta-mlm", "xlm-roberta-tokcls", "distilbert-base", "distilbert-seqcls", "electra-base",
         "electra-seqcls", "albert-base", "albert-mlm", "mpnet-base", "deberta-v2-base", "deberta-v2-seqcls", "modernbert-base", "modernbert-mlm"}


def make(out, family, head):
    prefix, keys = FAMILIES[family]
    if family == "modernbert" and head == "seqcls":
        keys = dict(keys, classifier_pooling="mean")
    config = AutoConfig.for_model(family, num_labels=2 if head == "qa" else 3, attn_implementation="eager", **keys)
    torch.manual_seed(7)
    model = getattr(transformers, prefix + HEADS[head])(config).eval()
    with torch.no_grad():  # larger than what they begin with, so that a wrong part shows
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.normal_(0, 0.4)
            elif "norm" not in name.lower():
                p.normal_(0, 0.2)
    pad = config.pad_token_id or 0
    ids = torch.arange(18).reshape(2, 9) * 7 % 37 + 3
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = pad, 0
    golden = {"right.input_ids": ids, "right.attention_mask": mask, "single.input_ids": ids[:1].clone()}
    with torch.no_grad():
        for case, x in {"right": dict(input_ids=ids, attention_mask=mask), "single": dict(input_ids=ids[:1])}.items():
            y = model(output_hidden_states=True, **x)
            for k, h in enumerate(y.hidden_states):
                golden[f"{case}.hidden.{k}"] = h
            for k in ("logits", "start_logits", "end_logits", "pooler_output"):
                if y.get(k) is not None:
                    golden[f"{case}.{k}"] = y[k]
    folder = os.path.join(out, f"{family}-{head}")
    model.save_pretrained(folder)
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        os.remove(os.path.join(folder, "generation_config.json"))
    save_file({k: v.contiguous().clone() for k, v in golden.items()}, os.path.join(folder, "golden.safetensors"))


for family in FAMILIES:
    for head in HEADS:
        if f"{family}-{head}" not in THERE:
            make(sys.argv[1], family, head)
