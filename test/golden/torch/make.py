"""Files of torch.save, and what is in them, for models/pickle and models/hf. Run in this folder; versions go to versions.json."""
import json
from collections import OrderedDict

import torch
from safetensors.torch import save_file

torch.manual_seed(4)
wide = torch.randn(6, 8)
state = OrderedDict(
    plain=torch.randn(3, 5),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 4),
    half=torch.randn(4).half(),
    bf16=torch.randn(2, 3).bfloat16(),
    double=torch.randn(3).double(),
    longs=torch.arange(7),
    ints=torch.arange(5, dtype=torch.int32),
    shorts=torch.arange(3, dtype=torch.int16),
    chars=torch.arange(-2, 3, dtype=torch.int8),
    octets=torch.arange(9, dtype=torch.uint8),
    flags=torch.tensor([True, False, True]),
    parameter=torch.nn.Parameter(torch.randn(2, 2)),
    rows=wide[2:5],  # a part of a storage, as it lies
    columns=wide[:, 1:4],  # elements that lie apart
    turned=wide.t(),
    cube=torch.randn(2, 3, 4).permute(2, 0, 1),
    expanded=torch.arange(6).expand((1, -1)),  # as position_ids are
)
state["tied"] = state["plain"]
state["tied.view"] = state["plain"].view(5, 3)
state._metadata = OrderedDict({"": {"version": 1}})

torch.save(state, "state.pt")
torch.save(state, "protocol4.pt", pickle_protocol=4)
torch.save(state, "stream.pt", _use_new_zipfile_serialization=False)
newer = {"f8": torch.randn(4).to(torch.float8_e4m3fn), "u16": torch.arange(4).to(torch.uint16)}
torch.save(newer, "newer.pt")
torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), "module.pt")
torch.save({"model": state, "epoch": 3}, "checkpoint.pt")
torch.save({"repeated": torch.randn(3, 1).expand(3, 100)}, "repeated.pt")
save_file({k: v.detach().clone().contiguous() for k, v in {**state, **newer}.items()}, "expected.safetensors")
with open("versions.json", "w") as f:
    json.dump({"torch": torch.__version__, "seed": 4}, f)
