"""A sweep of the smallest shipped model on a GPU and on the CPU: the same samples where the tokens agree, the same scores
within sampling noise; several ranks on one GPU; what was used is in the results.
usage: gpu_sweep.py LACUNA"""
import json
import re
import subprocess
import sys
import tempfile

try:
    import h5py
    import numpy as np
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

LACUNA = sys.argv[1]
SAMPLES = 12
failures = []


def expect(condition, text):
    print(("ok      " if condition else "FAILED  ") + text)
    if not condition:
        failures.append(text)


def run(out, device, ranks=0, *more):
    words = [LACUNA, "run", "sweeps/smoke.yaml", f"samples={SAMPLES}", "--out", out, "--device", device, *more]
    if ranks:
        words = ["scripts/mpirun", str(ranks), *words]
    return subprocess.run(words, capture_output=True, text=True, timeout=100)


def read(out):
    with h5py.File(out + "/results.h5") as f:
        columns = {k: f["samples"][k][:] for k in f["samples"]}
        text, offset = f["text/bytes"][:].tobytes(), f["text/offset"][:]
        n = len(columns["cell"])
        # Three texts per sample, the prediction first.
        columns["prediction"] = np.array([text[offset[3 * i]:offset[3 * i + 1]] for i in range(n)], dtype=object)
        columns["launches"] = json.loads(f["provenance/launches"][()])
        strategies = f["cells/strategy"][:]
    columns["strategy"] = strategies[columns["cell"]]
    return columns


def compare(a, b, what, most_different):
    """Samples of two runs of the same sweep."""
    assert np.array_equal(a["cell"], b["cell"]) and np.array_equal(a["sample"], b["sample"])
    same = a["prediction"] == b["prediction"]
    expect(np.array_equal(a["score"][same], b["score"][same], equal_nan=True),
           f"{what}: equal predictions have equal scores ({same.sum()} of {len(same)})")
    expect((~same).mean() <= most_different, f"{what}: at most {most_different:.0%} of predictions differ "
           f"({(~same).mean():.1%})")
    paired = b["score"] - a["score"]
    error = paired.std(ddof=1) / len(paired) ** 0.5
    expect(abs(paired.mean()) <= max(3 * error, 1e-9),
           f"{what}: mean score {a['score'].mean():.4f} and {b['score'].mean():.4f}, difference {paired.mean():+.4f} "
           f"+- {error:.4f}")
    for column in ("input_tokens", "sparsity_prefill"):
        expect(np.allclose(a[column].astype(float), b[column].astype(float), atol=0.02, equal_nan=True),
               f"{what}: {column}")
    tokens = same & (a["output_tokens"] == b["output_tokens"])
    for column in ("sparsity_decode", "sparsity_resident"):
        gap = np.abs(a[column][tokens] - b[column][tokens])
        expect(gap.max(initial=0) <= 0.02, f"{what}: {column} differs by at most {gap.max(initial=0):.4f}")
    for strategy in np.unique(a["strategy"]):
        rows = a["strategy"] == strategy
        print(f"        {strategy.decode()}: score {a['score'][rows].mean():.3f} | {b['score'][rows].mean():.3f}, "
              f"different predictions {(~same[rows]).sum()} of {rows.sum()}")


with tempfile.TemporaryDirectory() as folder:
    done = run(folder + "/gpu", "cuda")
    if done.returncode == 2 and ("no usable GPU" in done.stderr or "without the CUDA engine" in done.stderr):
        print("skipped: " + done.stderr.strip().splitlines()[-1])
        sys.exit(77)
    expect(done.returncode == 0, f"the sweep on the GPU: exit code {done.returncode} {done.stderr[-800:] * (done.returncode != 0)}")
    if failures:
        sys.exit(1)
    gpu = read(folder + "/gpu")
    launch = gpu["launches"][0]
    rank, model = launch["ranks"][0], launch["models"]["nano"]
    expect(rank["device"] == "cuda" and rank["device_name"] and rank["gpu"], f"provenance: {rank}")
    expect(model["device"] == "cuda" and model["dtype"] == "bfloat16" and model["communicator"] == "none",
           "provenance: device, dtype and communicator of the model")
    expect(launch["versions"]["cuda_driver"] > 0 and launch["versions"]["cuda_runtime"] > 0, "provenance: CUDA versions")

    done = run(folder + "/auto", "auto")
    expect(done.returncode == 0, "auto")
    again = read(folder + "/auto")
    expect(again["launches"][0]["ranks"][0]["device"] == "cuda", "auto takes the GPU")
    expect(np.array_equal(gpu["prediction"], again["prediction"]) and np.array_equal(gpu["score"], again["score"]),
           "the same run twice gives the same samples")

    done = run(folder + "/cpu", "cpu")
    expect(done.returncode == 0, "the sweep on the CPU")
    cpu = read(folder + "/cpu")
    # float32 against bfloat16: free text of a small model parts early, its scores stay.
    compare(cpu, gpu, "CPU and GPU", 0.4)

    doctor = subprocess.run([LACUNA, "doctor"], capture_output=True, text=True).stdout
    listed = int(re.search(r"^gpus +(\d+)", doctor, re.M).group(1))
    if listed == 1:
        done = run(folder + "/refused", "auto", 2)
        expect(done.returncode == 2 and "--share-gpu" in done.stderr and "one rank per GPU" in done.stderr,
               f"two ranks on one GPU are refused with both ways out: {done.stderr.strip()[-300:]}")
    for ranks, tp in ((2, 1), (2, 2), (4, 4)):
        what = f"{ranks} ranks, tp {tp}"
        done = run(f"{folder}/np{ranks}tp{tp}", "cuda", ranks, f"models.0.tp={tp}", "--share-gpu")
        expect(done.returncode == 0, f"{what}: exit code {done.returncode} {done.stderr[-800:] * (done.returncode != 0)}")
        if done.returncode != 0:
            continue
        shared = read(f"{folder}/np{ranks}tp{tp}")
        if tp == 1:
            expect(np.array_equal(shared["prediction"], gpu["prediction"]), f"{what}: the same predictions")
        else:
            compare(gpu, shared, what, 0.25)
            kind = shared["launches"][0]["models"]["nano"]["communicator"]
            expect(kind == ("mpi" if listed < ranks else kind) and kind != "none", f"{what}: over {kind}")
print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
