#!/usr/bin/env python3
"""`lacuna bench` on the CPU with a shipped model and with random weights, its rows, and its profile in `lacuna plan`.

    bench_command_test.py LACUNA
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

try:
    import yaml
except ImportError:
    print("skipped: needs the Python package yaml")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NANO = "assets/mini/nano"


def lacuna(*arguments, **environment):
    return subprocess.run([LACUNA, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
                          env=dict(os.environ, **environment), timeout=100)


class Bench(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.profile = pathlib.Path(cls.folder.name) / "here.yaml"
        cls.json = pathlib.Path(cls.folder.name) / "rows.json"
        done = lacuna("bench", "--model", NANO, "--tokens", 256, "--batch", "1,4", "--shared-tokens", 256, "--new-tokens",
                      4, "--device", "cpu", "--json", cls.json, "--profile", cls.profile)
        assert done.returncode == 0, done.stdout + done.stderr
        cls.text = done.stdout
        cls.rows = json.loads(cls.json.read_text())["rows"]
        cls.shape = json.loads((ROOT / NANO / "config.json").read_text())

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def row(self, part, key, batch=1):
        rows = [r for r in self.rows if (r["part"], r["key"], r["batch"]) == (part, key, batch)]
        self.assertEqual(len(rows), 1, (part, key, batch))
        return rows[0]

    def test_dense_work_is_counted_exactly(self):
        heads, hidden, layers = (self.shape[k] for k in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
        head_dim = self.shape.get("head_dim", hidden // heads)
        cells = heads * 256 * 257 // 2
        self.assertEqual(self.row("attention", "dense")["flops"], 4 * head_dim * cells)
        kv = self.shape["num_key_value_heads"] * head_dim
        projections = hidden * (2 * heads * head_dim + 2 * kv)
        # The last layer's output projection and MLP, and the head, see the last token alone.
        output_and_mlp = hidden * heads * head_dim + 3 * hidden * self.shape["intermediate_size"]
        linear = 2 * (256 * layers * (projections - hidden * heads * head_dim)
                      + (256 * (layers - 1) + 1) * output_and_mlp + hidden * self.shape["vocab_size"])
        self.assertEqual(self.row("prefill", "dense")["flops"], linear + layers * 4 * head_dim * cells)

    def test_sparse_rows_say_what_was_measured(self):
        for key in ("block_sparse_64", "block_sparse_16", "vertical_slash", "flexprefill"):
            row = self.row("attention", key)
            dense = self.row("attention", "dense")
            self.assertAlmostEqual(row["flops"] / dense["flops"], 1 - row["sparsity"], places=9, msg=key)
            self.assertGreater(row["sparsity"], 0, key)
            self.assertGreater(row["index_seconds"], 0, key)
            self.assertLess(row["index_seconds"], row["seconds"], key)

    def test_memory_stands_beside_its_plan(self):
        for part, key, batch in (("prefill", "dense", 1), ("decode", "dense", 1), ("decode", "dense", 4)):
            row = self.row(part, key, batch)
            self.assertGreater(row["peak_bytes"], 0.3 * row["planned_bytes"], (part, batch))
            self.assertLessEqual(row["peak_bytes"], 1.03 * row["planned_bytes"], (part, batch))

    def test_one_prompt_with_31_variants(self):
        row = self.row("decode", "shared_prefill", 31)
        self.assertEqual(row["tokens"], 256)
        self.assertIn("31 variants x 4 tokens", row["what"])
        self.assertIn(row["what"], self.text)

    def test_the_profile_is_what_plan_reads(self):
        profile = yaml.safe_load(self.profile.read_text())
        self.assertEqual(profile["device"], "cpu")
        for rate in ("linear_flops_per_s", "attention_flops_per_s", "bytes_per_s", "kv_bytes_per_s", "load_bytes_per_s"):
            self.assertGreater(profile[rate], 1e6, rate)
        self.assertTrue({"vertical_slash", "flexprefill", "block_sparse", "snapkv", "quest"}
                        <= set(profile["index_flops_per_s"]))

        def hours(path):
            done = lacuna("plan", "sweeps/demo.yaml", "--device", "cpu", "--json", "--profile", path)
            self.assertEqual(done.returncode, 0, done.stderr)
            plan = json.loads(done.stdout)
            self.assertEqual(plan["hardware"]["measured"], profile["measured"])
            return plan["total"]["rank_hours"]

        # Everything ten times as slow takes ten times as long.
        slow = dict(profile)
        for key, value in profile.items():
            if key.endswith("_per_s"):
                slow[key] = {m: v / 10 for m, v in value.items()} if isinstance(value, dict) else value / 10
            elif key.endswith("overhead_s"):
                slow[key] = value * 10
        path = pathlib.Path(self.folder.name) / "slow.yaml"
        path.write_text(yaml.safe_dump(slow))
        self.assertAlmostEqual(hours(path) / hours(self.profile), 10, places=3)

    def test_a_profile_is_completed_part_by_part(self):
        path = pathlib.Path(self.folder.name) / "parts.yaml"
        done = lacuna("bench", "prefill", "--model", NANO, "--tokens", 256, "--profile", path)
        self.assertEqual(done.returncode, 2)
        self.assertIn(f"lacuna bench attention --profile {path}", done.stderr)
        done = lacuna("bench", "attention", "--model", NANO, "--tokens", 256, "--device", "cpu", "--profile", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        done = lacuna("plan", "sweeps/demo.yaml", "--profile", path)
        self.assertEqual(done.returncode, 2)
        self.assertRegex(done.stderr, "linear_flops_per_s is missing; `lacuna bench prefill")
        done = lacuna("bench", "prefill", "decode", "--model", NANO, "--tokens", 256, "--batch", 1, "--shared-tokens", 256,
                      "--new-tokens", 2, "--device", "cpu", "--profile", path)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(lacuna("plan", "sweeps/demo.yaml", "--profile", path).returncode, 0)

    def test_random_weights_leave_nothing_behind(self):
        with tempfile.TemporaryDirectory() as scratch:
            done = lacuna("bench", "prefill", "--shape", "small", "--layers", 1, "--tokens", 256, "--device", "cpu",
                          TMPDIR=scratch)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertRegex(done.stdout, r"random weights of small, 1 layers.*\n(.*\n)*.*written in")
            self.assertEqual(os.listdir(scratch), [])

    def test_wrong_input_is_named(self):
        for arguments, expected in ((["--shape", "Qwen2.5-7C"], "did you mean 'Qwen2.5-7B'"),
                                    (["--model", NANO, "--shape", "small"], "not both"),
                                    (["--model", NANO, "--layers", 2], "--layers"),
                                    (["--tokens", "5"], "--tokens 5"),
                                    (["--strategy", "{prefill: vertical_slsh}"], "did you mean 'vertical_slash'")):
            done = lacuna("bench", "prefill", "--device", "cpu", *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(expected, done.stderr)
        done = lacuna("plan", "sweeps/demo.yaml", "--profile", "h100-pek")
        self.assertEqual(done.returncode, 2)
        self.assertIn("did you mean 'h100-peak'", done.stderr)


if __name__ == "__main__":
    LACUNA = os.path.abspath(sys.argv.pop(1))
    unittest.main()
