#!/usr/bin/env python3
"""Next-token logits of `lacuna generate` beside transformers on the same GPU.

    python3 bench/compare_transformers.py --lacuna build/release/lacuna [--lengths 4096,32768,131072]
                                          [--families all|none|qwen2,...] [--layers 28] [--folder DIR]

Two sets of models with weights in bfloat16: tiny ones of every family (tests/model/golden/make_golden.py) and one of
Qwen2.5-7B's shape with random weights, written to a temporary folder (15 GB, /dev/shm when it has room). Both programs
read the same files and the same ids.

The rule: |ours - reference| <= 2 x |transformers in bfloat16 - reference|, for the largest and for the root mean square
difference over the vocabulary. The reference:
  tiny models       transformers in float32 (TF32 off)
  4096 tokens       the same
  longer            transformers with weights and activations in float32, matrix products in TF32 and attention in
                    float16 (both round at 2^-11, eight times finer than bfloat16): plain float32 would take minutes at
                    131072 tokens. At 4096 tokens this reference is itself compared with float32, and the table says how
                    far apart they are.
The row of the decoded token is held against the same rule at the shortest length: prompt plus the token that ours
generated, read by transformers in one go.

Exit code 0: all within the rule; 1: not; 77: no GPU.
"""
import argparse
import gc
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/model/golden"))
BEGIN = time.monotonic()
DEVICE = "cuda"

QWEN_7B = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_act="silu", hidden_size=3584,
               intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
               max_position_embeddings=131072, rms_norm_eps=1e-6, rope_theta=1000000.0, tie_word_embeddings=False,
               use_sliding_window=False, torch_dtype="bfloat16", initializer_range=0.02)


def say(text):
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {text}", flush=True)


class Table:
    def __init__(self):
        self.failed = []

    def row(self, name, ours, peer, reference):
        """Checks the rule and prints a line."""
        own, theirs = np.abs(ours - reference), np.abs(peer - reference)
        rms = [float(np.sqrt((d.astype(np.float64) ** 2).mean())) for d in (own, theirs)]
        ok = bool(own.max() <= 2 * theirs.max() and rms[0] <= 2 * rms[1])  # False for NaN
        if not ok:
            self.failed.append(name)
        print(f"{name:26s} largest logit {np.abs(reference).max():7.3f}   ours max {own.max():.4f} rms {rms[0]:.5f}   "
              f"transformers max {theirs.max():.4f} rms {rms[1]:.5f}   ratio {own.max() / theirs.max():.2f} "
              f"{rms[0] / rms[1]:.2f}   same token {ours.argmax() == reference.argmax()!s:5s}  "
              f"{'ok' if ok else 'BEYOND THE RULE'}", flush=True)


def lacuna_logits(program, folder, ids, work):
    """[2, vocab]: of the last prompt token and of the token generated after it; and that token."""
    (work / "ids").write_text(",".join(map(str, ids)))
    out = work / "logits.npy"
    done = subprocess.run([program, "generate", "--device", DEVICE, "--model", str(folder), "--ids", f"@{work / 'ids'}",
                           "--max-tokens", "1", "--ignore-stop", "--print-ids", "--stats", "--dump-logits", str(out)],
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"lacuna generate: exit code {done.returncode}: {done.stderr[-600:]}")
    say("lacuna: " + done.stderr.strip().splitlines()[-1][-230:])
    return np.load(out), int(done.stdout.strip())


def release(torch):
    gc.collect()
    torch.cuda.empty_cache()


def last_logits(torch, model, ids):
    with torch.inference_mode():
        out = model(torch.tensor([ids], device=DEVICE), use_cache=False, logits_to_keep=1)
        return out.logits[0, -1].float().cpu().numpy()


def exact_products(torch, exact):
    torch.backends.cuda.matmul.allow_tf32 = not exact
    torch.backends.cudnn.allow_tf32 = not exact


def tiny_families(args, torch, table, work):
    import make_golden
    names = list(make_golden.BF16_HEAD_DIMS) if args.families == "all" else args.families.split(",")
    from safetensors.torch import save_file
    exact_products(torch, True)
    for name in names:
        case = make_golden.bf16_case(name)
        exact = make_golden.build(case, torch.float32, device=DEVICE)
        rounded = make_golden.build(case, torch.bfloat16, "sdpa", device=DEVICE)
        folder = work / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(case["config"]))
        prefix = case.get("prefix", "")
        save_file({prefix + n: p.detach().cpu().contiguous() for n, p in rounded.named_parameters()},
                  folder / "model.safetensors")
        ids = make_golden.prompt(257).tolist()
        ours, token = lacuna_logits(args.lacuna, folder, ids, work)
        table.row(f"{name} 257", ours[0], last_logits(torch, rounded, ids), last_logits(torch, exact, ids))
        ids.append(token)
        table.row(f"{name} decoded", ours[1], last_logits(torch, rounded, ids), last_logits(torch, exact, ids))
    release(torch)


def make_model(torch, folder, layers):
    """Random weights on the GPU, written as safetensors of two layers each."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    config = dict(QWEN_7B, num_hidden_layers=layers)
    (folder / "config.json").write_text(json.dumps(config))
    kept = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):  # names and shapes alone
        model = AutoModelForCausalLM.from_config(kept, dtype=torch.bfloat16)
    torch.manual_seed(0)
    tensors = {}
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        t = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16)
        if "norm" in name:
            t.uniform_(0.75, 1.25)
        elif name.endswith("bias"):
            t.uniform_(-0.5, 0.5)
        elif "embed" in name:
            t.normal_(0, 1)
        else:
            t.normal_(0, 1.2 / shape[1] ** 0.5)  # keeps the size of what passes through; scores of about 1.5
        tensors[name] = t
    del model
    parts = {}
    for name in tensors:
        pieces = name.split(".")
        part = int(pieces[2]) // 2 if pieces[1] == "layers" else f"x{name.split('.')[-2]}"
        parts.setdefault(part, []).append(name)
    index = {}

    def write(i, names):
        file = f"model-{i:05d}.safetensors"
        save_file({n: tensors[n].cpu() for n in names}, folder / file)
        return {n: file for n in names}

    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        for part in pool.map(write, range(len(parts)), parts.values()):
            index.update(part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    del tensors
    release(torch)


def load_model(torch, folder):
    import importlib.util
    from transformers import AutoModelForCausalLM
    straight = dict(device_map=DEVICE) if importlib.util.find_spec("accelerate") else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa",
                                                **straight).to(DEVICE).eval()


def register_half_attention(torch):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def half(module, query, key, value, attention_mask, **more):
        out, weights = sdpa_attention_forward(module, query.half(), key.half(), value.half(), None,
                                              is_causal=True, **{k: v for k, v in more.items() if k != "is_causal"})
        return out.float(), weights

    AttentionInterface.register("half_sdpa", half)
    try:  # no mask tensor at all: it would be 32 GB at 131072 tokens
        from transformers.masking_utils import AttentionMaskInterface
        AttentionMaskInterface.register("half_sdpa", lambda *a, **k: None)
    except ImportError:
        pass


def full_size(args, torch, table, work):
    lengths = sorted(int(n) for n in args.lengths.split(","))
    folder = work / "qwen7b"
    folder.mkdir()
    make_model(torch, folder, args.layers)
    say(f"Qwen2.5-7B's shape, {args.layers} layers, written to {folder}")
    rng = np.random.default_rng(0)
    ids = {n: rng.integers(0, QWEN_7B["vocab_size"], n).tolist() for n in lengths}
    ours = {}
    for n in lengths:
        ours[n], token = lacuna_logits(args.lacuna, folder, ids[n], work)
        if n == lengths[0]:
            decoded = ids[n] + [token]
    peer = {}
    model = load_model(torch, folder)
    for n in lengths:
        begin = time.monotonic()
        peer[n] = last_logits(torch, model, ids[n])
        say(f"transformers in bfloat16: {n} tokens in {time.monotonic() - begin:.2f} s (first call of a length)")
    peer_decoded = last_logits(torch, model, decoded)
    model = model.float()  # the same values
    release(torch)
    register_half_attention(torch)
    exact = {}
    for n in lengths:
        if n > 4096:
            continue
        exact_products(torch, True)
        exact[n] = last_logits(torch, model, ids[n])
        if n == lengths[0]:
            exact_decoded = last_logits(torch, model, decoded)
    model.set_attn_implementation("half_sdpa")
    exact_products(torch, False)
    for n in lengths:
        begin = time.monotonic()
        try:
            fine = last_logits(torch, model, ids[n])
        except torch.OutOfMemoryError as e:
            say(f"no reference at {n} tokens: {str(e)[:120]}")
            table.failed.append(f"reference {n}")
            continue
        if n in exact:
            say(f"TF32 and float16 attention against float32 at {n} tokens: max "
                f"{np.abs(fine - exact[n]).max():.5f} (bfloat16: {np.abs(peer[n] - exact[n]).max():.5f})")
        else:
            exact[n] = fine
        say(f"reference at {n} tokens in {time.monotonic() - begin:.1f} s")
        if n == lengths[0] and n > 4096:
            exact_decoded = last_logits(torch, model, decoded)
    for n in lengths:
        if n in exact:
            table.row(f"7B shape {n}", ours[n][0], peer[n], exact[n])
    table.row(f"7B shape {lengths[0]} decoded", ours[lengths[0]][1], peer_decoded, exact_decoded)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", default=str(ROOT / "build/release/lacuna"))
    parser.add_argument("--lengths", default="4096,32768", help="of the 7B shape; none: leave it out")
    parser.add_argument("--families", default="all", help="all, none, or names with commas")
    parser.add_argument("--layers", type=int, default=28, help="of the 7B shape")
    parser.add_argument("--folder", help="where the 7B shape is written; needs 16 GB")
    args = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as e:
        print(f"skipped: {e}")
        return 77
    if not torch.cuda.is_available():
        print("skipped: no CUDA device; transformers and lacuna were not compared")
        return 77
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    os.chdir(ROOT)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}")
    parent = args.folder
    if parent is None and shutil.disk_usage("/dev/shm").free > 20 << 30:
        parent = "/dev/shm"
    table = Table()
    with tempfile.TemporaryDirectory(dir=parent, prefix="lacuna_compare_") as work:
        for what, part in (("families", tiny_families), ("lengths", full_size)):
            if getattr(args, what) == "none":
                continue
            try:
                part(args, torch, table, pathlib.Path(work))
            except Exception as e:  # the other part still runs
                say(f"{part.__name__}: {type(e).__name__}: {str(e)[:900]}")
                table.failed.append(part.__name__)
                release(torch)
    say("all within the rule" if not table.failed else "beyond the rule or not run: " + ", ".join(table.failed))
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
