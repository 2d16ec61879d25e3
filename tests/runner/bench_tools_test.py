#!/usr/bin/env python3
"""bench/run_gpu and bench/gpu_table.py without a GPU: a program that pretends, and rows whose table is known.

    bench_tools_test.py
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import gpu_table  # noqa: E402


def write(folder, name, rows, **more):
    (pathlib.Path(folder) / f"{name}.json").write_text(json.dumps({"rows": rows, **more}))


def cells(table, start):
    lines = [line for line in table.splitlines() if line.startswith(f"| {start}")]
    assert len(lines) == 1, (start, table)
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


class Table(unittest.TestCase):
    def test_rows(self):
        with tempfile.TemporaryDirectory() as folder:
            write(folder, "ours_attention", [
                {"part": "attention", "key": "dense", "tokens": 32768, "batch": 1, "seconds": 0.0120},
                {"part": "attention", "key": "dense", "tokens": 131072, "batch": 1, "seconds": 0.150},
                {"part": "attention", "key": "vertical_slash", "tokens": 131072, "batch": 1, "seconds": 0.049,
                 "index_seconds": 0.0025, "sparsity": 0.79},
                {"part": "attention", "key": "decode_dense", "tokens": 131072, "batch": 1, "seconds": 70e-6}],
                device="Test GPU")
            write(folder, "ours_model", [
                {"part": "decode", "key": "shared_prefill", "tokens": 32768, "batch": 31, "seconds": 20.0}],
                device="Test GPU")
            write(folder, "peers_attention", [{"key": "dense_cudnn", "tokens": 32768, "seconds": 0.0113},
                                              {"key": "dense_cudnn", "tokens": 131072, "seconds": 0.200},
                                              {"key": "decode_cudnn", "tokens": 131072, "seconds": 92e-6}], peer="torch")
            write(folder, "peers_model", [{"key": "prefill", "tokens": 32768, "seconds": 1.2},
                                          {"key": "decode", "tokens": 131072, "seconds": 0.060}],
                  peer="transformers", skipped=["prefill 131072"])
            table = gpu_table.table(folder)
        self.assertEqual(cells(table, "dense prefill attention, 32K")[1:],
                         ["12 ms", "11.3 ms", "1.06", "1 x the peer", "no (1.06 x)"])
        self.assertEqual(cells(table, "dense prefill attention, 128K")[1:],
                         ["150 ms", "200 ms", "0.75", "0.85 x the peer", "yes"])
        self.assertEqual(cells(table, "vertical_slash, 128K")[0:2],
                         ["vertical_slash, 128K, index included, density 21.0 %", "49 ms"])
        self.assertEqual(cells(table, "vertical_slash, 128K")[2:], ["142 ms*", "0.345", "50 ms", "yes"])
        self.assertEqual(cells(table, "index alone, vertical_slash")[1:], ["2.5 ms", "", "", "2 ms", "no (1.25 x)"])
        self.assertEqual(cells(table, "decode attention, dense")[1:], ["70 us", "92 us", "0.761", "75 us", "yes"])
        # 31 x (1.2 + 256 x 0.06) = 513.36 s, a 25th of it is 20.53 s.
        self.assertEqual(cells(table, "one 32K prompt")[1:], ["20 s", "513.4 s", "0.039", "0.04 x the peer", "yes"])
        self.assertEqual(cells(table, "7B prefill, dense, 128K")[1:],
                         ["not measured", "not measured", "", "7.5 s", ""])
        self.assertIn("peers_model: no time was left for prefill 131072", table)

    def test_nothing_measured_claims_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            table = gpu_table.table(folder)
        self.assertNotIn("| yes |", table)
        self.assertNotIn("| no (", table)
        for name in ("ours_attention", "ours_model", "peers_attention", "peers_model"):
            self.assertIn(f"- {name}: not measured", table)


PROGRAM = """#!/bin/sh
# lacuna that pretends: attention works, whole models never come to an end.
[ "$1" = bench ] || exit 9
if [ "$2" = attention ]; then
  while [ $# -gt 1 ]; do [ "$1" = --json ] && out=$2; shift; done
  echo '{"device": "Pretended", "rows": [{"part": "attention", "key": "dense", "tokens": 16384, "seconds": 0.003}]}' >"$out"
else
  touch "$TMPDIR/weights"
  exec sleep 60
fi
"""


class RunGpu(unittest.TestCase):
    def run_it(self, folder, *arguments, gpu=True):
        folder = pathlib.Path(folder)
        (folder / "lacuna").write_text(PROGRAM)
        (folder / "lacuna").chmod(0o755)
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\nexit {0 if gpu else 1}\n")
        (folder / "nvidia-smi").chmod(0o755)
        (folder / "tmp").mkdir(exist_ok=True)
        environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", TMPDIR=str(folder / "tmp"),
                           PYTHON=sys.executable)
        return subprocess.run([str(ROOT / "bench/run_gpu"), "--program", str(folder / "lacuna"), "--out",
                               str(folder / "out"), *arguments], capture_output=True, text=True, env=environment,
                              timeout=50)

    def test_a_part_that_hangs_costs_its_limit_and_nothing_else(self):
        with tempfile.TemporaryDirectory() as folder:
            # 6 s in all: enough for attention, which takes none of them; then the other part uses up what is left.
            done = self.run_it(folder, "--only", "ours_attention", "--only", "ours_model", "--limit", "6")
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn("ours_attention: 0 s, exit code 0", done.stdout)
            self.assertRegex(done.stdout, r"ours_model: \d s, exit code 124 \(its limit of \d s\)")
            table = (pathlib.Path(folder) / "out/table.md").read_text()
            self.assertEqual(cells(table, "dense prefill attention, 16K")[1], "3 ms")
            self.assertEqual(list((pathlib.Path(folder) / "tmp").iterdir()), [], "weights were left behind")

    def test_wrong_arguments_and_no_gpu(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.run_it(folder, "--only", "everything").returncode, 2)
            self.assertEqual(self.run_it(folder, "--limit", "soon").returncode, 2)
            self.assertEqual(self.run_it(folder, "--what").returncode, 2)
            done = self.run_it(folder, gpu=False)
            self.assertEqual(done.returncode, 77, done.stdout + done.stderr)
            self.assertIn("skipped", done.stdout)


if __name__ == "__main__":
    unittest.main()
