"""Measured accuracy: reads and writes the `evaluation.json` of a model folder.

Published figures are in the registry, not here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from rszoo.disk.locks import held
from rszoo.disk.paths import busy_folder
from rszoo.disk.regular import read_regular
from rszoo.disk.temporary import write_whole
from rszoo.errors import ConfigError, OutputError
from rszoo.folder.model_folder import EVALUATION, FORMAT_VERSIONS, WEIGHTS, sha256_of
from rszoo.schema.fields import build, check_format, parse_json, plain
from rszoo.schema.limits import check_count, check_pattern, check_percent, check_text
from rszoo.version import __version__

#: What the images went through: rszoo's published preprocessing, or timm's transform of the same size.
Transform = Literal["published", "timm"]

# Another process holds the lock for as long as it takes to read and write a small file.
_LOCK_S = 10


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of one weights file on one data set, measured by `rszoo eval`.

    `top1` and `top5` in percent of `images`, the number of images; `image_size` in pixels (the input is square);
    `dataset` is the data set's id on the Hub where it has one; `day` is the date of the run (UTC) as YYYY-MM-DD;
    `weights_sha256` in hex; `rszoo_version` is the version that measured.

    Raises:
        ConfigError: a value is impossible.
    """

    dataset: str
    split: str
    images: int
    top1: float
    top5: float
    preprocessing: Transform
    image_size: int
    framework: Literal["torch", "keras"]
    weights_sha256: str
    day: str
    rszoo_version: str

    def __post_init__(self) -> None:
        check_text(self, "dataset", "split", "rszoo_version")
        check_count(self, "images", "image_size")
        check_percent(self, "top1", "top5")
        if self.top5 < self.top1:
            raise ConfigError(f"top5 must be at least top1, received top1 {self.top1!r} and top5 {self.top5!r}")
        check_pattern(self, "weights_sha256", "[0-9a-f]{64}", "64 hex digits")
        if not _is_day(self.day):
            raise ConfigError(f"day must be a date such as 2026-11-23, received {self.day!r}")

    @property
    def conditions(self) -> tuple[str, str, str, int, str]:
        """What a figure depends on besides the weights; two results may not have all of it in common."""
        return self.dataset, self.split, self.preprocessing, self.image_size, self.framework


@dataclass(frozen=True)
class _File:
    results: tuple[Evaluation, ...]
    rszoo_version: str | None = __version__


def read_evaluations(folder: Path) -> tuple[Evaluation, ...]:
    """Return the measured accuracies of a model folder, in the order of the file; empty if there is no such file.

    Raises:
        ConfigError: `evaluation.json` is damaged, has a result twice, or has one of other weights than the folder's.
        OSError: it, or the weights, cannot be read.
    """
    results = _read(folder)
    if not results:
        return ()
    sha256 = sha256_of(folder / WEIGHTS)
    if other := next((result for result in results if result.weights_sha256 != sha256), None):
        raise ConfigError(
            f"{folder / EVALUATION} has a result of weights with SHA-256 {other.weights_sha256}, but {WEIGHTS} beside "
            f"it has {sha256}; delete it, or measure these weights"
        )
    return results


def record_evaluation(folder: Path, result: Evaluation) -> tuple[Evaluation, ...]:
    """Write a result into a model folder's `evaluation.json`, and return all that are in it now.

    It replaces an earlier result of the same conditions. Results of weights that the folder no longer has are dropped.
    Several processes may write at the same time; no result is lost.

    Raises:
        ConfigError: the folder's weights are not those that were measured, or the file there is damaged.
        OutputError: it cannot be written.
        OSError: the weights cannot be read.
    """
    if (sha256 := sha256_of(folder / WEIGHTS)) != result.weights_sha256:
        raise ConfigError(
            f"{folder / WEIGHTS} has SHA-256 {sha256}, but the measured weights had {result.weights_sha256}; they were "
            "changed during the evaluation, so measure again"
        )
    with held(busy_folder() / f"evaluation-{sha256}", _LOCK_S):
        kept = [former for former in _read(folder) if former.weights_sha256 == sha256]
        places = [former.conditions for former in kept]
        if result.conditions in places:
            kept[places.index(result.conditions)] = result
        else:
            kept.append(result)
        record = {"format_version": FORMAT_VERSIONS[EVALUATION], **plain(_File(tuple(kept)))}
        try:
            write_whole(folder / EVALUATION, json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {folder / EVALUATION}: {error.strerror}; copy the folder first") from error
    return tuple(kept)


def check_writable(folder: Path) -> None:
    """Check that `record_evaluation` will be able to write, before an evaluation of hours starts.

    Raises:
        ConfigError: the `evaluation.json` that is there is damaged.
        OutputError: the folder cannot be written.
    """
    _read(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {folder / EVALUATION}: the folder is read-only for this user; copy it first")


def _read(folder: Path) -> tuple[Evaluation, ...]:
    path = folder / EVALUATION
    if not path.is_file():
        return ()
    try:
        results = build(_File, check_format(parse_json(read_regular(path)), FORMAT_VERSIONS[EVALUATION], path)).results
        for index, result in enumerate(results):
            if any(result.conditions == former.conditions for former in results[:index]):
                raise ConfigError(f"two results of {result.conditions}; keep one")
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged: {error}; delete it, then measure again") from error
    return results


def _is_day(text: str) -> bool:
    try:
        # Python reads 20261123 and 2026-W48-1 as well.
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
