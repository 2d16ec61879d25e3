"""The corpus of the tokenizer tests: made, not stored. corpus.h does the same in C++, byte for byte."""
import urllib.parse

MASK = (1 << 64) - 1
# Code points drawn one by one, low and high end of each range.
RANGES = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0x1100, 0x11FF),
    (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xF900, 0xFB4F), (0xFE00, 0xFEFF), (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x0, 0xD7FF), (0xE000, 0x10FFFF),
]


class Random:
    """splitmix64"""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n


def read_fragments(path):
    with open(path) as f:
        return [urllib.parse.unquote_to_bytes(line.rstrip("\n")) for line in f if not line.startswith("#")]


def line(fragments, seed, index):
    """Line `index` of the corpus, as bytes: some of it is not valid UTF-8."""
    r = Random(seed * 1000003 + index)
    out = b""
    for _ in range(1 + r.below(14)):
        kind = r.below(20)
        if kind < 12:
            out += fragments[r.below(len(fragments))]
            if r.below(3) != 0:
                out += b" "
        elif kind < 14:
            low, high = RANGES[r.below(len(RANGES))]
            for _ in range(1 + r.below(4)):
                out += chr(low + r.below(high - low + 1)).encode()
        elif kind == 14:
            out += b" " * (1 + r.below(20))
        elif kind == 15:
            blanks = [b"\n", b"\t", b"\r\n", b" ", b"\xc2\xa0", b"\xe3\x80\x80", b"\xc2\x85", b"\xe2\x80\xa8"]
            for _ in range(1 + r.below(6)):
                out += blanks[r.below(len(blanks))]
        elif kind == 16:
            for _ in range(1 + r.below(10)):
                out += bytes([48 + r.below(10)])
        elif kind == 17:
            for _ in range(1 + r.below(3)):
                out += bytes([r.below(256)])
        elif kind == 18:
            out += bytes([97 + r.below(26)]) * (1 + r.below(40))
        else:
            # A fragment cut anywhere, half a character included.
            f = fragments[r.below(len(fragments))]
            out += f[: r.below(len(f) + 1)]
    return out
