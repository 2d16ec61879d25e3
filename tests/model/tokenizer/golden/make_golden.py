#!/usr/bin/env python3
"""Trains the tokenizers of the tests with the reference library and writes what it makes of the corpus.

    python3 tests/model/tokenizer/golden/make_golden.py [--train]  (from the source root; a few seconds)

Tokenizer files that are there are kept: the library's trainer breaks ties differently from run to run. With --train
they are made anew; then run make_unicode_golden.py too.

Writes, beside itself: NAME.json (tokenizer files), NAME.golden (a checksum of ids and decoded text for every line of
the corpus), NAME.ids.json (the ids themselves for some lines). The corpus is made by corpus.py and corpus.h alike.
"""
import json
import os
import sys
import zlib

sys.path.insert(0, os.path.dirname(__file__))
from corpus import line, read_fragments  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

HERE = os.path.dirname(__file__)
LINES = 12000
FULL = 150
CORPUS_SEED = 1
TRAIN_SEED = 2
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def special(content, **kwargs):
    return AddedToken(content, special=True, normalized=False, **kwargs)


def byte_level(pattern, size, normalizer=None):
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    t.train_from_iterator(training_lines(), trainer)
    return t


def sentence_piece(size, bytes_, first_tokens):
    """A BPE model over characters and U+2581, with byte tokens, as converted SentencePiece models are."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=250, show_progress=False,
                                  special_tokens=first_tokens + ["<0x%02X>" % b for b in bytes_])
    t.train_from_iterator(training_lines(), trainer)
    model = json.loads(t.to_str())["model"]
    return Tokenizer(models.BPE(model["vocab"], [tuple(m) for m in model["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def training_lines():
    fragments = read_fragments(os.path.join(HERE, "fragments.txt"))
    return (line(fragments, TRAIN_SEED, i).decode("utf-8", errors="replace") for i in range(8000))


def qwen():
    t = byte_level(QWEN, 1500, normalizers.NFC())
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    t.add_special_tokens([special(s) for s in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    t.add_tokens([AddedToken(s, normalized=False) for s in ("<tool_call>", "</tool_call>")])
    return t


def llama3():
    t = byte_level(LLAMA3, 1500)
    raw = json.loads(t.to_str())
    # Some joined tokens lose their rule: only ignore_merges finds them now. Rules in the old, one-string form.
    merges = [m for i, m in enumerate(raw["model"]["merges"]) if i % 7 != 3]
    raw["model"]["merges"] = [" ".join(m) for m in merges]
    raw["model"]["ignore_merges"] = True
    t = Tokenizer.from_str(json.dumps(raw))
    t.add_special_tokens([special(s) for s in ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")])
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))])])
    return t


def gemma():
    t = sentence_piece(2000, range(256), ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"])
    t.normalizer = normalizers.Replace(" ", "▁")
    t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    t.add_special_tokens([special(s) for s in ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")])
    t.add_tokens([AddedToken(s, normalized=False) for s in ("\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>")])
    t.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)])
    return t


def mistral():
    t = sentence_piece(1500, range(256), ["<unk>", "<s>", "</s>"])
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.add_special_tokens([special(s) for s in ("<unk>", "<s>", "</s>")])
    t.add_tokens([AddedToken("{{user}}", normalized=True), AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return t


def metaspace():
    """Only some bytes have tokens: the rest is unknown, one token each, and waits while bytes overtake it."""
    t = sentence_piece(1200, [b for b in range(256) if b % 5 != 0], ["<unk>", "<s>", "</s>"])
    t.model.fuse_unk = False
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    t.decoder = decoders.Metaspace(prepend_scheme="first")
    t.add_special_tokens([special(s) for s in ("<unk>", "<s>", "</s>")])
    return t


def options():
    """Every option that the others leave alone, at once."""
    t = byte_level(r"\d+|\w+|[^\w\s]+", 900)
    t.model.unk_token = None
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s{3,}"), "  "), normalizers.Strip(left=False, right=True)])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.Split("the", "merged_with_next"), pre_tokenizers.Split(Regex(r"q+"), "merged_with_previous", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)])
    t.add_tokens([AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=False), AddedToken("<both>", lstrip=True, rstrip=True),
                  AddedToken("word", single_word=True, normalized=False), AddedToken("<LOWER>", normalized=True), AddedToken("Straße", normalized=True, single_word=True), AddedToken("ﬀ", normalized=True)])
    t.add_special_tokens([AddedToken("K", special=True, normalized=True), special("<s>"), special("</s>")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", t.token_to_id("<s>")), ("</s>", t.token_to_id("</s>"))])
    return t


def write(name, tokenizer):
    fragments = read_fragments(os.path.join(HERE, "fragments.txt"))
    sums, full, count = [], [], 0
    for i in range(LINES):
        text = line(fragments, CORPUS_SEED, i).decode("utf-8", errors="replace")
        ids = tokenizer.encode(text, add_special_tokens=i % 2 == 1).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=i % 3 == 0)
        count += len(ids)
        sums.append("%06x" % (zlib.crc32((",".join(map(str, ids)) + ";" + decoded).encode()) & 0xFFFFFF))
        if i < FULL:
            full.append({"ids": ids, "decoded": decoded})
    with open(os.path.join(HERE, name + ".golden"), "w") as f:
        for i in range(0, LINES, 16):
            f.write("".join(sums[i:i + 16]) + "\n")
    with open(os.path.join(HERE, name + ".ids.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x, ensure_ascii=False, separators=(",", ":")) for x in full) + "\n]\n")
    print(f"{name}: vocabulary {tokenizer.get_vocab_size()}, {count} tokens")


def main():
    for make in (qwen, llama3, gemma, mistral, metaspace, options):
        path = os.path.join(HERE, make.__name__ + ".json")
        if "--train" in sys.argv or not os.path.exists(path):
            raw = json.loads(make().to_str())
            if make is llama3:  # to_str writes pairs: keep the one-string form in the file
                raw["model"]["merges"] = [" ".join(m) for m in raw["model"]["merges"]]
            with open(path, "w") as f:
                json.dump(raw, f, ensure_ascii=False, separators=(",", ":"))
                f.write("\n")
        write(make.__name__, Tokenizer.from_file(path))


if __name__ == "__main__":
    main()
