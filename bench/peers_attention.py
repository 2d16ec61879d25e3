"""Times the peers of bench_attention_cuda on the same shapes: torch SDPA (FlashAttention-2, cuDNN) and FlexAttention.

    python3 bench/peers_attention.py [longest tokens] [--lengths 16384,32768,131072] [--json FILE]

Prints a line per row; --json writes them too, whatever was measured before an error included. Exit code 77: no GPU.
"""

import argparse
import json
import signal
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Q_HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
ROWS = []


def record(key, tokens, seconds, **more):
    ROWS.append({"key": key, "tokens": tokens, "seconds": seconds, **more})


def median_ms(call, budget_ms=300.0):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    torch.cuda.synchronize()
    times = []
    while sum(times) < budget_ms or len(times) < 3:
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
        if len(times) >= 100:
            break
    return sorted(times)[len(times) // 2]


def tensors(tokens, rows=None):
    shape = lambda heads, n: (1, n, heads, HEAD_DIM)  # noqa: E731
    make = lambda heads, n: torch.randn(shape(heads, n), device="cuda", dtype=torch.bfloat16).transpose(1, 2)  # noqa: E731
    return make(Q_HEADS, rows or tokens), make(KV_HEADS, tokens), make(KV_HEADS, tokens)


def dense(tokens):
    q, k, v = tensors(tokens)
    flops = 2 * Q_HEADS * tokens * (tokens + 1) * HEAD_DIM
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)):
        if name != "cuDNN" and tokens > 32768:
            continue
        with sdpa_kernel(backend):
            ms = median_ms(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        record("dense_" + ("cudnn" if name == "cuDNN" else "flash"), tokens, ms * 1e-3)
        print(f"peer dense prefill {name:18s} {tokens:7d} {ms:9.3f} ms {flops / ms * 1e-9:6.1f} TFLOP/s", flush=True)


def decode(tokens):
    q, k, v = tensors(tokens, 1)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        call = lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)  # noqa: E731
        call()
        stream = torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(20):
                call()
        ms = median_ms(graph.replay, 100.0)
    record("decode_cudnn", tokens, ms * 1e-3 / 20)
    print(f"peer dense decode  cuDNN              {tokens:7d} {ms * 50:9.2f} us", flush=True)


def flex(tokens, keep=0.10):
    """128x128 blocks, `keep` of all blocks per row chosen at random, as in docs/performance.md."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    block, n = 128, tokens // 128
    kept = int(keep * n)
    scores = torch.rand(1, Q_HEADS, n, n, device="cuda")
    causal = torch.ones(n, n, device="cuda", dtype=torch.bool).tril()
    scores.masked_fill_(~causal, -1)
    scores[..., 0] = 2
    scores.diagonal(dim1=-2, dim2=-1).fill_(3)
    full = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(kept, -1).indices, True) & causal
    diagonal = torch.eye(n, device="cuda", dtype=torch.bool).expand_as(full)
    full = full & ~diagonal
    order = lambda m: (m.sum(-1, dtype=torch.int32), torch.argsort(m.int(), dim=-1, descending=True, stable=True).int())  # noqa: E731
    mask = BlockMask.from_kv_blocks(*order(diagonal), *order(full), BLOCK_SIZE=block, mask_mod=lambda b, h, i, j: i >= j)
    q, k, v = tensors(tokens)
    compiled = torch.compile(flex_attention)
    ms = median_ms(lambda: compiled(q, k, v, block_mask=mask, enable_gqa=True))
    blocks = (full | diagonal).sum().item()
    record("flex_128", tokens, ms * 1e-3, density=blocks / (causal.sum().item() * Q_HEADS))
    print(f"peer FlexAttention {block}x{block}, {blocks / (causal.sum().item() * Q_HEADS):.1%} density {tokens:7d} "
          f"{ms:9.3f} ms {4 * blocks * block * block * HEAD_DIM / ms * 1e-9:6.1f} TFLOP/s", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("longest", nargs="?", type=int, default=131072)
    parser.add_argument("--lengths", default="16384,32768,65536,131072")
    parser.add_argument("--json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))  # so that what was measured is written
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 77
    torch.manual_seed(0)
    lengths = [n for n in map(int, args.lengths.split(",")) if n <= args.longest]
    try:
        for tokens in lengths:
            dense(tokens)
        for tokens in lengths:
            decode(tokens)
        flex(max(lengths))
    finally:
        if args.json:
            with open(args.json, "w") as file:
                json.dump({"peer": f"torch {torch.__version__}, {torch.cuda.get_device_name()}", "rows": ROWS}, file,
                          indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
