"""Training rows from Lacuna's own generators: worker processes read `lacuna tasks --export -` pipes into shared memory."""

import mmap
import multiprocessing
import os
import random
import struct
import subprocess

import numpy as np

import curriculum as plan

HEADER = struct.Struct("<IIHH")  # total tokens, where the answer starts, task, reserved; then uint16 ids


class Stream:
    """An endless stream of records of one task at one length."""

    def __init__(self, lacuna, tokenizer, task, context, parameters, room, seed, count=None):
        prompt = min(context, plan.ROW_LENGTHS[context] - room)
        command = [lacuna, "tasks", task, "--model", tokenizer, "--length", str(prompt),
                   "--seed", str(seed), "--threads", "1", "-p", "preset=mini", "-p", "style=direct"]
        for name, value in parameters.items():
            command += ["-p", f"{name}={value}"]
        if count is not None:
            command += ["--count", str(count)]
        self.process = subprocess.Popen(command + ["--export", "-"], stdout=subprocess.PIPE, bufsize=1 << 18)

    def read(self):
        header = self.process.stdout.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        total, answer_start, _, _ = HEADER.unpack(header)
        return np.frombuffer(self.process.stdout.read(2 * total), dtype=np.uint16), answer_start


def fill_row(ids, answer_start, x, w, prompt_weight):
    """One row: ids, and the weight of predicting the *next* token at each position."""
    total, row = len(ids), len(x)
    answer = total - answer_start
    x[:total] = ids
    x[total:] = 0
    w[:] = 0
    w[:answer_start - 1] = prompt_weight / row
    w[answer_start - 1:total - 1] = (16 / answer) ** 0.75


def repeat_row(rng, vocab, x, w):
    row = len(x)
    n = int(rng.integers(row // 4, (row - 2) // 2))
    # Half of the strings use few symbols, so that one look-back step is not enough to know where one is.
    low, high = (0, vocab) if rng.random() < 0.5 else (300, 340)
    string = rng.integers(low, high, n)
    x[:] = 0
    x[:n], x[n:2 * n] = string, string
    w[:] = 0
    w[n:2 * n - 1] = (16 / n) ** 0.75


def shared_array(shape, dtype):
    buffer = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


class Loader:
    """Keeps `slots` batches ready. The trainer sets `phase` and `task_weights`; workers follow."""

    def __init__(self, lacuna, tokenizer, vocab, workers, slots=32, prompt_weight=2.0, seed=1):
        self.lacuna, self.tokenizer, self.vocab, self.prompt_weight, self.seed = lacuna, tokenizer, vocab, prompt_weight, seed
        most_rows = plan.ROWS // min(plan.ROW_LENGTHS.values())
        self.ids = shared_array((slots, plan.ROWS), np.int16)
        self.weights = shared_array((slots, plan.ROWS), np.float32)
        self.tasks = shared_array((slots, most_rows), np.int16)
        self.context = shared_array((slots,), np.int64)
        self.phase = shared_array((1,), np.int64)
        self.task_weights = shared_array((len(plan.TASKS) + 1,), np.float64)
        self.task_weights[:] = 1.0
        self.task_weights[plan.REPEAT] = plan.REPEAT_WEIGHT[0]
        context = multiprocessing.get_context("fork")
        self.free, self.ready = context.Queue(), context.Queue()
        for slot in range(slots):
            self.free.put(slot)
        self.workers = [context.Process(target=self.work, args=(i,), daemon=True) for i in range(workers)]
        for worker in self.workers:
            worker.start()

    def work(self, number):
        random.seed(self.seed * 1000 + number)
        rng = np.random.default_rng(self.seed * 1000 + number)
        streams = {}
        while True:
            slot = self.free.get()
            phase = int(self.phase[0])
            lengths = plan.PHASES[phase]
            context = random.choices(list(lengths), list(lengths.values()))[0]
            row = plan.ROW_LENGTHS[context]
            x, w = self.ids[slot].reshape(-1, row), self.weights[slot].reshape(-1, row)
            picks = random.choices(range(len(plan.TASKS) + 1), list(self.task_weights), k=len(x))
            for i, task in enumerate(picks):
                if task == plan.REPEAT:
                    repeat_row(rng, self.vocab, x[i], w[i])
                    continue
                options = plan.variants(plan.TASKS[task], phase, context)
                parameters, room, _ = random.choices(options, [weight for _, _, weight in options])[0]
                key = (task, context, tuple(parameters.items()))
                if key not in streams:
                    # Seeds from 10^9 up are training's alone: evaluation uses small seeds.
                    seed = 10**9 + ((number * 10 + task) * 10 + plan.LENGTHS.index(context)) * 10 + len(streams) % 10
                    streams[key] = Stream(self.lacuna, self.tokenizer, plan.TASKS[task], context, parameters, room, seed)
                record = streams[key].read()
                if record is None or len(record[0]) > row:
                    raise RuntimeError(f"the generator of {key} stopped or wrote more than {row} tokens")
                fill_row(*record, x[i], w[i], self.prompt_weight)
            self.tasks[slot, :len(x)] = picks
            self.context[slot] = context
            self.ready.put(slot)

    def close(self):
        for worker in self.workers:
            worker.kill()


def held_out(lacuna, tokenizer, count, seed=77):
    """{context: (ids [tasks, count, row], answer start, total)} on seeds that training never sees."""
    streams = {(t, context): Stream(lacuna, tokenizer, task, context, plan.STORY if task.startswith("story") else {},
                                    plan.ANSWER_ROOM[context], seed, count)
               for context in plan.LENGTHS[1:] for t, task in enumerate(plan.TASKS)}
    sets = {}
    for context in plan.LENGTHS[1:]:
        row = plan.ROW_LENGTHS[context]
        ids = np.zeros((len(plan.TASKS), count, row), np.int64)
        spans = np.zeros((len(plan.TASKS), count, 2), np.int64)
        for t in range(len(plan.TASKS)):
            for i in range(count):
                tokens, answer_start = streams[t, context].read()
                total = min(len(tokens), row)
                ids[t, i, :total] = tokens[:total]
                spans[t, i] = answer_start, total
        sets[context] = ids, spans
    return sets
