"""Conversion of an archive, compared with decompression alone and with a conversion through TensorFlow.

python benchmarks/convert.py
python benchmarks/convert.py resnet-rs-420-i320 --skip-tensorflow --rounds 1
python benchmarks/convert.py resnet-rs-152-i256 --skip-tensorflow --garden
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import timing
from timing import Case, Target

# The minimum work: only unpack the archive's bytes.
_DECOMPRESS = """
import sys
from isal import igzip
buffer = bytearray(1 << 20)
with igzip.open(sys.argv[1], "rb") as archive:
    while archive.readinto(buffer):
        pass
"""

_TENSORFLOW = """
import sys, tarfile
from pathlib import Path
import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

archive, scratch, output = sys.argv[1:]
with tarfile.open(archive, "r:gz") as tar:
    tar.extractall(scratch, filter="data")
prefix = next(Path(scratch).glob("*.index")).with_suffix("")
reader = tf.train.load_checkpoint(str(prefix))
tensors = {}
for name in reader.get_variable_to_shape_map():
    if name.endswith("/ExponentialMovingAverage"):
        values = reader.get_tensor(name)
        axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(values.ndim)
        tensors[name] = np.ascontiguousarray(values.transpose(axes)) if axes else values
save_file(tensors, output)
"""

# The same process as `rszoo-convert`; its imports are checked at the end.
_IMPORTS = """
import sys
from rszoo.cli.convert import main
try:
    main()
except SystemExit as ended:
    if ended.code:
        raise
loaded = sorted({"tensorflow", "torch", "keras", "jax"} & set(sys.modules))
if loaded:
    raise AssertionError(f"the conversion imported {', '.join(loaded)}")
"""


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("name", nargs="?", default="resnet-rs-50-i160", help="registered pair")
    parser.add_argument("--folder", type=Path, default=timing.DEFAULT_FOLDER, help="keeps the archives between runs")
    parser.add_argument("--skip-tensorflow", action="store_true", help="leave out the conversion through TensorFlow")
    parser.add_argument("--garden", action="store_true", help="also the Model Garden's archive of the pair")
    arguments = parser.parse_args()

    archive = timing.make_archive(arguments.name, arguments.folder)
    output, scratch = arguments.folder / "converted", arguments.folder / "scratch"
    plain = arguments.folder / "converted.safetensors"

    def clean() -> None:
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        plain.unlink(missing_ok=True)

    convert = ["--ckpt", str(archive), "--output", str(output)]
    cases = [
        Case("decompress", [sys.executable, "-c", _DECOMPRESS, str(archive)]),
        Case(
            "rszoo-convert",
            [timing.tool("rszoo-convert"), *convert],
            baseline="decompress",
            targets=[Target("ratio", 1.6), Target("peak", 300)],
            prepare=clean,
        ),
    ]
    if arguments.garden:
        garden = timing.make_archive(f"{arguments.name}.garden", arguments.folder)
        cases.append(
            Case(
                "rszoo-convert, Model Garden",
                [timing.tool("rszoo-convert"), "--ckpt", str(garden), "--output", str(output)],
                baseline="rszoo-convert",
                targets=[Target("ratio", 1.15), Target("peak", 300)],
                prepare=clean,
            )
        )
    if not arguments.skip_tensorflow:
        cases.append(
            Case(
                "TensorFlow",
                [sys.executable, "-c", _TENSORFLOW, str(archive), str(scratch), str(plain)],
                baseline="rszoo-convert",
                targets=[Target("ratio", 3.5, at_least=True)],
                prepare=clean,
            )
        )
    try:
        clean()
        # This also warms the page cache for all cases.
        subprocess.run([sys.executable, "-c", _IMPORTS, *convert], check=True, stdout=subprocess.DEVNULL)
        results = timing.measure(cases, arguments.rounds)
    finally:
        clean()
    size = f"{archive.stat().st_size / 1e6:.0f} MB"
    timing.report(results, arguments.json, pair=arguments.name, archive=size, frameworks_imported="none")


if __name__ == "__main__":
    main()
