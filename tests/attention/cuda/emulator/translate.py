"""Turns the portable CUDA sources into C++ for the emulator: translate.py SOURCE_DIR OUTPUT_DIR.

Kernel launches become emulator::launch, __shared__ becomes static (blocks run one at a time), the two inline-assembly
functions of softmax.cuh become library calls, mma.cuh, ring.cuh and hopper.cuh are replaced by the emulator's.
"""

import pathlib
import re
import sys


def arguments(text):
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "(<{") - (character in ")>}")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return parts + [current]


def launch(match):
    grid, block, shared = arguments(match.group(2))[:3]
    return f"emulator::launch({grid}, {block}, {shared}, [=] {{ {match.group(1)}({match.group(3)}); }});"


def shared(match):
    names = [re.search(r"(\w+)\s*(\[.*)?$", piece.strip()).group(1) for piece in arguments(match.group(1))]
    told = " ".join(f"emulator::shared_variable(&{name}, sizeof({name}));" for name in names)
    return f"static {match.group(1)}; {told}"


def translate(text):
    text = text.replace("#include <cuda_runtime.h>\n", "")  # the emulator's functions stand in
    text = re.sub(r"extern __shared__ (__align__\(128\) )?unsigned char raw\[\];", "unsigned char* raw = emulator::shared();", text)
    text = text.replace("static __global__", "static")
    text = re.sub(r"\b__shared__\s+([^;]*);", shared, text)
    text = re.sub(r'asm\("ex2.approx.ftz.f32[^;]*;"[^;]*;', "y = exp2f(x);", text)
    text = re.sub(r'asm\("cvt.rn.bf16x2[^)]*\)[^;]*;', "packed = emulator_pack(low, high);", text)
    text = re.sub(r"([A-Za-z_]\w*(?:<[^<>;]*>)?)<<<(.*?)>>>\((.*?)\);", launch, text, flags=re.S)
    if "__cluster_dims__(T::kCluster" in text:
        text = re.sub(r"(emulator::launch\(.*?\})\);", r"\1, T::kCluster);", text)
    return text


source, output = map(pathlib.Path, sys.argv[1:3])
here = pathlib.Path(__file__).parent
headers = output / "attention" / "cuda"
headers.mkdir(parents=True, exist_ok=True)
for path in sorted(source.iterdir()):
    if path.suffix == ".cuh":
        stand_in = here / path.name
        text = stand_in.read_text() if stand_in.exists() else translate(path.read_text())
        (headers / path.name).write_text(text)
    elif path.suffix == ".cu":
        first = '#include "tests/attention/cuda/emulator/emulator.h"\n'
        (output / (path.stem + ".cpp")).write_text(first + translate(path.read_text()))
