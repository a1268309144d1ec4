"""Reading of Keras 2's and timm's files, compared with h5py and PyTorch alone; and their whole conversion.

python benchmarks/copies.py
python benchmarks/copies.py resnet-rs-50-i160 --rounds 3
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import timing
from timing import Case, Target

# In a process of its own: the measuring one must stay small.
_MAKE = """
import sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import load_file
from converters.formats import get_target
from converters.formats.format import Export
from rszoo.folder.model_folder import ModelConfig
from rszoo.registry.manifest import get_entry
entry, folder = get_entry(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(0)
config = ModelConfig(entry.name, None, entry.arch, entry.preprocessing, None, "ema")
for target in ("keras2", "timm"):
    chosen, write = get_target(target)
    export = Export(config, 0, lambda spec: rng.standard_normal(chosen.shape(spec), np.float32))
    written = folder / write(export, folder)
    if target == "keras2":
        written.rename(folder / "x.h5")
    else:
        torch.save(load_file(written), folder / "x.pth")
        written.unlink()
        (folder / "config.json").unlink()
"""

_BASE = """
import sys, time
import numpy, h5py
from converters.account import take_account
from converters.formats import list_formats, recognize
from converters.keras2.files import open_keras2
print(0.0)
"""

_H5PY = """
import sys, time
import h5py
start = time.perf_counter()
count = 0
def read(name, found):
    global count
    if isinstance(found, h5py.Dataset):
        count += found[()].nbytes
with h5py.File(sys.argv[1], "r") as file:
    file.visititems(read)
print(time.perf_counter() - start)
"""

_TORCH = """
import sys, time
import torch
start = time.perf_counter()
state = torch.load(sys.argv[1], weights_only=True)
print(time.perf_counter() - start)
"""

# As the converter does: structure, account, and every tensor once, each let go before the next.
_OURS = """
import sys, time
from pathlib import Path
from converters.account import take_account
from converters.formats import get_format, recognize
from {module} import {opener}
{more}
start = time.perf_counter()
with {opener}(Path(sys.argv[1])) as opened:
    account = take_account(recognize(opened, [get_format("{name}")]), opened, "ema")
    for spec in account.mapped:
        account.read(opened, spec)
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("name", nargs="?", default="resnet-rs-420-i320", help="registered pair")
    parser.add_argument("--folder", type=Path, default=timing.DEFAULT_FOLDER, help="keeps the files between runs")
    arguments = parser.parse_args()

    folder = arguments.folder / f"copies-{arguments.name}"
    h5, pth, output = folder / "x.h5", folder / "x.pth", folder / "converted"
    if not pth.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-c", _MAKE, arguments.name, str(folder)], check=True)

    def clean() -> None:
        shutil.rmtree(output, ignore_errors=True)

    def ours(name: str, module: str, opener: str, more: str = "") -> str:
        return _OURS.format(name=name, module=module, opener=opener, more=more)

    def script(name: str, code: str, path: Path, baseline: str | None = None, limit: float | None = None) -> Case:
        targets = [] if limit is None else [Target("ratio", limit)]
        command = [sys.executable, "-c", code, str(path)]
        return Case(name, command, baseline=baseline, targets=targets, reports_seconds=True)

    def convert(name: str, path: Path, baseline: str) -> Case:
        words = ["--ckpt", str(path), "--output", str(output), "--model", arguments.name]
        return Case(name, [timing.tool("rszoo-convert"), *words], baseline=baseline, prepare=clean)

    keras2 = ours("keras2", "converters.keras2.files", "open_keras2")
    timm = ours("timm", "converters.state_dict.files", "open_state_dict", "import torch")
    cases = [
        script("imports alone", _BASE, h5),
        script("h5py, all values", _H5PY, h5),
        script("rszoo, all values of Keras 2's file", keras2, h5, "h5py, all values", 1.5),
        script("torch.load", _TORCH, pth),
        script("rszoo, all values of timm's file", timm, pth, "torch.load"),
        convert("rszoo-convert, Keras 2's file", h5, "h5py, all values"),
        convert("rszoo-convert, timm's file", pth, "torch.load"),
    ]
    try:
        results = timing.measure(cases, arguments.rounds)
    finally:
        clean()
    timing.report(results, arguments.json, pair=arguments.name, file=f"{h5.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
