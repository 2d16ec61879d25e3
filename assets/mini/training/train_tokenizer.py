#!/usr/bin/env python3
"""Trains the mini family's tokenizer: byte-level BPE on the text of the six tasks the family is trained on.

    python3 train_tokenizer.py --lacuna ../../../build/release/lacuna --first ../../../tests/tasks/golden --out runs/tokenizer

`--first` is any folder with a tokenizer.json: the generators count tokens while they write, so they need one to begin with.
"""

import argparse
import json
import pathlib
import re
import subprocess
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import curriculum as plan

# Qwen2's pre-tokenizer: words take one leading space, digits stand alone.
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
                 "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# Random strings would teach merges that no other text has; words alone should decide.
RANDOM_STRINGS = re.compile(r"\b[a-z0-9]+(?:-[a-z0-9]+)+\b|\b[A-Z]{3,5}\b")


def texts(lacuna, first, samples):
    for task in plan.TASKS:
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
            subprocess.run([lacuna, "tasks", task, "--model", first, "--length", "4096", "--count", str(samples), "--seed",
                            "1000000007", "-p", "preset=mini", "-p", "style=direct", "--jsonl", file.name], check=True)
            for line in open(file.name, encoding="utf-8"):
                record = json.loads(line)
                yield RANDOM_STRINGS.sub(" ", record["prompt"] + "\n" + record["answer_text"])
    for role in ("system", "user", "assistant"):
        yield f"{role}\n" * 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", required=True)
    parser.add_argument("--first", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--vocab", type=int, default=3072)
    parser.add_argument("--samples", type=int, default=60)
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=args.vocab - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(texts(args.lacuna, args.first, args.samples), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])

    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "model_max_length": 16384, "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens -> {out}")


if __name__ == "__main__":
    main()
