#!/usr/bin/env python3
"""Next-token logits of the shipped models, computed by transformers in float32 from the shipped folders.

Stored per model: logits [2, 300] of the last token of two prompts, every (vocab // 300)-th entry. Prompt p holds
LENGTHS[p] ids; id i is (7919 * i + 31 * i * i + 5) % 1900 + 16.
Needs torch and transformers (made with 2.11 and 5.23). Run from the source root after a model changed:
    python3 tests/mini/golden/make_golden.py
"""
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
LENGTHS = [200, 1500]

for name in ["nano", "micro", "tiny"]:
    model = AutoModelForCausalLM.from_pretrained(f"assets/mini/{name}", dtype=torch.float32)
    rows = []
    for length in LENGTHS:
        ids = [(7919 * i + 31 * i * i + 5) % 1900 + 16 for i in range(length)]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].numpy()
        rows.append(logits[:: len(logits) // 300][:300])
    np.savetxt(HERE / f"{name}.txt", np.stack(rows), fmt="%.9g")
