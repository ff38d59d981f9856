#!/usr/bin/env bash
# Starts a daemon of its own, puts two models, and has other languages read what lies in shared memory: the official
# safetensors package (safetensors_check.py) every segment, and the example of proto/README.md, run as it is printed, a
# model over the raw channel. Cleans up after itself. Exit 77: the Python packages cannot be had here, nothing was checked.
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
