#!/usr/bin/env python3
"""One markdown table out of what bench/run_gpu measured: ours, the peer, the ratio, the aim, reached or not.

    python3 bench/gpu_table.py FOLDER

Reads what is there of FOLDER/ours_attention.json and ours_model.json (`lacuna bench --json`), peers_attention.json and
peers_model.json. Nothing in the table comes from anywhere else but the peers marked with *: released code that is not
run here, as measured once on an H200 (docs/performance.md). Aims in seconds are for an H200.
"""
import json
import pathlib
import sys

K16, K32, K128 = 16384, 32768, 131072


class Measured:
    """Rows of a few files by (part or file, key, tokens, batch)."""

    def __init__(self, folder):
        self.rows, self.devices, self.notes = {}, set(), []
        for name in ("ours_attention", "ours_model", "peers_attention", "peers_model"):
            path = pathlib.Path(folder) / f"{name}.json"
            if not path.exists():
                self.notes.append(f"{name}: not measured")
                continue
            content = json.loads(path.read_text())
            self.devices.add(content.get("device") or content.get("peer"))
            for row in content["rows"]:
                part = row.get("part", name)
                self.rows[part, row["key"], row["tokens"], row.get("batch", 1)] = row
            self.notes += [f"{name}: no time was left for {what}" for what in content.get("skipped", [])]

    def row(self, part, key, tokens, batch=1):
        return self.rows.get((part, key, tokens, batch))

    def seconds(self, part, key, tokens, batch=1, field="seconds"):
        row = self.row(part, key, tokens, batch)
        return row.get(field) if row else None


def text_of(seconds):
    if seconds is None:
        return "not measured"
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def density_of(measured, part, key, tokens):
    row = measured.row(part, key, tokens)
    return f", density {100 * (1 - row['sparsity']):.1f} %" if row and "sparsity" in row else ""


def table_rows(m):
    """(row, ours, peer, starred, aim in seconds or None, aim as a share of the peer or None)."""
    def attention(key, tokens):
        return m.seconds("attention", key, tokens)

    def density(key, tokens=K128):
        return density_of(m, "attention", key, tokens)

    cudnn = {n: m.seconds("peers_attention", "dense_cudnn", n) for n in (K16, K32, K128)}
    decode_peer = m.seconds("peers_attention", "decode_cudnn", K128)
    prefill_peer = {n: m.seconds("peers_model", "prefill", n) for n in (K16, K32, K128)}
    step_peer = m.seconds("peers_model", "decode", K128)
    yield "dense prefill attention, 16K", attention("dense", K16), cudnn[K16], False, None, None
    yield "dense prefill attention, 32K", attention("dense", K32), cudnn[K32], False, None, 1.0
    yield "dense prefill attention, 128K", attention("dense", K128), cudnn[K128], False, None, 0.85
    yield (f"block_sparse 64, 128K, index included{density('block_sparse_64')}", attention("block_sparse_64", K128),
           80.8e-3, True, 45e-3, None)
    yield (f"block_sparse 16, 128K, index included{density('block_sparse_16')}", attention("block_sparse_16", K128),
           408e-3, True, 80e-3, None)
    yield (f"block_sparse 128, 128K, index included{density('block_sparse_128')}; peer FlexAttention without one",
           attention("block_sparse_128", K128), m.seconds("peers_attention", "flex_128", K128), False, None, None)
    yield (f"vertical_slash, 128K, index included{density('vertical_slash')}", attention("vertical_slash", K128),
           142e-3, True, 50e-3, None)
    for method, aim in (("vertical_slash", 2e-3), ("flexprefill", 4e-3)):
        yield (f"index alone, {method}, 128K", m.seconds("attention", method, K128, field="index_seconds"), None, False,
               aim, None)
    yield "decode attention, dense, 128K, batch 1", attention("decode_dense", K128), decode_peer, False, 75e-6, None
    yield (f"decode attention, quest, 128K, selection included{density('decode_quest')}; peer dense",
           attention("decode_quest", K128), decode_peer, False, 20e-6, None)
    yield "7B prefill, dense, 16K", m.seconds("prefill", "dense", K16), prefill_peer[K16], False, 0.42, None
    yield "7B prefill, dense, 128K", m.seconds("prefill", "dense", K128), prefill_peer[K128], False, 7.5, None
    yield (f"7B prefill, vertical_slash, 128K{density_of(m, 'prefill', 'vertical_slash_90', K128)}; peer dense",
           m.seconds("prefill", "vertical_slash_90", K128), prefill_peer[K128], False, 3.2, None)
    yield "7B decode step, dense, 128K, batch 1", m.seconds("decode", "dense", K128), step_peer, False, 6e-3, None
    alone = 31 * (prefill_peer[K32] + 256 * step_peer) if prefill_peer[K32] and step_peer else None
    yield ("one 32K prompt, 31 variants x 256 tokens; peer: 31 x (prefill + 256 steps)",
           m.seconds("decode", "shared_prefill", K32, 31), alone, False, None, 1 / 25)


def aim_text(aim, share):
    if aim is not None:
        return text_of(aim)
    return "" if share is None else f"{share:.2g} x the peer"


def verdict(ours, peer, aim, share):
    """yes or no; empty where nothing is aimed at or something was not measured."""
    if aim is None and share is not None and peer is not None:
        aim = share * peer
    if aim is None or ours is None:
        return ""
    return "yes" if ours <= aim else f"no ({ours / aim:.2f} x)"


def table(folder):
    m = Measured(folder)
    lines = [f"Measured on: {'; '.join(sorted(filter(None, m.devices))) or 'nothing'}", "",
             "| what | ours | peer | ours / peer | aim | reached |", "|---|---|---|---|---|---|"]
    for name, ours, peer, starred, aim, share in table_rows(m):
        peer_text = "" if peer is None and aim is not None and not starred and "index" in name else text_of(peer)
        ratio = f"{ours / peer:.3g}" if ours is not None and peer is not None else ""
        lines.append(f"| {name} | {text_of(ours)} | {peer_text}{'*' if starred else ''} | {ratio} | "
                     f"{aim_text(aim, share)} | {verdict(ours, peer, aim, share)} |")
    lines += ["", "\\* not run here: the released code, once on an H200."] + [f"- {note}" for note in m.notes]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: gpu_table.py FOLDER")
    print(table(sys.argv[1]))
