"""The writer of model folders, used by conversion, `rszoo.save` and training.

The weights file is laid out first, filled by threads in portions of some megabytes, read again with the safetensors
package and compared bit by bit, while its hash is computed and the system writes it to the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rszoo.arch.audit import same_bits
from rszoo.arch.names import counter_names, torch_name, torch_shape
from rszoo.arch.walk import TensorSpec, count_parameters
from rszoo.disk.checksums import DIGEST
from rszoo.disk.paths import expand_user
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.disk.staging import ResultKind, staged_folder, sync_file
from rszoo.errors import OutputError
from rszoo.folder.model_folder import (
    CONFIG,
    CONVERSION,
    EVALUATION,
    FORMAT_VERSIONS,
    VERIFICATION,
    WEIGHTS,
    ModelConfig,
    config_sha256,
    sha256_of,
)
from rszoo.terminal import progress_bar
from rszoo.version import __version__

# What a thread works through between two openings of the file: what its reader has mapped counts as memory. The largest
# single tensor has 9.4 MB.
_GROUP_BYTES = 8 << 20
# Former results, and nothing else, are what --overwrite replaces.
_MODEL = ResultKind(
    "rszoo-convert",
    lambda _, names: {CONFIG, CONVERSION} <= names <= {CONFIG, CONVERSION, WEIGHTS, VERIFICATION, EVALUATION},
    last=CONFIG,
)


@dataclass(frozen=True)
class TensorSource:
    """Where the tensors of a model folder come from.

    `names`: what the source calls each tensor of the walk, in the walk's order. `read` returns a tensor's values,
    float32 with PyTorch's axes (OIHW; out x in) and any strides; it is called twice for each, from `workers` threads
    at once. `suspicion` ends the error text for values that differ the second time.
    """

    names: Mapping[TensorSpec, str]
    read: Callable[[TensorSpec], np.ndarray]
    workers: int = 2
    suspicion: str = "is the disk failing?"


@dataclass(frozen=True)
class Written:
    """What was written: the file's SHA-256, in hex, and the digest of its tensors (`rszoo.disk.checksums`)."""

    sha256: str
    digest: str


@dataclass(frozen=True)
class Provenance:
    """What `conversion.json` says of where the weights come from.

    `format`: the name of the checkpoint format, or None if it was no checkpoint. `source`: facts by name, JSON values.
    `skipped`: the names of what was left out, by the reason why. `checks`: what was checked, in words.
    """

    format: str | None
    source: Mapping[str, Any]
    skipped: Mapping[str, Sequence[str]]
    checks: Sequence[str]


def staged_model_folder(output: str | os.PathLike[str], *, overwrite: bool) -> AbstractContextManager[Path]:
    """Return a context manager of an empty folder that becomes the model folder `output`, see `staged_folder`.

    With `overwrite` a former model folder is replaced, and nothing else.
    """
    return staged_folder(expand_user(output), _MODEL, overwrite=overwrite)


def write_weights(folder: Path, config: ModelConfig, tensors: TensorSource, origin: Mapping[str, str]) -> Written:
    """Write `model.safetensors` into a folder, compare what was written, and return its hashes.

    `origin`: metadata that say where the values come from. Nothing else in the file depends on the machine, the folder
    or the time. It also has the checksum of each tensor, and PyTorch's counts of batches, all 0: without them
    `transformers` takes every batch normalization for new.

    Raises:
        OutputError: the file reads back with other names or values.
    """
    path = folder / WEIGHTS
    metadata = {
        "format": "pt",
        "model": config.title,
        "weights": config.weights,
        "converter": f"rszoo {__version__}",
        **origin,
    }
    metadata = _fill(path, tensors, metadata)
    with ThreadPoolExecutor(2) as pool:
        written = pool.submit(sync_file, path)
        sha256 = pool.submit(sha256_of, path)
        _compare_reread(path, tensors, metadata)
    written.result()
    return Written(sha256.result(), metadata[DIGEST])


def write_records(
    folder: Path, config: ModelConfig, names: Mapping[TensorSpec, str], provenance: Provenance, written: Written
) -> dict[str, Any]:
    """Write `config.json` and `conversion.json` beside the weights, and return the account, which the latter has.

    `names`: those of the `TensorSource`. `written`: the weights that both are of.
    """
    text = replace(config, digest=written.digest).to_json()
    account = {
        "format_version": FORMAT_VERSIONS[CONVERSION],
        "converter": f"rszoo {__version__}",
        "format": provenance.format,
        "model": config.title,
        "architecture": config.arch.label,
        "parameters": count_parameters(config.arch),
        "weights": config.weights,
        "source": dict(provenance.source),
        "result": {
            "file": WEIGHTS,
            "sha256": written.sha256,
            "config_sha256": config_sha256(text),
            "tensors": len(names),
        },
        "checks": list(provenance.checks),
        "mapped": {name: torch_name(spec) for spec, name in names.items()},
        "skipped": {reason: list(skipped) for reason, skipped in provenance.skipped.items()},
    }
    (folder / CONFIG).write_text(text, encoding="utf-8")
    (folder / CONVERSION).write_text(json.dumps(account, indent=1) + "\n", encoding="utf-8")
    return account


def _fill(path: Path, tensors: TensorSource, metadata: dict[str, str]) -> dict[str, str]:
    """Write the file; return its metadata, to which the checksums were added."""
    shapes = [(torch_name(spec), torch_shape(spec)) for spec in tensors.names]
    writer = SafetensorsWriter(path, shapes, metadata, counter_names(tensors.names))

    def write(group: list[TensorSpec]) -> None:
        writer.write((torch_name(spec), tensors.read(spec)) for spec in group)

    _for_each_group("writing", tensors, write)
    return writer.seal()


def _compare_reread(path: Path, tensors: TensorSource, metadata: dict[str, str]) -> None:
    """Read the file again with the safetensors package and compare it bit by bit with the source.

    Raises:
        OutputError: they differ.
    """

    def compare(group: list[TensorSpec]) -> None:
        with safe_open(path, framework="numpy") as written:
            for spec in group:
                if not same_bits(tensors.read(spec), written.get_tensor(torch_name(spec))):
                    name = tensors.names[spec]
                    raise OutputError(f"{path.name} reads back with other values for {name}; {tensors.suspicion}")

    try:
        with safe_open(path, framework="numpy") as written:
            expected = {*map(torch_name, tensors.names), *counter_names(tensors.names)}
            if set(written.keys()) != expected or written.metadata() != metadata:
                raise OutputError(f"{path.name} reads back with another header than was written; is the disk failing?")
        _for_each_group("comparing", tensors, compare)
    except SafetensorError as error:
        raise OutputError(f"{path.name} does not read back ({error}); is the disk failing?") from error


def _for_each_group(title: str, tensors: TensorSource, work: Callable[[list[TensorSpec]], None]) -> None:
    """Do something with all tensors, in portions, on threads, with a progress bar."""
    groups = _groups(tensors.names)
    with ThreadPoolExecutor(tensors.workers) as pool, progress_bar(title, len(groups)) as bar:
        for _ in pool.map(work, groups):
            bar.update()


def _groups(specs: Iterable[TensorSpec]) -> list[list[TensorSpec]]:
    """Cut the walk into runs of some megabytes, the portions in which the threads work."""
    groups: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if size >= _GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.size * 4
    return groups
