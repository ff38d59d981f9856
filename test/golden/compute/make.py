"""What torch, in float64, makes of ops and of an encoder at sizes of real models: heads of 24 to 128, 200 and more positions, hidden
states of 256 and 768. Run in this folder; versions go to golden.json.

Inputs and weights are not stored: element i of the tensor with a seed is the hash below, so that both sides make the same."""
import json

import numpy as np
import safetensors
import safetensors.numpy
import torch
import torch.nn.functional as F
import transformers
from transformers import BertConfig, BertModel

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def noise(seed, *shape, scale=1.0):
    """From -scale to scale, exact in float32 when the scale is a power of two."""
    n = int(np.prod(shape))
    h = (np.arange(n, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    for mul in (0x85EBCA6B, 0xC2B2AE35):
        h = ((h ^ (h >> np.uint64(16))) * np.uint64(mul)) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(16)
    v = (h >> np.uint64(8)).astype(np.float64) / 2**23 - 1
    return torch.from_numpy((v * scale).reshape(shape))


out = {}


def keep(name, t, every):
    out[name] = np.ascontiguousarray(t.numpy()[::every].astype(np.float32))


N, HEADS = 211, 4
for size in (24, 32, 64, 80, 128):
    for kv, causal in ((4, False), (4, True), (2, True), (1, False)):
        q = noise(size, N, HEADS * size, scale=2)
        k, v = noise(size + 1, N, kv * size, scale=2), noise(size + 2, N, kv * size)
        split = lambda x, h: x.reshape(N, h, size).transpose(0, 1)
        y = F.scaled_dot_product_attention(split(q, HEADS), split(k, kv).repeat_interleave(HEADS // kv, 0), split(v, kv).repeat_interleave(HEADS // kv, 0), is_causal=causal)
        keep(f"attention.{size}.{kv}.{'causal' if causal else 'all'}", y.transpose(0, 1).reshape(N, -1), 30)
x = noise(7, 40, 768, scale=8)
keep("gelu-erf", F.gelu(x), 13)
keep("gelu-tanh", F.gelu(x, approximate="tanh"), 13)
keep("silu", F.silu(x), 13)
keep("tanh", torch.tanh(x), 13)
keep("sigmoid", torch.sigmoid(x), 13)
keep("softmax", F.softmax(x, -1), 13)
keep("layernorm", F.layer_norm(x, (768,), noise(8, 768), noise(9, 768), 1e-5), 13)
w = noise(10, 300, 768, scale=2**-4)
keep("linear", F.gelu(F.linear(x, w, noise(11, 300))), 13)

config = dict(vocab_size=97, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=1024,
              max_position_embeddings=256, type_vocab_size=2, hidden_act="gelu", architectures=["BertModel"], model_type="bert")
m = BertModel(BertConfig(**config, attn_implementation="eager"), add_pooling_layer=False).double().eval()
names = []
for i, (name, p) in enumerate(sorted(m.state_dict().items())):
    if not p.dtype.is_floating_point:
        continue
    p.copy_((noise(100 + i, *p.shape, scale=2**-3) + (name.endswith("LayerNorm.weight"))).float())
    names.append([name, list(p.shape), 100 + i])
lengths = [200, 137]
ids = torch.zeros(2, 200, dtype=torch.long)
mask = torch.zeros(2, 200, dtype=torch.long)
for i, n in enumerate(lengths):
    ids[i, :n] = (torch.arange(n) * 31 + 7 * i) % 97
    mask[i, :n] = 1
h = m(input_ids=ids, attention_mask=mask).last_hidden_state
keep("bert", torch.cat([h[i, :n] for i, n in enumerate(lengths)]), 16)

safetensors.numpy.save_file(out, "golden.safetensors")
json.dump(dict(torch=torch.__version__, transformers=transformers.__version__, numpy=np.__version__, safetensors=safetensors.__version__,
               config=config, tensors=names, lengths=lengths), open("golden.json", "w"), indent=1)
