#!/usr/bin/env python3
"""Writes unicode.golden: checksums, per 4096 code points, of what the reference does with every single code point.

    python3 tests/model/tokenizer/golden/make_unicode_golden.py     (from the source root, behind make_golden.py)
"""
import json
import os
import zlib

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

HERE = os.path.dirname(__file__)
CLASSES = [r"\p{L}", r"\p{N}", r"\s", r"\S", r"\w", r"\W", r"\d", r"\p{^Lu}", r"\P{Ll}", r"[^\s\p{L}\p{N}]", r"[\p{M}\p{P}]", r"[\d\p{S}\p{Lt}\p{Lm}]", r"(?i:s)", r"(?i:K)", r"."]
BLOCK = 4096


def checksum(text):
    return "%08x" % zlib.crc32(text.encode())


def main():
    forms = {"NFC": normalizers.NFC(), "NFD": normalizers.NFD(), "NFKC": normalizers.NFKC(), "NFKD": normalizers.NFKD(), "Lowercase": normalizers.Lowercase()}
    loaded = {n: Tokenizer.from_file(os.path.join(HERE, n + ".json")) for n in ("qwen", "llama3", "gemma", "options")}
    splits = {p: pre_tokenizers.Split(Regex(p), "removed", invert=True) for p in CLASSES}
    out = {name: [] for name in (*forms, *splits, *loaded)}
    for start in range(0, 0x110000, BLOCK):
        codes = [c for c in range(start, start + BLOCK) if not 0xD800 <= c <= 0xDFFF]
        marked = "".join(f"a\u0345{chr(c)} {chr(c)}\u0323x" for c in codes)
        for name, f in forms.items():
            out[name].append(checksum(f.normalize_str(marked)))
        plain = "".join(map(chr, codes))
        for name, split in splits.items():
            out[name].append(checksum("".join(t for t, _ in split.pre_tokenize_str(plain))))
        probe = "".join(f"a{chr(c)}b {chr(c)}{chr(c)} 1{chr(c)}word" for c in codes)
        for name, t in loaded.items():
            out[name].append(checksum(",".join(map(str, t.encode(probe, add_special_tokens=False).ids))))
    with open(os.path.join(HERE, "unicode.golden"), "w") as f:
        json.dump({k: "".join(v) for k, v in out.items()}, f, indent=0)
        f.write("\n")


if __name__ == "__main__":
    main()
