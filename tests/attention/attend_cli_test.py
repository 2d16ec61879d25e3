"""lacuna attend as a user runs it: outputs against NumPy, kept arrays, accounting lines, errors and exit codes."""

import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    print("skipped: NumPy is not installed")
    sys.exit(77)

LACUNA = os.environ["LACUNA_BIN"]
FAILURES = []


def check(condition, what):
    if not condition:
        FAILURES.append(what)


def run(folder, *arguments):
    return subprocess.run([LACUNA, "attend", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


def attend(folder, strategy="", q="q", out="o", kept="", extra=()):
    arguments = ["--q", q + ".npy", "--k", "k.npy", "--v", "v.npy", "--out", out + ".npy", *extra]
    if strategy:
        arguments += ["--strategy", strategy]
    if kept:
        arguments += ["--kept", kept + ".npy"]
    return run(folder, *arguments)


def softmax_attention(q, k, v, mask):
    """q [h, n, d], k and v [h, t, d], mask [h, n, t]."""
    s = np.einsum("hnd,htd->hnt", q, k) / np.sqrt(q.shape[-1])
    s = np.where(mask, s, -np.inf)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    return np.einsum("hnt,htd->hnd", p / p.sum(axis=-1, keepdims=True), v)


def number(text, name):
    for line in text.splitlines():
        if line.startswith(name):
            return float(line[len(name):].split()[0])
    FAILURES.append(f"no line '{name}' in the accounting:\n{text}")
    return float("nan")


def main(folder):
    r = np.random.default_rng(1)
    tokens, heads, kv_heads, dim = 300, 6, 2, 80
    q = r.standard_normal((heads, tokens, dim)).astype("float32")
    k = r.standard_normal((kv_heads, tokens, dim)).astype("float16")
    v = r.standard_normal((kv_heads, tokens, dim)).astype("float16")
    for name, array in (("q", q), ("k", k), ("v", v), ("q1", q[:, -1:])):
        np.save(folder / f"{name}.npy", np.ascontiguousarray(array))
    q, k, v = (x.astype("float64") for x in (q, np.repeat(k, 3, axis=0), np.repeat(v, 3, axis=0)))
    causal = np.tril(np.ones((tokens, tokens), dtype=bool))[None]

    # Prefill: the output is attention over the cells that `kept` says, and the accounting counts exactly those.
    for strategy in ("", "{prefill: {vertical_slash: {verticals: 20, slashes: 66}}}", "{prefill: {block_sparse: {chunk_size: 32, top_chunks: 3}}}"):
        done = attend(folder, strategy, kept="kept")
        check(done.returncode == 0, f"{strategy}: exit {done.returncode}: {done.stderr}")
        kept = np.load(folder / "kept.npy").astype(bool)
        check(kept.shape[0] == heads and kept.shape[2] == tokens, f"{strategy}: kept is {kept.shape}")
        rows = 32 if "block_sparse" in strategy else 64
        mask = np.repeat(kept, rows, axis=1)[:, :tokens] & causal
        error = abs(np.load(folder / "o.npy") - softmax_attention(q, k, v, mask)).max()
        check(error < 1e-5, f"{strategy}: output is off by {error}")
        check(number(done.stdout, "visited cells") == mask.sum(), f"{strategy}: visited cells")
        sparsity = 1 - mask.sum() / (heads * causal.sum())
        check(abs(number(done.stdout, "measured sparsity") - sparsity) < 1e-6, f"{strategy}: measured sparsity")

    # Eviction: kept tokens per kv head; the resident bytes follow.
    done = attend(folder, "{evict: {snapkv: {capacity: 150}}}", kept="kept")
    kept = np.load(folder / "kept.npy")
    check(kept.shape == (kv_heads, tokens) and (kept.sum(axis=1) == 150).all(), "snapkv: kept")
    check(kept[:, :4].all() and kept[:, -128:].all(), "snapkv: first and last tokens")
    check(number(done.stdout, "KV bytes resident") == kv_heads * 150 * 2 * dim * 4, "snapkv: resident bytes")

    # Decode: one query over the pages that `kept` says.
    for strategy in ("", "{decode: {quest: {budget: 64}}}", "{decode: {quest: {budget: 64, share_pages: false}}}"):
        done = attend(folder, strategy, q="q1", kept="kept")
        check(done.returncode == 0, f"{strategy}: exit {done.returncode}: {done.stderr}")
        kept = np.load(folder / "kept.npy").astype(bool)
        mask = np.repeat(kept, heads // len(kept), axis=0)[:, None]
        error = abs(np.load(folder / "o.npy") - softmax_attention(q[:, -1:], k, v, mask)).max()
        check(error < 1e-5, f"decode {strategy}: output is off by {error}")
        check(number(done.stdout, "visited cells") == mask.sum(), f"decode {strategy}: visited cells")

    # Threads do not change the bits.
    attend(folder, out="one", extra=("--threads", "1"))
    attend(folder, out="many", extra=("--threads", "8"))
    check((folder / "one.npy").read_bytes() == (folder / "many.npy").read_bytes(), "1 and 8 threads differ")

    # Errors: exit 2, a message that names what is wrong, and no output file.
    np.save(folder / "k3.npy", np.zeros((4, tokens, dim), dtype="float32"))
    (folder / "broken.npy").write_bytes(b"not an array")
    for what, part, arguments in (
        ("unknown method", "did you mean 'quest'", ("--strategy", "{decode: qest}")),
        ("bad YAML", "--strategy", ("--strategy", "{decode: ")),
        ("decode slot on a prompt", "which is a prompt", ("--strategy", "{decode: quest}")),
        ("heads", "kv heads must divide", ("--k", "k3.npy", "--v", "k3.npy")),
        ("missing file", "absent.npy", ("--q", "absent.npy")),
        ("broken file", "is not a .npy file", ("--q", "broken.npy")),
    ):
        given = {"--q": "q.npy", "--k": "k.npy", "--v": "v.npy", "--out": "never.npy"}
        given.update(zip(arguments[::2], arguments[1::2]))
        done = run(folder, *(x for pair in given.items() for x in pair))
        check(done.returncode == 2, f"{what}: exit {done.returncode}")
        check(part in done.stderr, f"{what}: '{part}' is not in: {done.stderr}")
        check(not (folder / "never.npy").exists(), f"{what}: an output was written")


with tempfile.TemporaryDirectory() as name:
    main(pathlib.Path(name))
print("\n".join(FAILURES) or "ok")
sys.exit(1 if FAILURES else 0)
