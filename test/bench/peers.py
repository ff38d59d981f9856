"""zcctl bench infer and other runtimes, turn by turn on one machine, and the ratios of what they reached.

  python peers.py EMBED MODEL REF [--form packed] [--engines ort,openvino] [--rounds 3] [--shapes 1x16,...] [--threads 1]

EMBED is a script that measures peers: it takes MODEL (a Hugging Face directory, or bert-base), --threads, --shapes, --engines,
--seconds and --json FILE, and writes a list of {engine, shape, median_s, best_s}. REF is the same model, put in a daemon that
serves; zcctl is $ZCCTL. Every turn is printed. A ratio is that of the medians over the turns (of the best runs in brackets), ours
in GF/s over the best peer's: above 1 we are faster.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile

ap = argparse.ArgumentParser()
ap.add_argument("embed"); ap.add_argument("model"); ap.add_argument("ref")
ap.add_argument("--form", default="packed")
ap.add_argument("--engines", default="ort,openvino,ct2")
ap.add_argument("--shapes", default="1x16,1x128,8x128,32x128,32x32")
ap.add_argument("--rounds", type=int, default=3)
ap.add_argument("--threads", type=int, default=1)
ap.add_argument("--seconds", type=float, default=2, help="time for a shape in a turn")
a = ap.parse_args()
shapes = a.shapes.split(",")
runs = {}  # (who, shape) -> [(median, best)], seconds

def note(who, shape, median, best, more=""):
    runs.setdefault((who, shape), []).append((median, best))
    print(f"{who:14s} {shape:>7s} median {median*1e3:9.3f} ms  best {best*1e3:9.3f} ms {more}", flush=True)

def ours():
    out = subprocess.run([os.environ.get("ZCCTL", "zcctl"), "bench", "infer", a.ref, "--form", a.form, "--threads", str(a.threads),
        "--shapes", a.shapes, "--window", f"{a.seconds}s", "-o", "json"], check=True, stdout=subprocess.PIPE).stdout
    for r in json.loads(out)["rows"]:
        note("zcstore", r["shape"], r["median_secs"], r["best_secs"], f"{100*r['share']:.1f} % of the probe" + (", unquiet" if r["unquiet"] else ""))

def theirs(engine):
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "out.json")
        p = subprocess.run([sys.executable, a.embed, a.model, "--threads", str(a.threads), "--shapes", a.shapes, "--engines", engine,
            "--seconds", str(a.seconds), "--json", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if p.returncode:
            sys.exit(p.stderr.decode()[-2000:])
        for r in json.load(open(path)):
            note(r["engine"], r["shape"], r["median_s"], r["best_s"])

for _ in range(a.rounds):
    for e in a.engines.split(","):
        ours()
        theirs(e)
print(f"\n{'shape':8s} {'best peer':>12s} {'ratio':>6s} {'of the best runs':>17s}")
for s in shapes:
    peers = [e for e in a.engines.split(",") if (e, s) in runs]
    if not peers:
        continue
    middle = lambda who: statistics.median(m for m, _ in runs[who, s])
    best = lambda who: min(b for _, b in runs[who, s])
    e = min(peers, key=middle)
    print(f"{s:8s} {e:>12s} {middle(e)/middle('zcstore'):6.2f} {'(' + format(min(map(best, peers))/best('zcstore'), '.2f') + ')':>17s}")
