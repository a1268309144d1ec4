"""Create an archive in the published layout with random weights.

Three sets of float32 values (weights, averages, momentum), data shard before its index, gzip: under the TF1 names, or
for a pair of the Model Garden with an object graph.
Normal random values compress with the ratio of the published archives (0.93), which determines the time.
"""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from isal import igzip

from converters.formats.tf1 import EMA_SUFFIX, GLOBAL_STEP, MOMENTUM_SUFFIX, tf1_names
from converters.tensorbundle.bundle import write_bundle
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import Kind, TensorSpec, iter_tensors
from rszoo.registry.manifest import get_entry

_PREFIX = "model.ckpt"


def make_archive(name: str, folder: Path) -> Path:
    """Write `<name>.tar.gz` for a registered pair into `folder`, unless it exists, and return its path."""
    archive, entry = folder / f"{name}.tar.gz", get_entry(name)
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        data, index = folder / f"{_PREFIX}.data-00000-of-00001", folder / f"{_PREFIX}.index"
        if entry.family.format == "garden":
            # TensorFlow writes it: its order of tensors is that of its objects.
            from tests.garden import write_garden

            prefix = write_garden(entry.arch, folder).prefix
            for written in (data, index):
                Path(f"{prefix}{written.name.removeprefix(_PREFIX)}").rename(written)
        else:
            with data.open("wb") as out:
                index.write_bytes(write_bundle(_tensors(entry.arch), out))
        with igzip.open(archive, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
            tar.add(data, data.name)
            tar.add(index, index.name)
        data.unlink()
        index.unlink()
    return archive


def _tensors(arch: ArchConfig) -> Iterator[tuple[str, np.ndarray]]:
    specs = list(iter_tensors(arch))
    by_name: dict[str, TensorSpec | None] = {GLOBAL_STEP: None}
    for spec, name in zip(specs, tf1_names(specs), strict=True):
        by_name |= {name: spec, name + EMA_SUFFIX: spec}
        if spec.kind.trainable:
            by_name[name + MOMENTUM_SUFFIX] = spec
    rng = np.random.default_rng(0)
    for name, spec in sorted(by_name.items()):
        if spec is None:
            yield name, np.array(109475)
        else:
            values = rng.standard_normal(spec.shape, dtype=np.float32) / np.float32(np.sqrt(spec.size / spec.shape[-1]))
            yield name, np.abs(values) if spec.kind is Kind.MOVING_VARIANCE else values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="registered pair, such as resnet-rs-50-i160")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(make_archive(arguments.name, arguments.folder))
