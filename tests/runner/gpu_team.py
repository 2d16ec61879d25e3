"""A sweep of a team whose ranks share one GPU over NCCL 2.30 or later (NCCL_MULTI_RANK_GPU_ENABLE=1): the same scores as
over host memory within sampling noise, the same bits every time, and an end in time when a rank is killed.
usage: gpu_team.py LACUNA"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

try:
    import h5py
    import numpy as np
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

LACUNA = sys.argv[1]
failures = []


def expect(condition, text):
    print(("ok      " if condition else "FAILED  ") + text)
    if not condition:
        failures.append(text)


def command(out, ranks, samples):
    return ["scripts/mpirun", str(ranks), LACUNA, "run", "sweeps/smoke.yaml", f"samples={samples}", f"models.0.tp={ranks}",
            "--share-gpu", "--device", "cuda", "--out", out]


def run(out, ranks, nccl, samples=4):
    env = {**os.environ, "NCCL_MULTI_RANK_GPU_ENABLE": "1" if nccl else "0"}
    done = subprocess.run(command(out, ranks, samples), capture_output=True, text=True, timeout=100, env=env)
    expect(done.returncode == 0, f"{ranks} ranks over {'NCCL' if nccl else 'MPI'}: exit code {done.returncode} "
           f"{done.stderr[-800:] * (done.returncode != 0)}")
    if done.returncode != 0:
        sys.exit(1)
    with h5py.File(out + "/results.h5") as f:
        text, offset = f["text/bytes"][:].tobytes(), f["text/offset"][:]
        samples = [text[offset[3 * i]:offset[3 * i + 1]] for i in range(len(f["samples/cell"]))]
        launch = json.loads(f["provenance/launches"][()])[0]
        return np.array(samples, dtype=object), f["samples/score"][:], launch["models"]["nano"]["communicator"]


doctor = subprocess.run([LACUNA, "doctor"], capture_output=True, text=True).stdout
gpus = re.search(r"^gpus +(\d+)", doctor, re.M)
nccl = re.search(r"^nccl +(\d+)\.(\d+)", doctor, re.M)
if gpus is None or int(gpus.group(1)) == 0:
    print("skipped: no GPU")
    sys.exit(77)
if nccl is None or (int(nccl.group(1)), int(nccl.group(2))) < (2, 30):
    print("skipped: NCCL cannot join ranks on one GPU (2.30 and later can)")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    host, host_score, kind = run(folder + "/host", 2, False)
    expect(kind == ("mpi" if int(gpus.group(1)) == 1 else "nccl " + kind[5:]), f"without the variable: over {kind}")
    first, score, kind = run(folder + "/first", 2, True)
    expect(kind.startswith("nccl 2."), f"with it: over {kind}")
    again, _, _ = run(folder + "/again", 2, True)
    expect(np.array_equal(first, again), "the same run twice gives the same samples")
    differ = (host != first).mean()
    expect(differ <= 0.25, f"{differ:.1%} of {len(host)} predictions differ from those over host memory")
    paired = score - host_score
    expect(abs(paired.mean()) <= max(3 * paired.std(ddof=1) / len(paired) ** 0.5, 1e-9),
           f"mean score {host_score.mean():.4f} over MPI, {score.mean():.4f} over NCCL")

    # A rank that is killed ends the run.
    env = {**os.environ, "NCCL_MULTI_RANK_GPU_ENABLE": "1", "LACUNA_NCCL_TIMEOUT": "10"}
    out = folder + "/killed"
    child = subprocess.Popen(command(out, 2, 400), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
    journal, begin = out + "/journal", time.monotonic()
    while time.monotonic() - begin < 60 and child.poll() is None:
        if os.path.isdir(journal) and any(e.stat().st_size > 0 for e in os.scandir(journal) if e.is_file()):
            break
        time.sleep(0.2)
    ranks = [p for t in os.listdir(f"/proc/{child.pid}/task")
             for p in open(f"/proc/{child.pid}/task/{t}/children").read().split()] if child.poll() is None else []
    expect(child.poll() is None and len(ranks) == 2, f"the run is under way, its ranks are {ranks}")
    if ranks:
        os.kill(int(ranks[-1]), signal.SIGKILL)
    begin = time.monotonic()
    try:
        child.wait(timeout=40)
    except subprocess.TimeoutExpired:
        child.terminate()  # mpirun ends its ranks
        child.wait(timeout=20)
    spent = time.monotonic() - begin
    expect(spent < 40 and child.returncode != 0,
           f"a rank is killed: the run ends with code {child.returncode} after {spent:.1f} s")
print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
