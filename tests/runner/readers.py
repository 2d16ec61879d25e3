"""The Python examples of docs/results-format.md on a real results.h5. usage: readers.py FAKE_LACUNA LACUNA"""
import os
import re
import subprocess
import sys
import tempfile

try:
    import h5py  # noqa: F401
    import numpy as np
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)


def main() -> None:
    fake = sys.argv[1]
    page = open("docs/results-format.md", encoding="utf-8").read()
    examples = re.findall(r"```python\n# (\w+)\n(.*?)```", page, re.S)
    assert [name for name, _ in examples] == ["h5py", "pandas", "xarray"], examples
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        subprocess.run([fake, "run", "tests/runner/sweeps/fake.yaml", "--out", out], check=True)
        os.chdir(out)
        for name, code in examples:
            scope: dict = {}
            try:
                exec(compile(code, name, "exec"), scope)
            except ImportError as e:
                print(f"{name}: left out: {e}")
                continue
            if name == "h5py":
                assert len(scope["score"]) == 144 and np.isfinite(scope["score"]).all()
                assert isinstance(scope["prediction"], str)
            if name == "pandas":
                assert len(scope["cells"]) == 24 and scope["cells"]["n"].sum() == 144
                assert "quest" in set(scope["cells"]["strategy"])
                assert scope["table"].shape[0] > 0
            if name == "xarray":
                assert scope["cube"]["score"].dims == ("model", "task", "length", "strategy", "sparsity")
                assert np.isfinite(scope["quest"]).all()
            print(f"{name}: ok")
        check_every_dataset()


def check_every_dataset() -> None:
    with h5py.File("results.h5") as f:
        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                assert "unit" in item.attrs and "description" in item.attrs, name
                assert h5py.check_vlen_dtype(item.dtype) is None, f"{name} has variable length"
        f.visititems(visit)
        assert f["cube/score"].dims[0].label == "model" and len(f["cube/score"].dims[0]) == 1
        n = {len(f["samples"][c]) for c in f["samples"]}
        assert n == {144}, n
        assert f["text/offset"].shape == (3 * 144 + 1,) and f["text/offset"][-1] == len(f["text/bytes"])


main()
