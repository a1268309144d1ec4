"""Checkpoints of a training: state and place in, `step-00001234/{state.safetensors,state.json}` out, and back.

A checkpoint is written completely or not at all, and checked by the SHA-256 of its tensors. The last few are kept, and
the best: the one with the highest top-1 among those that were evaluated.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rszoo.disk.regular import NotRegularError, read_regular, read_regular_text
from rszoo.disk.staging import ResultKind, staged_folder, sweep
from rszoo.disk.temporary import remove_folder, write_whole
from rszoo.errors import CheckpointError, ConfigError
from rszoo.folder.model_folder import sha256_of
from rszoo.pipeline.share import Position
from rszoo.schema.fields import build, check_format, parse_json
from rszoo.train.output import writing
from rszoo.version import __version__

_TENSORS = "state.safetensors"
_FACTS = "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_FORMAT_VERSION = 1
_STATE = ResultKind("rszoo train", lambda _, names: _FACTS in names, last=_FACTS)


@dataclass(frozen=True)
class Progress:
    """Where a training stands, besides its tensors.

    `step`: optimizer steps taken. `positions`: of each reader of training images. `pending`: cross-entropy and top-1
    fraction of the steps that no record of metrics has yet. `engine`: which one wrote it.
    """

    step: int
    engine: str
    positions: tuple[Position, ...]
    pending: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk. `top1` in percent, None if it was not evaluated (yet)."""

    path: Path
    progress: Progress
    top1: float | None
    sha256: str

    def tensors(self) -> dict[str, np.ndarray]:
        """Read the tensors by name.

        Raises:
            CheckpointError: they are not what was written.
        """
        path = self.path / _TENSORS
        try:
            if sha256_of(path) != self.sha256:
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one that {_FACTS} has")
            with safe_open(path, framework="numpy") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (FileNotFoundError, NotRegularError, SafetensorError) as error:
            raise CheckpointError(f"{path} is missing or damaged: {error}") from error


@dataclass(frozen=True)
class _Facts:
    """What `state.json` says: a `Progress`, and the other fields of a `Checkpoint`."""

    step: int
    engine: str
    positions: tuple[tuple[int, int, int], ...]
    pending: tuple[tuple[float, float], ...]
    top1: float | None
    sha256: str
    # Version 0.1.0 did not write it.
    rszoo_version: str | None = None


def save_state(folder: Path, tensors: Mapping[str, np.ndarray], progress: Progress) -> Checkpoint:
    """Write a checkpoint to a folder, completely or not at all; an earlier one of the same name is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    replaced = staged_folder(folder, _STATE, overwrite=True)
    with writing(folder), replaced as staging:
        # The writer ignores strides.
        save_file({name: np.asarray(values, order="C") for name, values in tensors.items()}, staging / _TENSORS)
        facts = {
            "format_version": _FORMAT_VERSION,
            "rszoo_version": __version__,
            **dataclasses.asdict(progress),
            "top1": None,
            "sha256": sha256_of(staging / _TENSORS),
        }
        (staging / _FACTS).write_text(_to_json(facts), encoding="utf-8")
    return read_checkpoint(folder)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's `state.json`; tensors are read on request.

    Raises:
        CheckpointError: it is missing or damaged.
        NewerFormatError: a newer rszoo wrote it.
    """
    path = folder / _FACTS
    try:
        facts = build(_Facts, check_format(parse_json(read_regular(path)), _FORMAT_VERSION, path))
    except (FileNotFoundError, NotRegularError, ConfigError) as error:
        raise CheckpointError(f"{path} is missing or cannot be read: {error}") from error
    progress = Progress(facts.step, facts.engine, tuple(map(Position._make, facts.positions)), facts.pending)
    return Checkpoint(folder, progress, facts.top1, facts.sha256)


class Checkpoints:
    """The folder of a run's checkpoints; the last `keep` and the best are kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def tidy(self) -> None:
        """Delete the temporary files of killed processes, and checkpoints that need not be kept."""
        sweep(self._folder)
        self.prune()

    def newest_first(self) -> Iterator[Path]:
        """Yield the checkpoints' folders."""
        numbered = [(int(match[1]), path) for path in self._paths() if (match := _NAME.fullmatch(path.name))]
        yield from (path for _, path in sorted(numbered, reverse=True))

    def save(self, tensors: Mapping[str, np.ndarray], progress: Progress) -> Checkpoint:
        """Write a checkpoint under its step; remove those that need not be kept."""
        checkpoint = save_state(self._folder / f"step-{progress.step:08d}", tensors, progress)
        self.prune()
        return checkpoint

    def note_top1(self, checkpoint: Checkpoint, top1: float) -> Checkpoint:
        """Record a checkpoint's top-1; remove a checkpoint that is no longer the best.

        Raises:
            OutputError: it cannot be written.
        """
        path = checkpoint.path / _FACTS
        with writing(path):
            facts: dict[str, Any] = json.loads(read_regular_text(path))
            write_whole(path, _to_json(facts | {"top1": top1}))
        self.prune()
        return dataclasses.replace(checkpoint, top1=top1)

    def prune(self) -> None:
        """Remove all but the last and the best; of equals, the earlier is the best."""
        paths = list(self.newest_first())
        rated = {path: top1 for path in reversed(paths) if (top1 := _top1_of(path)) is not None}
        best = max(rated, key=lambda path: rated[path], default=None)
        for path in paths[self._keep :]:
            if path != best:
                # Renamed first, so that a killed process leaves no partial checkpoint.
                with writing(path):
                    remove_folder(path)

    def _paths(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []


def _top1_of(path: Path) -> float | None:
    try:
        return read_checkpoint(path).top1
    except CheckpointError:
        return None


def _to_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1) + os.linesep
