"""The real engine on the smallest shipped model under mpirun, killed with SIGKILL at random moments (the whole job, one rank,
the coordinator) and resumed on other numbers of ranks: every sample exactly once, /samples as an undisturbed run leaves it.
usage: real_engine_kills.py LACUNA [SEED]"""
import glob
import json
import os
import random
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
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
KILLS = ("job", "rank", "coordinator") * 3
SAMPLES = 60  # per cell; 8 cells
VARY = {"prefill_s", "evict_s", "decode_s", "index_s", "shared", "peak_bytes", "team", "finished"}


def samples(out):
    with h5py.File(out + "/results.h5") as f:
        columns = {k: f["samples"][k][:] for k in f["samples"] if k not in VARY}
        columns["text"] = f["text/bytes"][:]
    return columns


def command(out, ranks):
    return ["scripts/mpirun", str(ranks), LACUNA, "run", "sweeps/smoke.yaml", "--out", out, "--results-every", "0.3",
            f"samples={SAMPLES}"]


def ranks_of(out):
    """Pids of lacuna's ranks that write to `out`, by rank."""
    found = {}
    for entry in glob.glob("/proc/[0-9]*"):
        try:
            words = open(entry + "/cmdline", "rb").read().split(b"\0")
            if os.path.basename(words[0]) != b"lacuna" or out.encode() not in words:
                continue
            for variable in open(entry + "/environ", "rb").read().split(b"\0"):
                if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                    found[int(variable.split(b"=")[1])] = int(entry[6:])
        except OSError:
            pass  # it has just ended
    return found


def acknowledged(out):
    """Whole lines of all journals as (cell, sample); the same one twice is an error."""
    done = []
    for path in sorted(glob.glob(out + "/journal/*.jsonl")):
        for line in open(path, "rb").read().split(b"\n")[:-1]:
            record = json.loads(line)
            done.append((record["cell"], record["sample"]))
    assert len(done) == len(set(done)), "a sample was run twice"
    return set(done)


def kill(child, out, victim):
    pids = ranks_of(out)
    if victim == "job":
        os.killpg(child.pid, signal.SIGKILL)
        targets = list(pids.values())  # mpirun puts its ranks into groups of their own
    elif victim == "coordinator":
        targets = [pids[0]]
    else:
        targets = [pids[max(pids)]]
    for pid in targets:
        os.kill(pid, signal.SIGKILL)
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        pass  # Open MPI 4.1's mpirun can wait for ever when a rank dies while the others start
    for _ in range(500):
        if not ranks_of(out):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("a rank outlived its job")
    if child.poll() is None:
        print("mpirun went on although all ranks have ended; it is killed")
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=10)


def main():
    rng = random.Random(SEED)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command(folder + "/whole", 2), check=True)
        expected = samples(folder + "/whole")
        total = 8 * SAMPLES
        assert len(expected["score"]) == total and np.isfinite(expected["score"]).all()

        out, before, struck = folder + "/killed", set(), 0
        for victim in KILLS:
            ranks = rng.choice((2, 3, 4))
            child = subprocess.Popen(command(out, ranks), start_new_session=True, stderr=subprocess.DEVNULL)
            # Some samples into this start, or while it is still starting (0), then a little later.
            wanted = min(len(before) + rng.choice((0, 1, 5, 15, 30)), total - 100)
            deadline = time.time() + 60
            while time.time() < deadline and (len(ranks_of(out)) < ranks or len(acknowledged(out)) < wanted):
                assert child.poll() is None, f"the run ended by itself with {child.returncode}"
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            kill(child, out, victim)
            struck += 1
            now = acknowledged(out)
            assert before <= now, "acknowledged samples were lost"
            print(f"killed the {victim} of {ranks} ranks: {len(now) - len(before)} samples in this start, {len(now)} in all")
            before = now
            if os.path.exists(out + "/results.h5"):
                samples(out)  # opens, whatever died
        assert struck == len(KILLS) and 0 < len(before) < total, (struck, len(before))
        subprocess.run(command(out, 2), check=True)
        assert len(acknowledged(out)) == total
        for name, values in samples(out).items():
            same = np.array_equal(values, expected[name], equal_nan=values.dtype.kind == "f")
            assert same, f"after {struck} kills: {name} differs"
    print(f"ok: {struck} kills, {total} samples once each, as in an undisturbed run")


main()
