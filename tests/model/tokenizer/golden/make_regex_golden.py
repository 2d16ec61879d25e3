#!/usr/bin/env python3
"""Writes regex.json: how the reference cuts texts with many patterns and behaviours.

    python3 tests/model/tokenizer/golden/make_regex_golden.py          (from the source root)
"""
import json
import os

from tokenizers import Regex, pre_tokenizers as P

PATTERNS = [r"a*", r"\s*", r"x?", r"(?=b)", r"\n", r"^a", r"b$", r"\Aa", r"a\z", r"[^\s]+", r"\d{,2}", r"\d{2,}", r"a{2}", r".", r"a+?", r"a++b", r"(?i:ab|'S)",
            r"(?<=a)b", r"(?<!a)b", r"(ab)+|c", r"\p{Lu}[\p{Ll}\p{M}]*", r"\W+", r"\S\w*", r"[\w\-.]+", r"\u0061+", r"\x61\x{62}", r"[\x{4E00}-\x{9FFF}]", r"[一-龥]+", r"\+|\.|\(|\-|/", r"a|ab|abb", r"(?>a+)b", r"\r\n|\n", r" ?[^\s\p{L}\p{N}]+"]
TEXTS = ["", "aab abb", "a\nb\naa\n", " a  b ", "AB ab'S 's 'ſ", "12345 1 99", "Éa Ñandú ÀB", "a.b-c (d)/e+f", "漢字かな交じり文", "\u180e\u200b\x85\u00a0a", "aaaaab\r\nx\r\n\r\n"]
BEHAVIOURS = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
STRINGS = [" ", "ab", "a", "\n"]


def main():
    cases = []

    def add(pre_tokenizer, text):
        field = json.loads(pre_tokenizer.__getstate__())
        cases.append({"pre_tokenizer": field, "text": text, "pieces": [t for t, _ in pre_tokenizer.pre_tokenize_str(text)]})

    for i, pattern in enumerate(PATTERNS):
        for j, text in enumerate(TEXTS):
            add(P.Split(Regex(pattern), BEHAVIOURS[(i + j) % 5], invert=(i * 3 + j) % 4 == 0), text)
    for i, pattern in enumerate(STRINGS):
        for behaviour in BEHAVIOURS:
            for invert in (False, True):
                add(P.Split(pattern, behaviour, invert=invert), TEXTS[1 + i])
                add(P.Split(pattern, behaviour, invert=invert), "  ab" + TEXTS[3] + "ab ")
    for text in TEXTS:
        for single in (False, True):
            add(P.Digits(individual_digits=single), text)
        for scheme in ("first", "never", "always"):
            for split in (False, True):
                add(P.Metaspace(prepend_scheme=scheme, split=split), text)
        for behaviour in BEHAVIOURS:
            add(P.Punctuation(behaviour), text)
    with open(os.path.join(os.path.dirname(__file__), "regex.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


if __name__ == "__main__":
    main()
