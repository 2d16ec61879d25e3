#!/usr/bin/env python3
"""Writes squad_scores.json: prediction, reference, F1 and exact match by the rules of SQuAD's published evaluation (v2):
lower case; remove ASCII punctuation; remove the words a, an, the; join white space; F1 over bags of words, where an empty side
counts as 1 only if both are empty.

usage: make_squad_scores.py > squad_scores.json
"""
import collections
import json
import random
import re
import string

HAND = [
    ("France", "France"), ("the France.", "France"), ("in France", "France"), ("Paris", "France"), ("", "France"), ("", ""), ("the", "a"),
    ("the", "France"), ("France", "the"), ("10th and 11th centuries", "in the 10th and 11th centuries"), ("U.S.", "US"), ("U. S.", "US"),
    ("Denmark, Iceland and Norway", "Denmark, Iceland, and Norway"), ("Norway and Denmark", "Denmark, Iceland and Norway"),
    ("AN APPLE A DAY", "apple day"), ("the the the cat", "cat the"), ("cat cat", "cat"), ("cat", "cat cat"), ("cat cat dog", "cat dog dog"),
    ("1,000", "1000"), ("1.5 million", "15 million"), ("$5", "5"), ("50%", "50 %"), ("co-operate", "cooperate"), ("co - operate", "cooperate"),
    ("it's", "its"), ("it’s", "its"), ("“quoted”", "quoted"), ("caf\u00e9", "CAF\u00c9"), ("\u0130stanbul", "istanbul"), ("stra\u00dfe", "STRASSE"),
    ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"), ("\u0410\u0411\u0412", "\u0430\u0431\u0432"), ("\u6771\u4eac", "\u6771\u4eac \u90fd"), ("a\u00e9", "\u00e9"), ("\u00e9a", "\u00e9"),
    ("tab\tseparated\nwords", "tab separated words"), ("no\u00a0break", "no break"), ("wide\u3000space", "wide space"), ("thin\u2009space", "thin space"),
    ("zero\u200bwidth", "zerowidth"), ("under_score", "under score"), ("under_score", "underscore"), ("a-b", "b"), ("a b", "b"), ("an\u2014other", "other"),
    ("the\u2014end", "end"), ("the'end", "end"), ("a1", "1"), ("a 1", "1"), ("!?.", ""), ("!?.", "x"), ("  spaces  ", "spaces"), ("\u00bd cup", "\u00bd cup"),
    ("a\u0301 b", "b"), ("\U0001f600 smile", "smile"), ("x\u00b2", "x2"), ("A.", "a"), ("The Beatles", "beatles"), ("there", "the re"), ("Theatre", "theatre the"),
]
WORDS = ["the", "a", "an", "The", "A", "king", "King", "of", "France,", "France", "1066", "1,066", "(Normandy)", "Normandy", "and", "And", "'s", "duke", "Duke's",
         "\u00c9tienne", "\u00e9tienne", "-", "--", "10%", "north-west", "north", "west", "\u2013", "it", "It.", "St.", "St", "\u00a0", "\t"]


def normalize(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def f1(prediction, reference):
    p, r = normalize(prediction), normalize(reference)
    if not p or not r:
        return float(p == r)
    same = sum((collections.Counter(p) & collections.Counter(r)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(p), same / len(r)
    return 2 * precision * recall / (precision + recall)


def main():
    rng = random.Random(5)
    pairs = list(HAND)
    while len(pairs) < 400:
        reference = [rng.choice(WORDS) for _ in range(rng.randint(1, 7))]
        prediction = [w for w in reference if rng.random() < .7] + [rng.choice(WORDS) for _ in range(rng.randint(0, 3))]
        rng.shuffle(prediction)
        pairs.append((rng.choice([" ", "  "]).join(prediction), " ".join(reference)))
    rows = [[p, r, f1(p, r), int(normalize(p) == normalize(r)), " ".join(normalize(p))] for p, r in pairs]
    print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")


if __name__ == "__main__":
    main()
