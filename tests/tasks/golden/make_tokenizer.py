#!/usr/bin/env python3
"""Trains tokenizer.json of this folder: byte-level BPE of 1536 tokens on the text of the generated tasks.

usage: make_tokenizer.py LACUNA_PROGRAM     (needs the `tokenizers` package; the result is committed)

Generators count tokens while they write, so a tokenizer of single bytes begins.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
TASKS = ["ruler_niah", "ruler_vt", "ruler_cwe", "story_retrieval", "story_filtering", "story_multihop"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen2's pre-tokenizer: a word takes one space before it, digits stand alone.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# Random keys and names would teach merges that no other text has.
RANDOM = re.compile(r"\b[a-z0-9]+(?:-[a-z0-9]+)+\b|\b[A-Z]{3,5}\b")


def empty():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train(texts, vocab):
    tokenizer = empty()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def save(tokenizer, folder):
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}, indent=1) + "\n")


def texts(lacuna, first):
    for task in TASKS:
        for style, preset, length, count in (("direct", "mini", 8000, 40), ("explain", "paper", 40000, 10)):
            out = subprocess.run([lacuna, "tasks", task, "--model", first, "--length", str(length), "--count", str(count), "-p",
                                  f"style={style}", "-p", f"preset={preset}", "--jsonl", "-"], check=True, capture_output=True)
            for line in out.stdout.decode().splitlines():
                record = json.loads(line)
                yield RANDOM.sub(" ", record["prompt"] + "\n" + record["answer_text"])
    for role in ("system", "user", "assistant"):
        yield f"{role}\n" * 100


def main():
    with tempfile.TemporaryDirectory() as first:
        save(train([], 256 + len(SPECIAL)), pathlib.Path(first))
        save(train(texts(sys.argv[1], first), 1536), HERE)
    print((HERE / "tokenizer.json").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
