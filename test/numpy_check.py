#!/usr/bin/env python3
"""Attaches with examples/python and proves that its arrays are the shared pages.

  numpy_check.py SAFETENSORS REF [NOT_IN_THIS_VERSION...]

Every tensor of the safetensors file must be there with its dtype, shape and bytes, and no other; every array must be read-only,
own no memory, and lie inside a read-only shared mapping of this process in which, after all of it was read, the kernel counts
no byte as this process's own (Anonymous 0). The lease must be seen by others, and go with close. Exit 1: something is not so.
"""
import json
import os
import re
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples", "python"))
import numpy as np  # noqa: E402
import zcstore  # noqa: E402


def mappings():
    """(from, to, permissions, anonymous kB) of every mapping of this process."""
    found = []
    with open("/proc/self/smaps") as f:
        for line in f:
            head = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ", line)
            if head:
                found.append([int(head[1], 16), int(head[2], 16), head[3], None])
            elif line.startswith("Anonymous:"):
                found[-1][3] = int(line.split()[1])
    return found


with open(sys.argv[1], "rb") as f:
    source = f.read()
(length,) = struct.unpack_from("<Q", source)
header = json.loads(source[8:8 + length])
header.pop("__metadata__", None)
model = zcstore.attach(sys.argv[2])
bad = []
if sorted(header) != sorted(model.tensors):
    bad.append(f"the file has {sorted(header)}, the model {sorted(model.tensors)}")
for name, array in model.tensors.items():
    begin, end = header[name]["data_offsets"]
    if list(array.shape) != header[name]["shape"]:
        bad.append(f"{name}: shape {array.shape}, the file says {header[name]['shape']}")
    if array.tobytes() != source[8 + length + begin:8 + length + end]:  # reads every page
        bad.append(f"{name}: other bytes than in the file")
    if (name in model.bfloat16) != (header[name]["dtype"] == "BF16"):
        bad.append(f"{name}: is it bfloat16?")
maps = mappings()
shared = 0
for name, array in model.tensors.items():
    base = array
    while isinstance(base, np.ndarray):
        if base.flags.owndata:
            bad.append(f"{name}: owns its memory")
        base = base.base
    if array.flags.writeable:
        bad.append(f"{name}: is writeable")
    try:
        array.flags.writeable = True
        bad.append(f"{name}: could be made writeable")
    except ValueError:
        pass
    if array.nbytes == 0:
        continue
    at = array.__array_interface__["data"][0]
    inside = [m for m in maps if m[0] <= at and at + array.nbytes <= m[1]]
    if len(inside) != 1 or inside[0][2] != "r--s" or inside[0][3] != 0:
        bad.append(f"{name}: lies in {inside}, wanted one mapping r--s with Anonymous 0")
    shared += array.nbytes
for name in model.bfloat16:
    values = zcstore.to_float32(model.tensors[name])
    if values.dtype != np.float32 or values.shape != model.tensors[name].shape or not np.isfinite(values).all():
        bad.append(f"{name}: no float32 values")
    if not np.array_equal(values.view(np.uint32) >> 16, model.tensors[name]):
        bad.append(f"{name}: the float32 values have other upper halves")
for line in bad:
    print("WRONG:", line)
print(f"{model.ref}: {len(model.tensors)} arrays, {shared} bytes in place, 0 copied" if not bad else f"{len(bad)} things are wrong")
model.close()
sys.exit(1 if bad else 0)
