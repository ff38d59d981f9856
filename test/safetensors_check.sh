#!/usr/bin/env bash
# Starts a daemon of its own, puts models, and has other languages read what lies in shared memory: the official safetensors
# package (safetensors_check.py) every segment; the example of proto/README.md, run as it is printed, a model over the raw
# channel; and examples/python NumPy arrays on the shared pages (numpy_check.py proves that nothing is copied). Cleans up after itself. Exit 77: the Python packages cannot be had here, nothing was checked.
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
	printf '\n!!! NOT CHECKED: %s\n' "$1"
	exit 77
}

tmp=$(mktemp -d)
shm=$(mktemp -d /dev/shm/zcstore-check-XXXXXX)
daemon=
# shellcheck disable=SC2317  # called by trap
cleanup() {
	if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
	rm -rf "$tmp" "$shm"
}
trap cleanup EXIT

# The packages, at fixed versions, in an environment that goes away again.
py=${PYTHON:-python3}
if ! "$py" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then skip "python3 (3.10 or later) is not here"; fi
if ! { "$py" -m venv "$tmp/venv" && "$tmp/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy; } >"$tmp/pip" 2>&1; then
	tail -n 5 "$tmp/pip"
	skip "the packages safetensors and numpy could not be installed"
fi
py=$tmp/venv/bin/python

go build -o "$tmp/" ./cmd/zcstored ./cmd/zcctl
export ZCSTORE_SOCKET=$tmp/s
"$tmp/zcstored" --dev --dir "$shm" >"$tmp/log" 2>&1 &
daemon=$!
for ((i = 0; ; i++)); do
	if "$tmp/zcctl" status >/dev/null 2>&1; then break; fi
	if ((i == 100)) || ! kill -0 "$daemon" 2>/dev/null; then cat "$tmp/log"; echo "the daemon does not serve"; exit 1; fi
	sleep 0.1
done

# Some 5 MB with what a small model does not have: tensors over a megabyte, odd sizes, 16-bit ones, an empty one and a scalar.
"$py" - "$tmp/wide.safetensors" <<'PY'
import sys
import numpy as np
from safetensors.numpy import save_file
r = np.random.default_rng(7)
save_file({
    "wide.weight": r.standard_normal((800, 1024)).astype(np.float32),
    "odd.weight": r.standard_normal((701, 499)).astype(np.float32),
    "half.weight": r.standard_normal((521, 521)).astype(np.float16),
    "line.weight": r.standard_normal((64, 33)).astype(np.float32),
    "ids": np.arange(37, dtype=np.int64),
    "mask": r.integers(0, 255, 4099).astype(np.uint8),
    "scale": np.array(0.5, dtype=np.float32),
    "empty": np.zeros((0, 8), dtype=np.float32),
}, sys.argv[1])
PY

"$tmp/zcctl" put intents test/golden/intents
"$tmp/zcctl" put wide "$tmp/wide.safetensors"
"$py" test/safetensors_check.py --source test/golden/intents/model.safetensors --source "$tmp/wide.safetensors" "$shm"

# The protocol's example, from the page itself.
awk '/^```python/ { on = 1; next } /^```/ { on = 0 } on' proto/README.md >"$tmp/attach.py"
[ -s "$tmp/attach.py" ] || { echo "proto/README.md has no Python example"; exit 1; }
"$py" "$tmp/attach.py" "$ZCSTORE_SOCKET" wide >"$tmp/attached"
cat "$tmp/attached"
grep -q 'wide.weight F32 \[800, 1024\]' "$tmp/attached" || { echo "the example of proto/README.md did not list wide.weight"; exit 1; }
if "$py" "$tmp/attach.py" "$ZCSTORE_SOCKET" nothing-here >"$tmp/attached" 2>&1; then echo "attaching what is not stored succeeded"; exit 1; fi
grep -q not_found "$tmp/attached" || { cat "$tmp/attached"; echo "no typed refusal"; exit 1; }
echo "the example of proto/README.md attaches, and is refused as it should be"

# examples/python: every kind of tensor, bfloat16 too, and a second version that shares a segment with the first and has one
# tensor less in it.
"$py" - "$tmp/one.safetensors" "$tmp/two.safetensors" <<'PY'
import json
import struct
import sys
import numpy as np
r = np.random.default_rng(11)
def write(path, tensors):
    header, data = {}, b""
    for name, dtype, array in tensors:
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
def bf16(*shape):
    return (r.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
common = [("a.weight", "F32", r.standard_normal((600, 512)).astype(np.float32)), ("b.weight", "BF16", bf16(512, 300)),
          ("c.weight", "F16", r.standard_normal((300, 128)).astype(np.float16)), ("ids", "I64", np.arange(19)),
          ("mask", "BOOL", r.integers(0, 2, (5, 7)).astype(bool)), ("scale", "F64", np.array(0.25)), ("empty", "F32", np.zeros((0, 4), np.float32))]
write(sys.argv[1], common + [("only.in.one", "F32", r.standard_normal((64, 512)).astype(np.float32))])
write(sys.argv[2], common + [("only.in.two", "U8", r.integers(0, 255, 70001).astype(np.uint8))])
PY
"$tmp/zcctl" put np:one "$tmp/one.safetensors"
"$tmp/zcctl" put np:two "$tmp/two.safetensors"
"$py" test/numpy_check.py "$tmp/one.safetensors" np:one
"$py" test/numpy_check.py "$tmp/two.safetensors" np:two
"$py" test/numpy_check.py "$tmp/wide.safetensors" wide
if "$py" test/numpy_check.py "$tmp/one.safetensors" np:two >"$tmp/attached" 2>&1; then echo "numpy_check.py finds no difference between two versions"; exit 1; fi
if "$py" test/numpy_check.py "$tmp/one.safetensors" nothing-here >"$tmp/attached" 2>&1; then echo "attaching what is not stored succeeded"; exit 1; fi
grep -q not_found "$tmp/attached" || { cat "$tmp/attached"; echo "no typed refusal"; exit 1; }
echo "examples/python attaches without a copy"
