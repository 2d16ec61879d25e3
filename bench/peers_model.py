#!/usr/bin/env python3
"""Times transformers on the shape of Qwen2.5-7B with random weights: whole prefills, and decoding after the longest.

    python3 bench/peers_model.py [--lengths 16384,32768,131072] [--new-tokens 16] [--limit 90] [--json FILE]
                                 [--device cuda|cpu] [--shape 7b|tiny]

bfloat16, SDPA attention, batch 1, logits of the last token only, the cache that transformers takes by itself. Each
length is run once to warm up (as long as the time limit allows) and then timed; decoding is the median of the steps.
A row that the limit leaves no time for is left out and named. --shape tiny on the CPU checks the script itself.
Exit code 77: no GPU.
"""
import argparse
import json
import signal
import sys
import time

BEGIN = time.monotonic()


def elapsed():
    return time.monotonic() - BEGIN


def config_of(shape):
    from transformers import Qwen2Config
    sizes = dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
                 num_key_value_heads=4, vocab_size=152064)
    if shape == "tiny":
        sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=512)
    return Qwen2Config(**sizes, max_position_embeddings=131072 + 1024, rope_theta=1e6, tie_word_embeddings=False,
                       use_sliding_window=False)


class Peer:
    def __init__(self, shape, device):
        import torch
        from transformers import Qwen2ForCausalLM
        self.torch, self.device = torch, device
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        config = config_of(shape)
        config._attn_implementation = "sdpa"
        with torch.device(device):
            self.model = Qwen2ForCausalLM(config).eval()
        self.vocab = config.vocab_size

    def synchronize(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def timed(self, call):
        self.synchronize()
        begin = time.perf_counter()
        result = call()
        self.synchronize()
        return time.perf_counter() - begin, result

    def prefill(self, tokens):
        ids = self.torch.randint(0, self.vocab, (1, tokens), device=self.device)
        return self.timed(lambda: self.model(ids, use_cache=True, logits_to_keep=1))

    def step(self, output):
        ids = output.logits[:, -1:].argmax(-1)
        return self.timed(lambda: self.model(ids, past_key_values=output.past_key_values, use_cache=True,
                                             logits_to_keep=1))


def median(values):
    return sorted(values)[len(values) // 2]


def measure(args, rows, skipped):
    peer = Peer(args.shape, args.device)
    print(f"transformers {args.shape}: model made after {elapsed():.1f} s", flush=True)
    lengths = sorted(int(n) for n in args.lengths.split(","))
    peer.prefill(min(lengths[0], 2048))
    expected = 0.0  # seconds of the next prefill, from the one before it
    output = None
    for i, tokens in enumerate(lengths):
        if i > 0:
            expected *= (tokens / lengths[i - 1]) ** 2  # never more than quadratic
        if elapsed() + expected > args.limit:
            skipped += [f"prefill {n}" for n in lengths[i:]] + ["decode"]
            return
        output = None  # its cache makes room
        seconds, output = peer.prefill(tokens)
        warm = False
        if elapsed() + seconds <= args.limit:
            output = None
            seconds, output = peer.prefill(tokens)
            warm = True
        expected = seconds
        rows.append({"key": "prefill", "tokens": tokens, "seconds": seconds, "warmed_up": warm})
        print(f"peer prefill transformers {tokens:7d} tokens {seconds:8.4f} s{'' if warm else ' (cold)'}", flush=True)
    steps = []
    for _ in range(args.new_tokens):
        if len(steps) > 2 and elapsed() > args.limit:
            break
        seconds, output = peer.step(output)
        steps.append(seconds)
    rows.append({"key": "decode", "tokens": lengths[-1], "seconds": median(steps[1:] or steps), "steps": len(steps)})
    print(f"peer decode  transformers {lengths[-1]:7d} tokens {1e3 * rows[-1]['seconds']:8.3f} ms/token", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="16384,32768,131072")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--limit", type=float, default=90, help="seconds after which nothing new is begun")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(124))  # so that what was measured is written
    import torch
    if args.device == "cuda" and not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 77
    rows, skipped = [], []
    with torch.inference_mode():
        try:
            measure(args, rows, skipped)
        finally:  # what was measured before an error counts
            if args.json:
                import transformers
                with open(args.json, "w") as file:
                    json.dump({"peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
                               "rows": rows, "skipped": skipped}, file, indent=1)
    for name in skipped:
        print(f"not measured for lack of time: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
