"""Lazy weights: one tensor from a large file, and the memory for creating a model.

python benchmarks/lazy.py
python benchmarks/lazy.py --pair resnet-rs-152-i224 --rounds 3

Each run is a fresh process; times are measured inside it, after the imports, including opening the file. "cold": the
file was dropped from the page cache before. `fincore` of util-linux shows how much of the file was read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import timing
from timing import Case, Target

_TENSOR = "layer3.10.conv2.weight"
_ONE_TENSOR = """
import sys, time
import numpy, rszoo.cache.weights
start = time.perf_counter()
with rszoo.load_weights(sys.argv[1]) as weights:
    total = float(weights[sys.argv[2]].sum())
seconds = time.perf_counter() - start
print(weights.shape(sys.argv[2]), total)
print(seconds)
"""
_PACKAGE_ALONE = """
import sys, time
from safetensors import safe_open
start = time.perf_counter()
with safe_open(sys.argv[1] + "/model.safetensors", framework="numpy") as opened:
    total = float(opened.get_tensor(sys.argv[2]).sum())
seconds = time.perf_counter() - start
print(total)
print(seconds)
"""
_MEMORY = """
import sys
import torch, rszoo
def memory(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what))
rszoo.create("resnet-rs-demo", pretrained=True)
before = memory("VmRSS")
model = rszoo.create(sys.argv[1], dtype=sys.argv[2])
for tensor in model.state_dict().values():
    tensor.sum()
print(1024 * (memory("VmHWM") - before))
"""


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("--pair", default="resnet-rs-420-i320", help="registered pair")
    parser.add_argument("--folder", type=Path, default=timing.DEFAULT_FOLDER, help="keeps the models between runs")
    arguments = parser.parse_args()
    folder = timing.make_model_folder(arguments.pair, arguments.folder)
    weights = folder / "model.safetensors"
    given = [str(folder), _TENSOR]
    cases = [
        Case("one tensor", [sys.executable, "-c", _ONE_TENSOR, *given], reports_seconds=True),
        Case(
            "one tensor, cold",
            [sys.executable, "-c", _ONE_TENSOR, *given],
            prepare=lambda: _drop(weights),
            targets=[Target("seconds", 0.01)],
            reports_seconds=True,
        ),
        Case("safetensors alone", [sys.executable, "-c", _PACKAGE_ALONE, *given], reports_seconds=True),
    ]
    results = timing.measure(cases, arguments.rounds)
    _drop(weights)
    timing.run(cases[0])
    size = weights.stat().st_size
    # Must run before anything else reads the file.
    share = _cached_bytes(weights) / size
    growth = {dtype: _growth(folder, dtype) / size for dtype in ("float32", "bfloat16")}
    timing.report(
        results,
        arguments.json,
        pair=arguments.pair,
        tensor=results["one tensor"].runs[0].output.splitlines()[0],
        share_of_the_file_read=f"{share:.2%} (target: under 1 %)",
        memory_growth_to_file={dtype: f"{ratio:.2f}" for dtype, ratio in growth.items()},
    )


def _drop(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cached_bytes(path: Path) -> int:
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _growth(folder: Path, dtype: str) -> int:
    """Return the peak memory growth, in bytes, of a process that creates a model and reads every value once."""
    case = Case(f"memory, {dtype}", [sys.executable, "-c", _MEMORY, str(folder), dtype])
    return int(timing.run(case).output.split()[-1])


if __name__ == "__main__":
    main()
