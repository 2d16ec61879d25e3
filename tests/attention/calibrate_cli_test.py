"""lacuna calibrate on the smallest model that ships: the file holds the wanted densities, and a sweep accepts it."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

LACUNA = os.environ["LACUNA_BIN"]
MODEL = pathlib.Path("assets/mini/nano").resolve()
if not (MODEL / "model.safetensors").exists():
    print("skipped: assets/mini/nano is not here")
    sys.exit(77)

SWEEP = f"""
name: calibrate
models: [{{name: nano, path: {MODEL}}}]
preset: mini
style: direct
tasks: [ruler_niah]
lengths: [512]
samples: 1
max_new_tokens: 4
strategies:
  - {{prefill: vertical_slash, sparsity: [0.3, 0.5]}}
  - {{prefill: {{xattention: {{block: 32}}}}, sparsity: 0.4}}
  - {{evict: snapkv, sparsity: 0.5}}
"""


def run(*arguments):
    return subprocess.run([LACUNA, *map(str, arguments)], capture_output=True, text=True, timeout=100)


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    sweep, out = folder / "sweep.yaml", folder / "calibration.yaml"
    sweep.write_text(SWEEP)
    # Without it, the sweep's levels cannot be resolved: the paper's values start at 16384 tokens.
    refused = run("plan", sweep)
    assert "cannot run" in refused.stdout and "lacuna calibrate" in refused.stdout, refused.stdout
    done = run("calibrate", sweep, "--out", out)
    assert done.returncode == 0, done.stderr
    file = json.loads(out.read_text())["prefill"]
    assert set(file) == {"vertical_slash", "xattention"}, file
    for method, targets in (("vertical_slash", (0.7, 0.5)), ("xattention", (0.6,))):
        densities = file[method][0]["density"]
        assert densities == sorted(densities) and file[method][0]["length"] == 512
        for target in targets:
            assert any(d <= target for d in densities) and any(d >= target for d in densities)
            assert min(abs(d - target) for d in densities) < 0.1, (method, target, densities)
    planned = run("plan", sweep, f"calibration={out}")
    assert planned.returncode == 0 and "cannot run" not in planned.stdout, planned.stdout + planned.stderr
    # A method that nothing has to be found for is not calibrated.
    sweep.write_text(SWEEP.replace("prefill: vertical_slash", "decode: quest").replace("prefill: {xattention: {block: 32}}", "decode: streaming"))
    nothing = run("calibrate", sweep, "--out", folder / "nothing.yaml")
    assert nothing.returncode == 2 and "nothing to calibrate" in nothing.stderr, nothing.stderr
    assert not (folder / "nothing.yaml").exists()
print("ok")
