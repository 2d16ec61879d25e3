"""The mini models: Qwen2 in PyTorch, written so that one training step is a fixed sequence of GPU work.

Everything but attention sees a flat [rows, hidden] batch whose size never changes, whatever the context length, so each
piece is compiled once and a whole step can be captured in one CUDA graph per context length.
"""

import dataclasses
import json
import math
import pathlib

import torch
import torch.nn as nn
import torch.nn.functional as F

HEAD_DIM = 64


@dataclasses.dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    q_heads: int
    kv_heads: int
    mlp: int


SIZES = {
    "nano": Size(hidden=128, layers=5, q_heads=4, kv_heads=2, mlp=320),
    "micro": Size(hidden=256, layers=6, q_heads=8, kv_heads=4, mlp=640),
    "tiny": Size(hidden=512, layers=7, q_heads=8, kv_heads=4, mlp=1024),
}
ROPE_THETA = 1e6
MAX_POSITIONS = 16384
NORM_EPS = 1e-6


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPS) * weight


def rotate(x, cos, sin):
    """x: [rows, heads, 64]; cos, sin: [rows, 1, 64]. The halves are rotated against each other, as in Hugging Face."""
    half = HEAD_DIM // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def project(x, norm, q_w, q_b, k_w, k_b, v_w, v_b, cos, sin, dtype):
    rows = x.shape[0]
    h = rms_norm(x, norm).to(dtype)
    q = (F.linear(h, q_w.to(dtype)) + q_b.to(dtype)).view(rows, -1, HEAD_DIM).float()
    k = (F.linear(h, k_w.to(dtype)) + k_b.to(dtype)).view(rows, -1, HEAD_DIM).float()
    v = (F.linear(h, v_w.to(dtype)) + v_b.to(dtype)).view(rows, -1, HEAD_DIM)
    return rotate(q, cos, sin).to(dtype), rotate(k, cos, sin).to(dtype), v


def mix(x, attended, o_w, norm, gate_w, up_w, down_w, dtype):
    x = x + F.linear(attended, o_w.to(dtype)).float()
    h = rms_norm(x, norm).to(dtype)
    return x + F.linear(F.silu(F.linear(h, gate_w.to(dtype))) * F.linear(h, up_w.to(dtype)), down_w.to(dtype)).float()


def loss_and_hits(x, norm, embedding, targets, weights, dtype):
    logits = F.linear(rms_norm(x, norm).to(dtype), embedding.to(dtype)).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum(), logits.detach().argmax(-1) == targets


def attend(q, k, v, batch, length):
    """Causal attention; q: [batch * length, heads, 64]. Key-value heads are repeated so that any backend serves."""
    q, k, v = (z.view(batch, length, -1, HEAD_DIM).transpose(1, 2) for z in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (z.repeat_interleave(groups, 1) for z in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).reshape(batch * length, -1)


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        q_width, kv_width = size.q_heads * HEAD_DIM, size.kv_heads * HEAD_DIM
        self.input_norm = nn.Parameter(torch.ones(size.hidden))
        self.post_norm = nn.Parameter(torch.ones(size.hidden))
        self.q = nn.Linear(size.hidden, q_width)
        self.k = nn.Linear(size.hidden, kv_width)
        self.v = nn.Linear(size.hidden, kv_width)
        self.o = nn.Linear(q_width, size.hidden, bias=False)
        self.gate = nn.Linear(size.hidden, size.mlp, bias=False)
        self.up = nn.Linear(size.hidden, size.mlp, bias=False)
        self.down = nn.Linear(size.mlp, size.hidden, bias=False)


class Mini(nn.Module):
    def __init__(self, size, vocab, compute_dtype, compile_pieces):
        super().__init__()
        self.size, self.vocab, self.compute_dtype = size, vocab, compute_dtype
        self.embedding = nn.Embedding(vocab, size.hidden)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.Parameter(torch.ones(size.hidden))
        self.inverse_frequency = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        self.initialise()
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compile_pieces else (lambda f: f)
        self.project, self.mix, self.head = wrap(project), wrap(mix), wrap(loss_and_hits)

    def initialise(self):
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02 * math.sqrt(256 / self.size.hidden))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            block.o.weight.data /= math.sqrt(2 * self.size.layers)
            block.down.weight.data /= math.sqrt(2 * self.size.layers)
        self.initialise_look_back_heads()

    def initialise_look_back_heads(self, strength=5.5):
        """Some heads start as "d tokens back" heads: a purely positional score from the q and k biases through RoPE.
        Copy circuits need such heads, and finding them from scratch costs a third of the training."""
        f = self.inverse_frequency
        fast = (f >= 0.005).float()
        group = self.size.q_heads // self.size.kv_heads
        offsets = {0: {h: h + 1 for h in range(self.size.q_heads - group)},
                   1: {h: h + 1 for h in range(max(group, self.size.q_heads // 2 // group * group))},
                   2: {h: h + 1 for h in range(group)}}
        half = HEAD_DIM // 2
        for layer, heads in offsets.items():
            block = self.blocks[layer]
            for head, back in heads.items():
                kv = head // group
                block.k.bias.data[kv * HEAD_DIM:kv * HEAD_DIM + half] = strength * fast
                turned = torch.cat((fast * torch.cos(back * f), -fast * torch.sin(back * f)))
                block.q.bias.data[head * HEAD_DIM:(head + 1) * HEAD_DIM] = strength * turned

    def rope_tables(self, rows, length, device):
        angles = torch.arange(length, device=device).float()[:, None] * self.inverse_frequency.to(device)[None]
        angles = torch.cat((angles, angles), -1).repeat(rows // length, 1).view(rows, 1, HEAD_DIM)
        return angles.cos().contiguous(), angles.sin().contiguous()

    def forward(self, ids, length, cos, sin, targets, weights):
        """ids, targets, weights: [rows]. Returns the weighted loss sum and which targets were the argmax."""
        batch, dtype = ids.shape[0] // length, self.compute_dtype
        h = F.embedding(ids, self.embedding.weight)
        for b in self.blocks:
            q, k, v = self.project(h, b.input_norm, b.q.weight, b.q.bias, b.k.weight, b.k.bias, b.v.weight, b.v.bias,
                                   cos, sin, dtype)
            h = self.mix(h, attend(q, k, v, batch, length), b.o.weight, b.post_norm, b.gate.weight, b.up.weight,
                         b.down.weight, dtype)
        return self.head(h, self.norm, self.embedding.weight, targets, weights, dtype)


def export_hugging_face(model, tokenizer_folder, end_id, folder):
    """Writes config.json, generation_config.json, model.safetensors (bf16) and the tokenizer's files."""
    import shutil
    from safetensors.torch import save_file

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    size = model.size
    tensors = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm}
    for i, b in enumerate(model.blocks):
        at = f"model.layers.{i}."
        tensors[at + "input_layernorm.weight"] = b.input_norm
        tensors[at + "post_attention_layernorm.weight"] = b.post_norm
        for name, layer in (("q", b.q), ("k", b.k), ("v", b.v)):
            tensors[f"{at}self_attn.{name}_proj.weight"] = layer.weight
            tensors[f"{at}self_attn.{name}_proj.bias"] = layer.bias
        tensors[at + "self_attn.o_proj.weight"] = b.o.weight
        for name, layer in (("gate", b.gate), ("up", b.up), ("down", b.down)):
            tensors[f"{at}mlp.{name}_proj.weight"] = layer.weight
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in tensors.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "attention_dropout": 0.0,
        "hidden_size": size.hidden, "intermediate_size": size.mlp, "num_hidden_layers": size.layers,
        "num_attention_heads": size.q_heads, "num_key_value_heads": size.kv_heads, "head_dim": HEAD_DIM,
        "vocab_size": model.vocab, "max_position_embeddings": MAX_POSITIONS, "rope_theta": ROPE_THETA,
        "rms_norm_eps": NORM_EPS, "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True,
        "use_sliding_window": False, "sliding_window": None, "max_window_layers": size.layers,
        "torch_dtype": "bfloat16", "eos_token_id": end_id,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end_id], "do_sample": False}, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pathlib.Path(tokenizer_folder) / name, folder / name)
