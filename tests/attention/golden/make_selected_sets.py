"""What the six methods of arXiv 2504.17768 select, by an independent NumPy implementation.

Writes selected_sets.json: for integer-valued Q and K (made here by a hash, and in selected_sets_test.cpp by the same
one) the kept columns, diagonals, blocks, tokens and pages, in full for the short prompts and as 64-bit digests for the
long ones. Weights are float64, so the sets do not depend on anybody's rounding.

Run: python3 tests/attention/golden/make_selected_sets.py
"""

import json
import pathlib

import numpy as np

DIM = 32
SCALE = 1 / 16
U64 = np.uint64


def mix(x):
    """SplitMix64's finaliser on a uint64 array."""
    with np.errstate(over="ignore"):
        x = x + U64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
        return x ^ (x >> U64(31))


def integers(seed, tensor, heads, tokens):
    """[heads, tokens, DIM] of integers in [-3, 3]; element i comes from mix((seed * 4 + tensor) << 40 | i)."""
    i = np.arange(heads * tokens * DIM, dtype=U64)
    x = mix(U64((seed * 4 + tensor) << 40) | i)
    return ((x >> U64(33)) % U64(7)).astype(np.int64).reshape(heads, tokens, DIM) - 3


def digest(lists):
    """64 bits of a list of lists of integers: sum of mix(value + 1, position), lists separated by a value of -1."""
    flat = np.concatenate([np.append(np.asarray(x, dtype=np.int64), -1) for x in lists])
    with np.errstate(over="ignore"):
        position = np.arange(len(flat), dtype=U64)
        total = mix((flat + 1).astype(U64) + (position << U64(32))).sum(dtype=U64)
    return f"{int(total):016x}"


def window_weights(q, k, window):
    """P of one query head, the last rows only: [rows, tokens]."""
    tokens = len(k)
    rows = min(window, tokens)
    s = (q[tokens - rows:] @ k.T) * SCALE
    at = np.arange(tokens - rows, tokens)[:, None]
    s = np.where(np.arange(tokens)[None, :] <= at, s, -np.inf)
    p = np.exp(s - s.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def best(scores, count):
    """Indices of the `count` largest, lower index first among equals, ascending."""
    return np.sort(np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")[:count])


def diagonal_sums(p):
    rows, tokens = p.shape
    sums = np.zeros(tokens)
    for r in range(rows):
        i = tokens - rows + r
        sums[: i + 1] += p[r, : i + 1][::-1]
    return sums


def tiles_of(columns, offsets, tokens):
    """Visited keys per block of 64 rows under the released tile rule."""
    result = []
    for m in range(0, tokens, 64):
        visited = np.zeros(tokens + 64 * 64, dtype=bool)
        visited[columns] = True
        spans = []
        for o in sorted((int(o) for o in offsets if o < m + 64), reverse=True):
            start = max(m - o, 0)
            if not spans or start > spans[-1][1]:
                spans.append([start, start + 64])
            elif start + 64 > spans[-1][1]:
                spans[-1][1] += 64
        for a, b in spans:
            visited[a:b] = True
        result.append(np.flatnonzero(visited[: min(m + 64, tokens)]))
    return result


def vertical_slash(q, k, verticals, slashes, window):
    p = window_weights(q, k, window)
    columns, diagonals = p.sum(axis=0), diagonal_sums(p)
    columns[:4] = np.inf
    diagonals[:64] = np.inf
    return tiles_of(best(columns, verticals), best(diagonals, slashes), len(k))


def flexprefill(q, k, alpha, min_budget, window):
    p = window_weights(q, k, window)
    kept = []
    for scores, always in ((p.mean(axis=0), 4), (diagonal_sums(p) / len(p), 64)):
        mass = np.cumsum(np.sort(scores)[::-1])
        count = int(np.argmax(mass > alpha)) + 1 if (mass > alpha).any() else len(scores)
        scores[:always] = np.inf
        kept.append(best(scores, max(count, min_budget, always)))
    return tiles_of(kept[0], kept[1], len(k))


def block_sparse(q, k, chunk_size, top_chunks):
    tokens = len(k)
    starts = np.arange(0, tokens, chunk_size)
    counts = np.diff(np.append(starts, tokens))[:, None]
    pooled_q = np.add.reduceat(q, starts) / counts
    pooled_k = np.add.reduceat(k, starts) / counts
    result = []
    for i in range(len(starts)):
        s = pooled_k[: i + 1] @ pooled_q[i]
        s[[0, i, max(i - 1, 0)]] = np.inf
        blocks = best(s, max(top_chunks, 3))
        visited = np.concatenate([np.arange(b * chunk_size, min((b + 1) * chunk_size, tokens)) for b in blocks])
        result.append(visited)
    return result


def smooth(x, kernel=21):
    padded = np.pad(x, kernel // 2)
    return np.lib.stride_tricks.sliding_window_view(padded, kernel).sum(axis=1) / kernel


def keep_ends(importance):
    importance[:4] = np.inf
    importance[-128:] = np.inf
    return importance


def snapkv(q, k, group, capacity, window):
    kept = []
    for kv in range(len(k)):
        sums = np.mean([window_weights(q[kv * group + g], k[kv], window).sum(axis=0) for g in range(group)], axis=0)
        kept.append(best(keep_ends(smooth(sums)), max(capacity, 132)))
    return kept


def ada_snapkv(q, k, group, capacity, window):
    importance = np.array([
        keep_ends(smooth(np.max([window_weights(q[kv * group + g], k[kv], window).max(axis=0) for g in range(group)], axis=0)))
        for kv in range(len(k))
    ])
    floor = max(capacity // 5, 132)
    kept = np.zeros(importance.shape, dtype=bool)
    for kv, row in enumerate(importance):
        kept[kv, best(row, floor)] = True
    left = capacity * len(k) - kept.sum()
    rest = np.where(kept, -np.inf, importance).ravel()  # head-major: ties go to the lower head, then the lower token
    if left > 0:
        kept.ravel()[np.argsort(-rest, kind="stable")[:left]] = True
    return [np.flatnonzero(row) for row in kept]


def quest(q, k, group, budget, share):
    lists = []
    for kv in range(len(k)):
        pages = [k[kv, t : t + 16] for t in range(0, k.shape[1], 16)]
        low = np.array([p.min(axis=0) for p in pages])
        high = np.array([p.max(axis=0) for p in pages])
        bounds = [np.maximum(x * low, x * high).sum(axis=1) for x in q[kv * group : (kv + 1) * group, -1]]
        for row in [np.sum(bounds, axis=0)] if share else bounds:
            lists.append(np.append(best(row[:-1], budget // 16), len(pages) - 1))
    return lists


def cases():
    seed = 0
    for tokens in (200, 777, 2048, 4096):
        for group, kv_heads in ((1, 2), (4, 2), (7, 1)):
            seed += 1
            q = integers(seed, 0, group * kv_heads, tokens).astype(np.float64)
            k = integers(seed, 1, kv_heads, tokens).astype(np.float64)
            per_head = lambda method, **params: [  # noqa: E731
                method(q[h], k[h // group], **params) for h in range(group * kv_heads)]
            budget = max(tokens // 10, 70)
            capacity = max(tokens // 5, 150)
            sets = {
                ("prefill", "vertical_slash", f'{{"verticals": {budget}, "slashes": {budget}, "window": 256}}'):
                    per_head(vertical_slash, verticals=budget, slashes=budget, window=256),
                ("prefill", "flexprefill", f'{{"alpha": 0, "min_budget": {budget}}}'):
                    per_head(flexprefill, alpha=0, min_budget=budget, window=512),
                ("prefill", "flexprefill", '{"alpha": 0.4, "min_budget": 32}'):
                    per_head(flexprefill, alpha=0.4, min_budget=32, window=512),
                ("prefill", "block_sparse", '{"chunk_size": 16, "top_chunks": 9}'):
                    per_head(block_sparse, chunk_size=16, top_chunks=9),
                ("prefill", "block_sparse", '{"chunk_size": 64, "top_chunks": 5}'):
                    per_head(block_sparse, chunk_size=64, top_chunks=5),
                ("evict", "snapkv", f'{{"capacity": {capacity}}}'): [snapkv(q, k, group, capacity, 256)],
                ("evict", "ada_snapkv", f'{{"capacity": {capacity}}}'): [ada_snapkv(q, k, group, capacity, 256)],
                ("decode", "quest", f'{{"budget": {budget}}}'): [quest(q, k, group, budget, True)],
                ("decode", "quest", f'{{"budget": {budget}, "share_pages": false}}'): [quest(q, k, group, budget, False)],
            }
            for (slot, method, params), lists in sets.items():
                case = {"seed": seed, "tokens": tokens, "q_heads": group * kv_heads, "kv_heads": kv_heads, "slot": slot,
                        "method": method, "params": json.loads(params), "digests": [digest(x) for x in lists]}
                if tokens == 200 and group == 4 and slot != "prefill":
                    case["sets"] = [[int(v) for v in x] for x in lists[0]]
                yield case


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("selected_sets.json")
    lines = [json.dumps(case, separators=(",", ":")) for case in cases()]
    path.write_text('{"head_dim": %d, "scale": %r, "cases": [\n%s\n]}\n' % (DIM, SCALE, ",\n".join(lines)))
    print(path, len(lines), "cases,", path.stat().st_size, "bytes")
