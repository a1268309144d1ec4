"""Writes a model folder back as a checkpoint, in any format that can be written."""

from __future__ import annotations

import json
from pathlib import Path

from converters.formats import get_target
from converters.formats.format import LABELS, Export, Format, Writer
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import torch_name
from rszoo.disk.paths import expand_user
from rszoo.disk.regular import read_regular_text
from rszoo.disk.staging import ResultKind, staged_folder
from rszoo.errors import ConversionError
from rszoo.folder.model_folder import CONVERSION, RAW_WEIGHTS, ModelFolder
from rszoo.weights.mapping import Weights, check_header

# Never over another: an export cannot be distinguished from a checkpoint that somebody trained.
_CHECKPOINT = ResultKind("rszoo-convert", lambda *_: False)


def write_checkpoint(folder: ModelFolder, output: str | Path, target: str, *, check: bool = True) -> Path:
    """Write a checkpoint of the format called `target` into the new folder `output`, and return its path.

    `check`: compare each tensor with its checksum.

    Raises:
        UsageError: there is no such format, or it cannot be written.
        ConversionError: a checkpoint of it cannot hold the network.
        WeightsError: the folder's weights are missing, damaged, or not of its architecture.
        OutputError: `output` exists, or it cannot be written.
    """
    (chosen, write), arch = get_target(target), folder.config.arch
    if not chosen.fits(arch):
        raise ConversionError(
            f"a {chosen.title} cannot hold this {arch.label} (activation {arch.activation}, strided_padding "
            f"{arch.strided_padding}, shortcut_pool {arch.shortcut_pool}, {arch.num_classes} classes): its own code "
            "would compute something else"
        )
    check_header(folder.weights_path, arch)
    place = expand_user(output)
    with staged_folder(place, _CHECKPOINT, overwrite=False) as staging:
        name = write_into(staging, folder, chosen, write, check=check)
    return place / name


def left_out(folder: ModelFolder, target: str) -> list[str]:
    """Return what of a model folder a checkpoint of a format does not hold, in words."""
    chosen, _ = get_target(target)
    lost = [what for what in chosen.loses if what != LABELS or folder.config.labels is not None]
    if folder.config.arch.bn_epsilon != ArchConfig.bn_epsilon:
        lost.append(f"the normalizations' epsilon {folder.config.arch.bn_epsilon:g}")
    return [*lost, f"the plain weights in {RAW_WEIGHTS}"] if (folder.path / RAW_WEIGHTS).is_file() else lost


def write_into(output: Path, folder: ModelFolder, target: Format, write: Writer, *, check: bool = True) -> str:
    """Write a checkpoint into an empty folder, and return its name there; whether it fits is not looked at.

    Raises as `write_checkpoint`.
    """
    with Weights(folder.weights_path, check=check) as weights:
        export = Export(
            folder.config, _step(folder), lambda spec: target.from_torch(spec.kind, weights[torch_name(spec)])
        )
        return write(export, output)


def _step(folder: ModelFolder) -> int:
    """Return the step recorded at conversion, or 0."""
    try:
        account = json.loads(read_regular_text(folder.path / CONVERSION))
        step = int(account["source"]["global_step"] or 0)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0
    return step if 0 <= step < 1 << 63 else 0
