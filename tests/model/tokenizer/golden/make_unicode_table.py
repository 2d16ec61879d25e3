#!/usr/bin/env python3
"""Writes model/tokenizer_unicode_table.inc: what the reference `tokenizers` library knows of Unicode that an older or
newer library here does not. Everything is found by asking the reference about every code point.

    python3 tests/model/tokenizer/golden/make_unicode_table.py

Needs `tokenizers`, and a Python whose unicodedata is Unicode 14 (3.11), the oldest tables that PCRE2 and utf8proc of
the supported distributions have. Tables: characters assigned after Unicode 14, with their category (the reference's
regular expressions know them); characters that the reference's normalizers leave alone (they know fewer).
"""
import ctypes
import ctypes.util
import string
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split()
CODES = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
ALL = "".join(map(chr, CODES))


def members(pattern):
    found = set()
    for text, _ in pre_tokenizers.Split(Regex(pattern), "removed", invert=True).pre_tokenize_str(ALL):
        found.update(map(ord, text))
    return found


def ranges(pairs):
    """[(code, value)] sorted -> [[low, high, value]]"""
    out = []
    for code, value in pairs:
        if out and out[-1][1] == code - 1 and out[-1][2] == value:
            out[-1][1] = code
        else:
            out.append([code, code, value])
    return out


def newer_categories():
    pairs = []
    for name in CATEGORIES:
        pairs += [(c, name) for c in members(r"\p{%s}" % name) if unicodedata.category(chr(c)) != name]
    return ranges(sorted(pairs))


def utf8proc_form(name):
    """NFD or NFKD of the installed utf8proc, which is newer than Python's tables."""
    lib = ctypes.CDLL(ctypes.util.find_library("utf8proc"))
    function = getattr(lib, "utf8proc_" + name)
    function.restype = ctypes.c_void_p
    libc = ctypes.CDLL(None)

    def normalize(text):
        pointer = function(text.encode() + b"\0")
        result = ctypes.string_at(pointer).decode()
        libc.free(ctypes.c_void_p(pointer))
        return result

    return normalize


def inert():
    """Code points with a decomposition or a combining class today that the reference passes through unchanged."""
    forms = [(n, f, utf8proc_form(n)) for n, f in (("NFD", normalizers.NFD()), ("NFKD", normalizers.NFKD()))]
    found = set()
    for c in CODES[1:]:
        ch = chr(c)
        # Alone, and behind a mark of the highest class (a mark would move in front of it).
        for probe in (ch, "a\u0345" + ch):
            for name, reference, ours in forms:
                expected = reference.normalize_str(probe)
                if expected != unicodedata.normalize(name, probe) or expected != ours(probe):
                    found.add(c)
    # The parts of a composite that the reference does not know are of the same age.
    for c in sorted(found):
        parts = unicodedata.decomposition(chr(c)).split()
        if parts and not parts[0].startswith("<"):
            found.update(int(p, 16) for p in parts if int(p, 16) // 128 == c // 128)
    return ranges(sorted((c, "") for c in found))


def lower():
    """Lower case where the reference differs from Python's Unicode 14 (one character each)."""
    f = normalizers.Lowercase()
    pairs = [(c, f.normalize_str(chr(c))) for c in CODES if f.normalize_str(chr(c)) != chr(c).lower()]
    assert all(len(t) == 1 for _, t in pairs)
    return ranges(sorted((c, ord(t) - c) for c, t in pairs))


NUMBER, SPACE, WORD, PUNCTUATION = 1, 2, 4, 8  # model/tokenizer_unicode.h
WHITE_SPACE = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]


def expected_bits():
    """What tokenizer_unicode.cpp computes from general categories."""
    category = {c: unicodedata.category(chr(c)) for c in CODES}
    for low, high, name in newer_categories():
        category.update((c, name) for c in range(low, high + 1))
    bits = {}
    for c, name in category.items():
        word = name[0] in "LM" or name in ("Nd", "Nl", "Pc")
        bits[c] = (NUMBER if name[0] == "N" else 0) | (WORD if word else 0) | (PUNCTUATION if name[0] == "P" else 0)
        if c < 0x80 and chr(c) in string.punctuation:
            bits[c] |= PUNCTUATION
    for c in WHITE_SPACE:
        bits[c] |= SPACE
    return bits


def reference_bits():
    """The same, asked of the reference: Digits, Punctuation, rstrip and single_word."""
    bits = dict.fromkeys(CODES, 0)
    digits, punctuation = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("removed")
    for c in CODES:
        ch = chr(c)
        if len(digits.pre_tokenize_str("a" + ch)) == 2:
            bits[c] |= NUMBER
        if len(punctuation.pre_tokenize_str("a" + ch)) == 1 and punctuation.pre_tokenize_str("a" + ch)[0][0] == "a":
            bits[c] |= PUNCTUATION
    tokenizer = Tokenizer(models.BPE({"?": 0}, [], unk_token="?"))
    tokenizer.add_tokens([AddedToken("right", rstrip=True, normalized=False), AddedToken("single", single_word=True, normalized=False)])
    for c in CODES:
        ids = tokenizer.encode("right" + chr(c) + "single" + chr(c)).ids
        if 2 not in ids:
            bits[c] |= WORD
        elif ids[:2] == [1, 2]:
            bits[c] |= SPACE
    return bits


def flips():
    expected, reference = expected_bits(), reference_bits()
    return ranges(sorted((c, expected[c] ^ reference[c]) for c in CODES if expected[c] != reference[c]))


def main():
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    out = open("model/tokenizer_unicode_table.inc", "w")
    out.write(f"// Written by tests/model/tokenizer/golden/make_unicode_table.py (tokenizers {tokenizers.__version__}).\n")
    for title, name, rows, fmt in (
        ("Categories of characters assigned after Unicode 14.", "kNewerCategories", newer_categories(),
         lambda r: f'{{0x{r[0]:X}, 0x{r[1]:X}, "{r[2]}"}}'),
        ("Characters too young for the reference's normalizers: they pass unchanged.", "kInertRanges", inert(),
         lambda r: f"{{0x{r[0]:X}, 0x{r[1]:X}}}"),
        ("Property bits that the reference sees otherwise than the general category says.", "kFlips", flips(),
         lambda r: f"{{0x{r[0]:X}, 0x{r[1]:X}, {r[2]}}}"),
        ("Lower case newer than Unicode 14: code + offset.", "kNewerLower", lower(),
         lambda r: f"{{0x{r[0]:X}, 0x{r[1]:X}, {r[2]}}}"),
    ):
        type_name = {"kNewerCategories": "CategoryRange", "kInertRanges": "CodeRange", "kFlips": "FlipRange", "kNewerLower": "LowerRange"}[name]
        out.write(f"// {title}\nconstexpr {type_name} {name}[] = {{\n")
        line = "   "
        for r in rows:
            item = " " + fmt(r) + ","
            if len(line) + len(item) > 108:
                out.write(line + "\n")
                line = "   "
            line += item
        out.write(line + "\n};\n")
        print(name, len(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
