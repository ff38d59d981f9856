"""Speed of models/tokenizer beside the official `tokenizers` package: one thread, warm, in turns.

    export RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
    python test/bench/tokenizers/bench.py make DIR --golden GOLDEN   # texts and tokenizers, once; a few minutes
    go build -o DIR/ours ./test/bench/tokenizers && python test/bench/tokenizers/bench.py time DIR [NAME...]

`make` takes its texts from the machine it runs on: English prose is Newton's Opticks of the Go distribution, the other file is what
programs say in some 60 languages, from their message catalogues; the third is the hostile texts of the golden corpus. bpe.json (byte-level, 50,000) and unigram.json (32,000, NFKC, Metaspace)
are trained on documentation and on nine tenths of those messages; none of the texts that are timed. Nothing of it is committed.

`time` alternates windows of both, and prints MB/s at the best window of each and the median of the ratios of neighbours. Before that it
compares ids and offsets of every text.
"""
import argparse, glob, hashlib, json, os, re, statistics, struct, subprocess, sys, time
from pathlib import Path

NAMES = ["wordpiece", "bpe", "unigram"]
TEXTS = ["english", "mixed", "corpus"]
TURNS = 15
WINDOW = 0.15  # seconds


def messages(path):
    """The translations of a gettext catalogue."""
    b = Path(path).read_bytes()
    if len(b) < 28 or b[:4] != b"\xde\x12\x04\x95":
        return
    n, _, table = struct.unpack("<III", b[8:20])
    for i in range(1, n):  # the first is the header
        size, at = struct.unpack("<II", b[table + 8 * i : table + 8 * i + 8])
        yield b[at : at + size]


def catalogues():
    """Messages by language, each once; those that are not UTF-8 are left out."""
    out = {}
    for path in sorted(glob.glob("/usr/share/locale/*/LC_MESSAGES/*.mo")):
        lang = path.split("/")[4].split(".")[0]
        seen = out.setdefault(lang, {})
        for m in messages(path):
            try:
                text = m.replace(b"\0", b"\n").decode()
            except UnicodeDecodeError:
                continue
            if len(text) > 40:
                seen[re.sub(r"\s+", " ", text)] = None
    return {lang: list(texts) for lang, texts in out.items() if len(texts) > 200}


def paragraphs(texts, size=600):
    """Texts joined to paragraphs of about so many characters."""
    part = []
    for t in texts:
        part.append(t)
        if sum(map(len, part)) >= size:
            yield " ".join(part)
            part = []


def make(d, golden):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    goroot = subprocess.check_output(["go", "env", "GOROOT"], text=True).strip()
    opticks = (Path(goroot) / "src/testdata/Isaac.Newton-Opticks.txt").read_text()
    english = [re.sub(r"\s*\n\s*", " ", p).strip() for p in opticks.split("\n\n")]
    mixed, train = [], []
    for lang, texts in sorted(catalogues().items()):
        held = [t for t in texts if hashlib.sha256(t.encode()).digest()[0] % 10 == 0]
        mixed += list(paragraphs(held))[:12]
        rest = [t for t in texts if hashlib.sha256(t.encode()).digest()[0] % 10 != 0]
        train += rest[:1500]
    docs = sorted(glob.glob(goroot + "/src/**/*.go", recursive=True)) + sorted(glob.glob("/usr/share/vim/*/doc/*.txt")) + sorted(glob.glob("/usr/share/perl/**/*.p[mo]*", recursive=True))
    for path in filter(os.path.isfile, docs[::2]):
        text = Path(path).read_text(errors="ignore")
        if path.endswith(".go"):
            text = "\n".join(m[3:] for m in re.findall(r"^\s*// .*", text, re.M))
        train += [line for line in text.split("\n") if len(line) > 20]
    corpus = [json.loads(line)["text"] for line in open(golden / "tokenizers" / "corpus.jsonl")]
    for name, texts in (("english", english), ("mixed", mixed), ("corpus", corpus)):
        texts = [t for t in texts if t]
        (d / (name + ".json")).write_text(json.dumps(texts, ensure_ascii=False))
        print(name, len(texts), "texts,", sum(len(t.encode()) for t in texts), "bytes")
    print("train", len(train), "lines,", sum(len(t.encode()) for t in train), "bytes")

    (d / "wordpiece.tokenizer.json").write_bytes((golden / "minilm/model/tokenizer.json").read_bytes())
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(train, trainers.BpeTrainer(vocab_size=50000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.save(str(d / "bpe.tokenizer.json"))
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.train_from_iterator(train[::2], trainers.UnigramTrainer(vocab_size=32000, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False))
    t.save(str(d / "unigram.tokenizer.json"))


class Ours:
    """A process that encodes on demand, so that both sides take turns."""

    def __init__(self, d):
        self.p = subprocess.Popen([d / "ours", d], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.p.stdin.write(" ".join(map(str, words)) + "\n")
        self.p.stdin.flush()
        return self.p.stdout.readline().split()


def digest(encodings):
    h = hashlib.sha256()
    for ids, offsets in encodings:
        h.update((" ".join(map(str, ids)) + "|" + " ".join("%d:%d" % o for o in offsets) + "\n").encode())
    return h.hexdigest()[:16]


def compare(d, names):
    from tokenizers import Tokenizer, __version__

    print("tokenizers", __version__)
    ours = Ours(d)
    failed = False
    for name in names:
        t = Tokenizer.from_file(str(d / (name + ".tokenizer.json")))
        t.no_padding()
        t.no_truncation()
        for file in TEXTS:
            texts = json.loads((d / (file + ".json")).read_text())
            size = sum(len(x.encode()) for x in texts)
            want = digest((e.ids, e.offsets) for e in t.encode_batch(texts))
            got = ours.ask(name, file, "digest")[0]
            if got != want:
                print(name, file, "DIFFERS", got, want)
                failed = True
                continue
            for kind, call in (("offsets", t.encode_batch), ("ids", t.encode_batch_fast)):
                theirs = []
                for _ in range(2):
                    at = time.perf_counter()
                    call(texts)
                    theirs.append(time.perf_counter() - at)
                passes = max(1, round(WINDOW / min(theirs)))
                one = int(ours.ask(name, file, kind, 3)[0]) / 1e9 / 3
                mine = max(1, round(WINDOW / one))
                a, b, allocs = [], [], 0
                for _ in range(TURNS):
                    ns, mallocs = map(int, ours.ask(name, file, kind, mine))
                    a.append(ns / 1e9 / mine)
                    allocs = max(allocs, mallocs)
                    at = time.perf_counter()
                    for _ in range(passes):
                        call(texts)
                    b.append((time.perf_counter() - at) / passes)
                ratio = statistics.median(y / x for x, y in zip(a, b))
                print("%-10s %-8s %-8s ours %6.1f MB/s, official %5.1f MB/s, %5.2f times (best window %5.2f); %d allocations in a window"
                      % (name, file, kind, size / min(a) / 1e6, size / min(b) / 1e6, ratio, min(b) / min(a), allocs), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["make", "time"])
    p.add_argument("dir", type=Path)
    p.add_argument("names", nargs="*")
    p.add_argument("--golden", type=Path)
    a = p.parse_args()
    if a.what == "make":
        a.dir.mkdir(parents=True, exist_ok=True)
        make(a.dir, a.golden)
    else:
        compare(a.dir, a.names or NAMES)
