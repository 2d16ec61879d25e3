#!/usr/bin/env python3
"""Draws docs/mini-curves.svg from the committed *-curves.jsonl files (needs gnuplot).

    python3 assets/mini/training/plot_curves.py
"""

import json
import pathlib
import subprocess

HERE = pathlib.Path(__file__).parent
OUT = HERE.parents[2] / "docs" / "mini-curves.svg"
TASKS = ["niah", "vt", "cwe", "retrieval", "filtering", "multihop"]
SIZES = ["nano", "micro", "tiny"]
CONTEXTS = ["1024", "4096", "8192"]


def main():
    script = [f"set terminal svg size 1200,900 dynamic background rgb 'white'", f"set output '{OUT}'",
              f"set multiplot layout {len(SIZES)},{len(CONTEXTS)}", "set yrange [0:1.02]", "set xlabel 'million training tokens'",
              "set ylabel 'exact match, training batches'", "set key bottom right font ',9'", "set grid"]
    for size in SIZES:
        lines = [json.loads(line) for line in (HERE / f"{size}-curves.jsonl").read_text().splitlines()]
        for context in CONTEXTS:
            script.append(f"set title '{size}, {context} tokens'")
            plots, blocks = [], []
            for task in TASKS:
                points = [(line["tokens"] / 1e6, line["train_exact_and_token_accuracy"][context][task][0]) for line in lines
                          if task in line["train_exact_and_token_accuracy"].get(context, {})]
                name = f"${size}_{context}_{task}"
                blocks.append(f"{name} << EOD\n" + "\n".join(f"{x} {y}" for x, y in points) + "\nEOD")
                plots.append(f"{name} with lines lw 2 title '{task}'")
            script += blocks + ["plot " + ", ".join(plots)]
    subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=True)


if __name__ == "__main__":
    main()
