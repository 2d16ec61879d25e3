#!/usr/bin/env python3
"""Writes fragments.txt, what the lines of the corpus are put together from: one a line, percent-encoded bytes."""
import urllib.parse

ENGLISH = """the of and to in is that it was for on are as with his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so these would other
into has more her two like him see time could no make than first been its who now people my made over did down only way find use
may water long little very after words called just where most know attention sparse prefill decode budget tokens Transformer
Throughput QUESTION Answer: chapter item purchased don't we're I'll they've she'd I'M CAN'T it's O'Neil 'tis rock'n'roll""".split()
WORLD = """Straße naïve café garçon Ångström coöperate Łódź žluťoučký kůň İstanbul ısı ŞİŞLİ ﬁne ﬂow oﬃce ſtraße Kelvin K
Привет мир как дела съешь ещё этих мягких французских булок Ελληνικά γλώσσα ὕδωρ Ἀθῆναι שלום עולם שָׁלוֹם مرحبا بالعالم السَّلَامُ
नमस्ते दुनिया क्षत्रिय हिन्दी বাংলা ভাষা தமிழ் ไทย ภาษาไทย ລາວ မြန်မာ ខ្មែរ አማርኛ 你好世界 我喜欢学习 中文，测试。 繁體字 日本語 ひらがな カタカナ ｶﾀｶﾅ
한국어 안녕하세요 한글 각 ﾡ ᾳ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 ①②③ ⅷ ½ ² ٣٤٥ ४५६ ㍿ ﷺ ℡ Å é ǭ q̣̇ q̣̇ a͏b ẛ̣ 가 Nǐ hǎo""".split()
EMOJI = ["😀", "😀😃😄", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☺", "🤷🏾‍♀️", "1️⃣", "🧑🏻‍💻", "→", "…", "—", "„“", "«»", "€100", "№ 5", "±3°C", "\u200b", "\u200d",
         "\ufeff", "\u2060", "\u00ad", "\u0301", "\ufffd", "\U000e0061", "\uf8ff", "\U0010ffff"]
CODE = ["def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "std::vector<std::string>&", "x_1", "foo_bar", "camelCase", "HTTPServer2",
        "#include <cstdio>\n", "if (a && !b || c) {", "});", "/* c */", "// TODO:", "SELECT * FROM t WHERE id=42;", "<div class=\"a\">", "</div>", "https://example.org/a?b=c&d=%20",
        "user@example.com", "C:\\Windows\\x", "3.14159", "1,000,000", "0xDEADBEEF", "2024-07-26T12:00:00Z", "$x^2$", "\\frac{1}{2}", "{\"k\": [1, 2.5e-3, null]}", "~!@#$%^&*()_+", "```\n", "\n\n", "\n\n\n", " \n",
        "\r\n\r\n", "  \n  ", "\t\t", "...", "?!", "--", "==>", "'s", "'S", "'LL", "'ſ", " 'd", "’s", "''", "'"]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start", "|im_end|>", "<|im_start|>user\n", "<|im_end|>\n", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
           "<|end_header_id|>", "<s>", "</s>", "<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>\n", "<0x41>", "<0xE2>", "▁", "▁▁", "▁the", "Ġ", "Ċ", "<tool_call>", "</tool_call>",
           " <mask> ", "<mask>", "  <mask>\n", "word", "wordy", "sword word", "<LOWER>", "<lower>", "ﬀ", "<right>  x", " <left>", "<both> ", "{{user}}", "<|reserved|><|reserved|>"]
INVALID = [b"\xff", b"\xc3", b"\xe2\x96", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\x80\x80", b"a\xe4b", b"\xe4\xbd\xe5\xa5\xbd", b"\xf4\x90\x80\x80", b"\x00", b"\x7f\x1b[0m"]


def main():
    fragments = [w.encode() for w in ENGLISH * 3 + WORLD * 2 + EMOJI + CODE * 2 + SPECIAL] + INVALID
    with open("tests/model/tokenizer/golden/fragments.txt", "w") as f:
        f.write("# Written by make_fragments.py: percent-encoded bytes, one fragment a line.\n")
        for fragment in fragments:
            f.write(urllib.parse.quote_from_bytes(fragment, safe="!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~") + "\n")


if __name__ == "__main__":
    main()
