#!/usr/bin/env python3
"""Trains one mini model from scratch on Lacuna's own tasks and writes a Hugging Face folder.

    python3 train.py --size micro --minutes 8 --lacuna ../../../build/release/lacuna --tokenizer ../tokenizer --out runs/micro

Resumes from OUT/checkpoint.pt when it is there. Writes OUT/curves.jsonl (training and held-out accuracy by task and
length), OUT/model/ (the folder to ship) and OUT/accuracy.json (held-out, teacher-forced exact match).
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import curriculum as plan
from data import Loader, held_out
from model import HEAD_DIM, SIZES, Mini, export_hugging_face
from optimizer import AdamW, Muon

MATRIX_LR = {"nano": 0.02, "micro": 0.012, "tiny": 0.012}
OTHER_LR = 3e-3
WEIGHT_DECAY = 0.1
WARMUP_STEPS = 60
DECAY_FROM = 0.45  # fraction of the run at which the learning rate starts its way down to 3 %


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="training time, evaluation and start-up not counted")
    parser.add_argument("--lacuna", required=True, help="the lacuna program")
    parser.add_argument("--tokenizer", required=True, help="folder with tokenizer.json")
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-samples", type=int, default=64)
    parser.add_argument("--log-seconds", type=float, default=15)
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel instead of replaying CUDA graphs")
    parser.add_argument("--max-steps", type=int, default=0, help="stop early, for a trial")
    return parser.parse_args()


def fastest_attention(heads):
    """Times forward and backward of each fused attention backend at 4096 tokens and keeps the fastest."""
    row = plan.ROW_LENGTHS[4096]
    q, k, v = (torch.randn(plan.ROWS // row, heads, row, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
               for _ in range(3))
    seconds = {}
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        try:
            with sdpa_kernel(backend):
                for attempt in range(3):
                    torch.cuda.synchronize()
                    start = time.time()
                    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
                    torch.cuda.synchronize()
                    seconds[backend] = time.time() - start
        except RuntimeError as error:
            print(f"{backend}: {error}", flush=True)
    print("attention, forward and backward at 4096: " + ", ".join(f"{b.name} {t * 1e3:.1f} ms" for b, t in seconds.items()))
    return min(seconds, key=seconds.get)


class Trainer:
    def __init__(self, args):
        self.args = args
        self.out = pathlib.Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        tokenizer = json.loads((pathlib.Path(args.tokenizer) / "tokenizer.json").read_text())
        ids = list(tokenizer["model"]["vocab"].values()) + [t["id"] for t in tokenizer["added_tokens"]]
        self.vocab = (max(ids) + 64) // 64 * 64
        self.end_id = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|im_end|>")
        torch.manual_seed(args.seed)
        # Workers are forked before the first CUDA call.
        self.loader = Loader(args.lacuna, args.tokenizer, max(ids) + 1, args.workers, seed=args.seed)
        dtype = torch.bfloat16 if self.cuda else torch.float32
        self.model = Mini(SIZES[args.size], self.vocab, dtype, compile_pieces=self.cuda).to(self.device)
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and not n.startswith("embedding")]
        others = [p for n, p in self.model.named_parameters() if p.dim() != 2 or n.startswith("embedding")]
        self.muon = Muon(matrices, MATRIX_LR[args.size], WEIGHT_DECAY, dtype)
        self.adamw = AdamW(others, OTHER_LR)
        self.lr_factor = torch.zeros((), device=self.device)
        tasks = len(plan.TASKS) + 1
        self.stats = torch.zeros(len(plan.LENGTHS) * tasks, 3, device=self.device)
        self.loss_sum = torch.zeros(2, device=self.device)
        self.ids = torch.zeros(plan.ROWS, dtype=torch.int16, device=self.device)
        self.weights = torch.zeros(plan.ROWS, device=self.device)
        self.row_tasks = torch.zeros(self.loader.tasks.shape[1], dtype=torch.int16, device=self.device)
        pin = {"pin_memory": True} if self.cuda else {}
        self.staging = [(torch.empty(plan.ROWS, dtype=torch.int16, **pin), torch.empty(plan.ROWS, **pin),
                         torch.empty(self.loader.tasks.shape[1], dtype=torch.int16, **pin)) for _ in range(8)]
        self.staged = [None] * len(self.staging)
        self.tables = {c: self.model.rope_tables(plan.ROWS, row, self.device) for c, row in plan.ROW_LENGTHS.items()}
        self.graphs, self.pool, self.warm = {}, None, {}
        if self.cuda:
            # Everything runs on one side stream, because graphs cannot be captured on the default one.
            self.stream = torch.cuda.Stream()
            self.stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.set_stream(self.stream)
            self.backend = fastest_attention(SIZES[args.size].q_heads)
        self.step_number, self.trained_seconds, self.phase = 0, 0.0, 0
        self.resume()
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)

    # --- one step -----------------------------------------------------------------------------------------------

    def work_of_step(self, context):
        row = plan.ROW_LENGTHS[context]
        ids = self.ids.long()
        targets = ids.view(-1, row).roll(-1, 1).reshape(-1)
        with sdpa_kernel(self.backend) if self.cuda else contextlib.nullcontext():
            loss, hits = self.model(ids, row, *self.tables[context], targets, self.weights)
            total = self.weights.sum()
            (loss / total).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.muon.step(self.lr_factor * self.muon.base_lr)
        self.adamw.step(self.lr_factor * self.adamw.base_lr)
        with torch.no_grad():
            torch._foreach_zero_([p.grad for p in self.model.parameters()])
            self.loss_sum += torch.stack((loss.detach(), total))
            asked = (self.weights > 0.02).view(-1, row)
            hits = hits.view(-1, row)
            exact = (hits | ~asked).all(1).float()
            share = (hits & asked).sum(1) / asked.sum(1).clamp(min=1)
            tasks = self.row_tasks[:exact.shape[0]].long()
            where = tasks + plan.LENGTHS.index(context) * (len(plan.TASKS) + 1)
            self.stats.index_add_(0, where, torch.stack((torch.ones_like(exact), exact, share.float()), 1))

    def run_step(self, context):
        if not self.cuda or self.args.no_graphs:
            self.work_of_step(context)
            return
        # Two steps outside a graph per length (compilation, cuBLAS and attention set-up), then capture once.
        if self.warm.get(context, 0) < 2:
            self.work_of_step(context)
            self.warm[context] = self.warm.get(context, 0) + 1
            return
        if context not in self.graphs:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                self.work_of_step(context)
            self.pool = self.pool or graph.pool()
            self.graphs[context] = graph
        self.graphs[context].replay()

    def load_batch(self):
        slot = self.loader.ready.get()
        turn = self.step_number % len(self.staging)
        if self.staged[turn] is not None:
            self.staged[turn].synchronize()
        ids, weights, tasks = self.staging[turn]
        ids.numpy()[:] = self.loader.ids[slot]
        weights.numpy()[:] = self.loader.weights[slot]
        tasks.numpy()[:] = self.loader.tasks[slot]
        context = int(self.loader.context[slot])
        self.loader.free.put(slot)
        self.ids.copy_(ids, non_blocking=True)
        self.weights.copy_(weights, non_blocking=True)
        self.row_tasks.copy_(tasks, non_blocking=True)
        if self.cuda:
            self.staged[turn] = torch.cuda.Event()
            self.staged[turn].record()
        return context

    # --- the run ------------------------------------------------------------------------------------------------

    def train(self):
        duration = self.args.minutes * 60
        evaluation = held_out(self.args.lacuna, self.args.tokenizer, self.args.eval_samples)
        names = [t.split("_", 1)[1] for t in plan.TASKS] + ["repeat"]
        count = sum(p.numel() for p in self.model.parameters())
        print(f"{self.args.size}: {count / 1e6:.2f} M parameters, vocabulary {self.vocab}, {self.device}", flush=True)
        last_log, last_step, waited = time.time(), self.step_number, 0.0
        previous = time.time()
        saved = time.time()
        self.loader.phase[0] = self.phase
        while self.trained_seconds < duration and not 0 < self.args.max_steps <= self.step_number:
            fraction = self.trained_seconds / duration
            warmup = min(1.0, (self.step_number + 1) / WARMUP_STEPS)
            self.lr_factor.fill_(warmup * (1 - 0.97 * max(0.0, fraction - DECAY_FROM) / (1 - DECAY_FROM)))
            start = time.time()
            context = self.load_batch()
            waited += time.time() - start
            compiling = context not in self.graphs
            self.run_step(context)
            if compiling and self.cuda:
                torch.cuda.synchronize()
            self.step_number += 1
            now = time.time()
            # Compilation and capture do not count as training time.
            self.trained_seconds += 0.0 if compiling and self.cuda and not self.args.no_graphs else now - previous
            previous = now
            if now - last_log > self.args.log_seconds:
                steps = self.step_number - last_step
                self.log(names, steps * plan.ROWS / (now - last_log), waited / (now - last_log), duration)
                last_log, last_step, waited = now, self.step_number, 0.0
                if now - saved > 120:
                    self.save()
                    saved = time.time()
                previous = time.time()
        self.save()
        export_hugging_face(self.model, self.args.tokenizer, self.end_id, self.out / "model")
        self.evaluate(evaluation)

    def log(self, names, tokens_per_second, waiting, duration):
        stats = self.stats.cpu().numpy().reshape(len(plan.LENGTHS), len(names), 3).copy()
        loss, weight = self.loss_sum.tolist()
        self.stats.zero_()
        self.loss_sum.zero_()
        loss = loss / max(weight, 1e-9)
        if loss != loss:
            raise SystemExit("the loss became NaN")
        print(f"{self.trained_seconds:.0f} s step {self.step_number} phase {self.phase} "
              f"{self.step_number * plan.ROWS / 1e6:.0f} M tokens, {tokens_per_second / 1e6:.2f} M/s, "
              f"waiting for data {waiting:.0%}, lr {float(self.lr_factor):.2f}, loss {loss:.4f}", flush=True)
        accuracy = {}
        for i, context in enumerate(plan.LENGTHS):
            seen = stats[i, :, 0] > 0
            if seen.any():
                accuracy[context] = {names[t]: [round(float(stats[i, t, k] / stats[i, t, 0]), 4) for k in (1, 2)]
                                     for t in np.flatnonzero(seen)}
                print(f"  {context:5d} " + " ".join(f"{n} {a[0]:.2f}/{a[1]:.3f}" for n, a in accuracy[context].items()))
        sys.stdout.flush()
        with open(self.out / "curves.jsonl", "a") as f:
            f.write(json.dumps({"seconds": round(self.trained_seconds, 1), "step": self.step_number, "phase": self.phase,
                                "tokens": self.step_number * plan.ROWS, "tokens_per_second": round(tokens_per_second),
                                "loss": round(loss, 5), "train_exact_and_token_accuracy": accuracy}) + "\n")
        self.adapt(stats, duration)

    def adapt(self, stats, duration):
        """Tasks that are learned get less of the batch; the phase moves on when its longest context is learned."""
        longest = plan.LENGTHS.index(max(plan.PHASES[self.phase]))
        real = stats[longest, :len(plan.TASKS)]
        if real[:, 0].min() > 0:
            exact = real[:, 1] / real[:, 0]
            self.loader.task_weights[:len(plan.TASKS)] = np.maximum(0.3, 1 - exact)
            done = exact.mean() > 0.85 or self.trained_seconds / duration > plan.PHASE_ENDS[self.phase]
        else:
            done = self.trained_seconds / duration > plan.PHASE_ENDS[self.phase]
        if done and self.phase + 1 < len(plan.PHASES):
            self.phase += 1
            self.loader.phase[0] = self.phase
            print(f"-> phase {self.phase}", flush=True)
        self.loader.task_weights[plan.REPEAT] = plan.REPEAT_WEIGHT[self.phase]

    @torch.no_grad()
    def evaluate(self, sets):
        table = {}
        for context, (ids, spans) in sets.items():
            row = plan.ROW_LENGTHS[context]
            table[context] = {}
            for t, task in enumerate(plan.TASKS):
                exact = []
                batch = plan.ROWS // row
                for start in range(0, ids.shape[1], batch):
                    chunk = torch.zeros(batch, row, dtype=torch.long)
                    n = min(batch, ids.shape[1] - start)
                    chunk[:n] = torch.from_numpy(ids[t, start:start + n])
                    flat = chunk.to(self.device).view(-1)
                    targets = flat.view(-1, row).roll(-1, 1).reshape(-1)
                    _, hits = self.model(flat, row, *self.tables[context], targets, torch.ones(plan.ROWS, device=self.device))
                    hits = hits.view(-1, row).cpu().numpy()
                    for i in range(n):
                        first, total = spans[t, start + i]
                        exact.append(bool(hits[i, first - 1:total - 1].all()))
                table[context][task] = sum(exact) / len(exact)
            print(f"held out {context}: " + " ".join(f"{k} {v:.3f}" for k, v in table[context].items()), flush=True)
        (self.out / "accuracy.json").write_text(json.dumps(table, indent=2) + "\n")

    # --- checkpoints --------------------------------------------------------------------------------------------

    def state(self):
        return {"moments": self.muon.moments, "first": self.adamw.first, "second": self.adamw.second, "steps": self.adamw.steps}

    def save(self):
        path = self.out / "checkpoint.pt"
        torch.save({"model": self.model.state_dict(), "optimizer": self.state(), "step": self.step_number,
                    "seconds": self.trained_seconds, "phase": self.phase}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def resume(self):
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        saved = torch.load(path, map_location=self.device)
        self.model.load_state_dict(saved["model"])
        for name, tensors in self.state().items():
            for mine, theirs in zip(tensors, saved["optimizer"][name]) if isinstance(tensors, list) else [(tensors, saved["optimizer"][name])]:
                mine.copy_(theirs)
        self.step_number, self.trained_seconds, self.phase = saved["step"], saved["seconds"], saved["phase"]
        print(f"resumed at step {self.step_number}, {self.trained_seconds:.0f} s", flush=True)


if __name__ == "__main__":
    trainer = Trainer(arguments())
    try:
        trainer.train()
    finally:
        trainer.loader.close()
