#!/usr/bin/env python3
"""Reads segments of a store with the official safetensors package, and checks how they are laid out.

  safetensors_check.py [--source FILE]... DIRECTORY | SEGMENT...

A segment (s-* in the daemon's directory) is a safetensors file that anybody's reader must take. On top of the format it
promises (docs of internal/store): tensor data begins on a page; a tensor of 4 KiB or more lies on a multiple of 64 bytes,
one of 1 MiB or more on a page; there are no holes. Each tensor of a --source file must be in one of the segments, with the
same dtype, shape and bytes.

Needs the packages safetensors and numpy. Starts nothing and changes nothing. Exit 1: something is not as promised.
"""
import argparse
import hashlib
import json
import math
import os
import struct
import sys

import safetensors
from safetensors import safe_open

PAGE = 4096
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
        "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}
NUMPY = {"BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F16", "F32", "F64"}  # what numpy can hold


def raw_header(data):
    (n,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    return 8 + n, header


def read(path, complain):
    """Gives {(dtype, shape, sha256)} of the tensors in a file, read by the official package."""
    with open(path, "rb") as f:
        data = f.read()
    start, header = raw_header(data)
    found = set()
    with safe_open(path, framework="numpy") as st:
        names = list(st.keys())
        if sorted(names) != sorted(header):
            complain(f"the official reader names {len(names)} tensors, the header {len(header)}")
        for name in names:
            part = st.get_slice(name)
            dtype, shape = part.get_dtype(), tuple(part.get_shape())
            begin, end = header[name]["data_offsets"]
            raw = data[start + begin:start + end]
            if (dtype, shape) != (header[name]["dtype"], tuple(header[name]["shape"])):
                complain(f"{name}: the official reader says {dtype} {shape}")
            if 8 * len(raw) != BITS[dtype] * math.prod(shape):
                complain(f"{name}: {dtype} {shape} in {len(raw)} bytes")
            if dtype in NUMPY and st.get_tensor(name).tobytes() != raw:
                complain(f"{name}: the official reader gives other bytes than lie at {begin}")
            found.add((dtype, shape, hashlib.sha256(raw).hexdigest()))
        meta = st.metadata() or {}
    return start, len(data), header, meta, found


def check_segment(path, complain):
    start, size, header, meta, found = read(path, complain)
    if meta.get("zcstore.segment_format") != "1":
        complain(f"segment format {meta.get('zcstore.segment_format')!r}, this script knows 1")
    if start % PAGE:
        complain(f"data begins at {start}, not on a page")
    at = 0
    pads = 0
    for name, t in sorted(header.items(), key=lambda kv: kv[1]["data_offsets"]):
        begin, end = t["data_offsets"]
        if begin != at:
            complain(f"{name}: begins at {begin}, the one before it ends at {at}")
        at = end
        if name.startswith("__pad__."):
            pads += 1
            continue
        align = PAGE if end - begin >= 1 << 20 else 64 if end - begin >= 4 << 10 else BITS[t["dtype"]] // 8
        if (start + begin) % align:
            complain(f"{name}: {end - begin} bytes at {start + begin}, not a multiple of {align}")
    if start + at != size:
        complain(f"tensors end at {start + at}, the file at {size}")
    return len(header) - pads, pads, found


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", action="append", default=[], metavar="FILE", help="its tensors must be in the segments")
    p.add_argument("paths", nargs="+", metavar="DIRECTORY | SEGMENT")
    args = p.parse_args()
    paths = []
    for path in args.paths:
        if os.path.isdir(path):
            paths += sorted(os.path.join(path, n) for n in os.listdir(path) if n.startswith("s-"))
        else:
            paths.append(path)

    failures = 0
    where = ""

    def complain(text):
        nonlocal failures
        failures += 1
        print(f"{where}: {text}")

    tensors = 0
    stored = set()
    for path in paths:
        where = os.path.basename(path)
        try:
            n, pads, found = check_segment(path, complain)
        except Exception as e:  # the official reader's own refusal is a finding
            complain(f"not read: {type(e).__name__}: {e}")
            continue
        tensors += n
        stored |= found
        dtypes = sorted({t[0] for t in found})
        print(f"{where}: {n} tensors ({' '.join(dtypes)}), {pads} pads, {os.path.getsize(path)} bytes")
    for path in args.source:
        where = path
        _, _, header, _, found = read(path, complain)
        lost = sorted(found - stored)
        if lost:
            complain(f"{len(lost)} of its {len(found)} different tensors are in no segment, as {lost[0]}")
    if not paths:
        where = " ".join(args.paths)
        complain("no segments here")
    if failures:
        print(f"{failures} failures in {len(paths)} segments")
        return 1
    print(f"{len(paths)} segments, {tensors} tensors: all read by safetensors {safetensors.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
