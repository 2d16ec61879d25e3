#!/usr/bin/env python3
"""Writes english.inc: the word list of ruler_cwe. Run once; the result is committed, so builds never need this.

Source: the `scowl` package of Debian 12 (2020.12.07-2), lists english-words.{10,20,35} and american-words.{10,20,35}.
Filter: ASCII lower case only, 3 to 10 letters, distinct, no vulgar stem. The first 1000 words are frequent ones (list 10) of
4 to 6 letters without an inflection ending, so that a short vocabulary is a plain one; the other 11000 come from all lists.
Order: by SHA-256 of the word, which is as good as shuffled and the same everywhere.

usage: make_english_words.py /usr/share/dict/scowl > english.inc
"""
import hashlib
import pathlib
import re
import sys

COMMON, TOTAL = 1000, 12000
VULGAR = re.compile(
    "anal|anus|arse|bastard|bitch|boob|bosom|breast|bugger|butt|cock|coitus|coon|crap|cunt|damn|dick|dildo|dyke|erotic|fag|fart|fetish|fuck|gay|genital|"
    "homo|horny|incest|kill|lesb|lust|masturb|molest|murder|nazi|negro|nigg|nude|orgas|orgy|paki|penis|piss|porn|prick|pube|"
    "pussy|queer|rape|rapist|rectum|retard|screw|semen|sex|shit|slag|slut|sodom|sperm|spic|suicid|testic|tit$|tits|turd|twat|vagin|"
    "virgin|wank|whor")


def words(folder, sizes):
    found = set()
    for size in sizes:
        for kind in ("english", "american"):
            text = (pathlib.Path(folder) / f"{kind}-words.{size}").read_text(encoding="latin-1")
            found.update(w for w in text.split("\n") if re.fullmatch("[a-z]{3,10}", w) and not VULGAR.search(w))
    return found


def main():
    order = lambda w: hashlib.sha256(w.encode()).digest()
    frequent = words(sys.argv[1], [10])
    plain = {w for w in frequent if 4 <= len(w) <= 6 and not re.search("(s|ed|ing|er|ly)$", w)}
    first = sorted(plain, key=order)[:COMMON]
    rest = sorted(words(sys.argv[1], [10, 20, 35]) - set(first), key=order)[: TOTAL - len(first)]
    assert len(first) == COMMON and len(first + rest) == TOTAL == len(set(first + rest))
    print("// Made by make_english_words.py, which says from what. Included inside an array initialiser.")
    line = ""
    for word in first + rest:
        item = f'"{word}",'
        if len(line) + len(item) > 118:
            print(line)
            line = ""
        line += item
    print(line)


if __name__ == "__main__":
    main()
