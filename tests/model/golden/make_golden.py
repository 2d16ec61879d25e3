#!/usr/bin/env python3
"""Golden logits and tokens of tiny models of every family, computed by transformers in float32.

The weights are not stored: here and in tests/model/tiny_model.cpp they come from the same counter-based generator
(fill() below). Stored per case: config.json, prompts as lengths, logits [prompt, 2, vocab] (of the prompt's last
token and of the last generated one) and tokens [prompt, 64] (greedy). rope_*.npy are tables of frequencies.

bf16/CASE/ holds the same families in sizes that the CUDA engine takes, with every weight rounded to bfloat16:
config.json and logits [2, prompt, vocab] of the prompts' last tokens, computed by transformers in float32 (0) and in
bfloat16 (1). What the two differ by is what bfloat16 itself loses, the measure for our own bfloat16.

Needs torch and transformers (made with 2.11 and 5.23). Run from the source root:
    python3 tests/model/golden/make_golden.py [CASE ...] [bf16]
"""
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
LENGTHS = [1, 7, 64, 257]
NEW_TOKENS = 64
VOCAB = 300
MASK = (1 << 64) - 1


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & MASK
    return value


def splitmix(seed, count):
    """count 64-bit numbers; number i depends on seed and i alone."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(name, count):
    """float32 in [-1, 1), exact multiples of 2^-23."""
    return (splitmix(fnv1a(name), count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def fill(name, shape, gemma, dtype):
    """One tensor. Norm weights lie around what makes the norm neutral, matrices keep the size of what passes through."""
    u = uniform(name, int(np.prod(shape)))
    if "norm" in name:
        values = u * np.float32(0.25) + np.float32(0.0 if gemma else 1.0)
    elif name.endswith(".bias"):
        values = u * np.float32(0.5)
    elif "embed_tokens" in name:
        values = u * np.float32(0.03125 if gemma else 1.0)  # Gemma multiplies embeddings by sqrt(hidden)
    else:
        values = u * np.float32(3.0 / np.sqrt(float(shape[1])))
    tensor = torch.from_numpy(values.reshape(shape))
    return tensor.to(dtype).to(torch.float32)


def prompt(length):
    return (splitmix(1000 + length, length) % np.uint64(VOCAB)).astype(np.int64)


def base(model_type, **more):
    config = dict(
        model_type=model_type, vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-6,
        tie_word_embeddings=False, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    return {**config, **more}


# Each case: config.json as written (old and new spellings of the library), and what to give transformers when its own
# reading of that file is another (nested vision-language configs).
CASES = {
    "qwen2": dict(config=base("qwen2", torch_dtype="bfloat16", rope_theta=1000000.0, sliding_window=None,
                              use_sliding_window=False, max_window_layers=3)),
    "qwen2_yarn": dict(config=base("qwen2", torch_dtype="float32", rope_theta=10000.0, rope_scaling=dict(
        type="yarn", factor=4.0, original_max_position_embeddings=128))),
    "qwen2_mixed": dict(config=base("qwen2", dtype="bfloat16", num_hidden_layers=4, use_sliding_window=True,
                                    sliding_window=40, max_window_layers=2,
                                    rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
    "llama3": dict(config=base("llama", torch_dtype="float16", tie_word_embeddings=True, num_attention_heads=8,
                               rope_theta=500000.0, rope_scaling=dict(
                                   rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                   original_max_position_embeddings=64))),
    "llama_linear": dict(config=base("llama", dtype="float32", head_dim=24, attention_bias=True, mlp_bias=True,
                                     num_key_value_heads=4,
                                     rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.5))),
    "qwen3": dict(config=base("qwen3", dtype="bfloat16", head_dim=32, tie_word_embeddings=True,
                              rope_parameters=dict(rope_type="default", rope_theta=1000000.0))),
    "qwen3_yarn": dict(config=base("qwen3", dtype="float32", head_dim=16, num_key_value_heads=1, rope_parameters=dict(
        rope_type="yarn", rope_theta=1000000.0, factor=8.0, original_max_position_embeddings=64, beta_fast=16.0,
        beta_slow=2.0, attention_factor=1.1))),
    "gemma3": dict(config=base("gemma3_text", dtype="bfloat16", num_hidden_layers=6, tie_word_embeddings=True,
                               head_dim=16, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=24,
                               sliding_window=32, final_logit_softcapping=30.0, layer_types=[
                                   "sliding_attention", "sliding_attention", "full_attention"] * 2,
                               rope_parameters=dict(
                                   full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                                   sliding_attention=dict(rope_type="default", rope_theta=10000.0)))),
    "gemma3_nested": dict(
        config=dict(model_type="gemma3", torch_dtype="bfloat16", eos_token_id=[1, 106], vision_config=dict(hidden_size=8),
                    image_token_index=299, text_config=dict(
            model_type="gemma3_text", vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=5,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=48,
            sliding_window_pattern=4, rope_scaling=dict(rope_type="linear", factor=8.0), rope_theta=1000000.0,
            rope_local_base_freq=10000.0, rms_norm_eps=1e-6)),
        reference=base("gemma3_text", num_hidden_layers=5, tie_word_embeddings=True, head_dim=16,
                       query_pre_attn_scalar=16, sliding_window=48, layer_types=["sliding_attention"] * 3 + [
                           "full_attention", "sliding_attention"],
                       rope_parameters=dict(
                           full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                           sliding_attention=dict(rope_type="default", rope_theta=10000.0))),
        prefix="language_model."),
    "mistral": dict(config=base("mistral", dtype="bfloat16", sliding_window=48, head_dim=16,
                                rope_parameters=dict(rope_type="default", rope_theta=10000.0))),
}


def build(case, dtype=torch.float32, attention="eager", device="cpu"):
    config = dict(case.get("reference", case["config"]))
    model_type = config.pop("model_type")
    stored = case["config"].get("dtype", case["config"].get("torch_dtype"))
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    cls = type(transformers.AutoConfig.for_model(model_type))
    model = AutoModelForCausalLM.from_config(cls(**config), attn_implementation=attention, dtype=dtype)
    prefix = case.get("prefix", "")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(fill(prefix + name, tuple(parameter.shape), "gemma" in model_type, getattr(torch, stored)))
    assert all(b.dtype == torch.float32 for n, b in model.named_buffers() if "inv_freq" in n)
    return model.eval().to(device)


def run(model, ids):
    ids = torch.from_numpy(ids)[None]
    out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        logits = model(out).logits[0]
    tokens = out[0, ids.shape[1]:]
    steps = logits[ids.shape[1] - 1:-1]
    assert torch.equal(steps.argmax(-1), tokens), "cached and uncached generation disagree"
    top = steps.topk(2).values
    # A test may ask for equal tokens only where rounding cannot swap the best two.
    gap = ((top[:, 0] - top[:, 1]) / steps.abs().amax(-1)).min().item()
    assert gap > 1e-5, gap
    return torch.stack([logits[ids.shape[1] - 1], logits[-1]]).numpy(), tokens.numpy().astype(np.int32), gap


def make_cases():
    for name, case in CASES.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(case["config"], indent=1) + "\n")
        model = build(case)
        results = [run(model, prompt(n)) for n in LENGTHS]
        np.save(folder / "logits.npy", np.stack([r[0] for r in results]).astype(np.float32))
        np.save(folder / "tokens.npy", np.stack([r[1] for r in results]))
        print(name, [len(set(r[1].tolist())) for r in results], "smallest gap %.1e" % min(r[2] for r in results))


# Sizes of the CUDA engine: head_dim 64, 96, 128 or 256.
BF16_HEAD_DIMS = dict(qwen2=64, qwen2_yarn=64, qwen2_mixed=128, llama3=64, llama_linear=96, qwen3=128, qwen3_yarn=64,
                      gemma3=256, gemma3_nested=64, mistral=128)


def bf16_case(name):
    """A case of CASES with weights in bfloat16 and sizes that the CUDA engine takes."""
    def resize(config):
        inner = config["text_config"] if "text_config" in config else config
        if inner is not config:
            return {**config, "torch_dtype": "bfloat16", "text_config": resize(inner)}
        sized = {k: v for k, v in config.items() if k != "torch_dtype"}
        sized.update(head_dim=BF16_HEAD_DIMS[name], hidden_size=128, intermediate_size=192, dtype="bfloat16")
        if "query_pre_attn_scalar" in sized:
            sized["query_pre_attn_scalar"] = BF16_HEAD_DIMS[name]
        return sized
    case = CASES[name]
    return {k: resize(v) if isinstance(v, dict) else v for k, v in case.items()}


def last_logits(model, length):
    ids = torch.from_numpy(prompt(length))[None].to(model.device)
    with torch.no_grad():
        return model(ids).logits[0, -1].float().cpu().numpy()


def make_bf16():
    for name in BF16_HEAD_DIMS:
        if len(sys.argv) > 1 and "bf16" not in sys.argv[1:] and name not in sys.argv[1:]:
            continue
        case = bf16_case(name)
        folder = HERE / "bf16" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(case["config"], indent=1) + "\n")
        exact, rounded = (np.stack([last_logits(build(case, dtype), n) for n in LENGTHS])
                          for dtype in (torch.float32, torch.bfloat16))
        np.save(folder / "logits.npy", np.stack([exact, rounded]).astype(np.float32))
        print("bf16", name, "largest logit %.2f, bfloat16 loses at most %.4f, rms %.4f" % (
            abs(exact).max(), abs(rounded - exact).max(), ((rounded - exact) ** 2).mean() ** 0.5))


ROPES = {
    "qwen_yarn": ("qwen2", 128, dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0,
                                     original_max_position_embeddings=32768)),
    "mscale_yarn": ("qwen2", 64, dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, mscale=1.0, mscale_all_dim=0.7,
                                      original_max_position_embeddings=4096, truncate=False)),
    "llama31": ("llama", 128, dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                                   high_freq_factor=4.0, original_max_position_embeddings=8192)),
    "linear": ("llama", 256, dict(rope_type="linear", rope_theta=1000000.0, factor=8.0)),
    "default": ("llama", 96, dict(rope_type="default", rope_theta=10000.0)),
}
POSITIONS = [0, 1, 2, 1000, 32767, 32768, 32769, 50000, 65535, 100003, 131071]


def make_ropes():
    """Per RoPE: float32 [1 + 2 * positions, head_dim / 2]: inverse frequencies, then cos rows, then sin rows."""
    for name, (model_type, head_dim, rope) in ROPES.items():
        cls = type(transformers.AutoConfig.for_model(model_type))
        config = cls(hidden_size=head_dim * 2, num_attention_heads=2, num_key_value_heads=1, head_dim=head_dim,
                     max_position_embeddings=131072, rope_parameters=dict(rope))
        module = __import__(f"transformers.models.{model_type}.modeling_{model_type}", fromlist=["x"])
        rotary = getattr(module, {"qwen2": "Qwen2", "llama": "Llama"}[model_type] + "RotaryEmbedding")(config)
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), torch.tensor([POSITIONS]))
        half = head_dim // 2
        rows = [rotary.inv_freq[None].numpy(), cos[0, :, :half].numpy(), sin[0, :, :half].numpy()]
        np.save(HERE / f"rope_{name}.npy", np.concatenate(rows).astype(np.float32))
        (HERE / f"rope_{name}.json").write_text(json.dumps(dict(head_dim=head_dim, rope=rope)) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    if len(sys.argv) == 1:
        make_ropes()
    make_cases()
    make_bf16()
