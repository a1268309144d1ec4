"""`rszoo.save`: writes a model in memory to a model folder, from which `rszoo.create` loads it again.

The folder is as the converter writes it: the same files, names, layout and account, whole or not at all. Values are
taken from the model one tensor at a time, from any device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from rszoo.arch.config import ArchConfig
from rszoo.arch.names import torch_name
from rszoo.arch.walk import TensorSpec
from rszoo.disk.checksums import checksum, digest
from rszoo.disk.paths import expand_user
from rszoo.errors import UsageError
from rszoo.folder.model_folder import ModelConfig, ModelFolder, read_folder
from rszoo.folder.writing import Provenance, TensorSource, staged_model_folder, write_records, write_weights
from rszoo.models.live import LiveModel, open_model
from rszoo.models.untouched import computes_as_created
from rszoo.registry.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras
    import torch

_TRAINED_TITLE = ", trained further"

log = logging.getLogger("rszoo")


def save(
    model: torch.nn.Module | keras.Model,
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ModelFolder:
    """Write a model that `rszoo.create` made, trained further or not, to a model folder.

    The file is float32: float16 and bfloat16 are widened exactly, float64 is rounded, with a warning if that changes
    a value. Optimizer state, and what was rewired in the network since it was created, is not kept. Weights that are
    bit by bit those that the model was created with keep title, pair and kind; others are called trained further.

    Args:
        model: a PyTorch or Keras classifier; for PyTorch also inside `torch.compile`, `DataParallel` and the like.
        folder: where to; a name of no existing folder, unless `overwrite`.
        title: the model's name for people; that of what it was created from, or the architecture's, if left out.
        labels: class names, index by index; those of what it was created from if left out, unless the number of
            classes is another.
        overwrite: replace a former model folder. The model may have been created from it.

    Raises:
        UsageError: the model is not a classifier of `rszoo.create`, its tensors are not the architecture's, another
            tool changed it (pruning, LoRA, quantization, ...; the text says how to undo that), or title, labels or
            preprocessing are missing or impossible.
        OutputError: the folder exists, or cannot be written.
    """
    live = open_model(model)
    narrowed = _Float32(live)
    config = _describe(live, title, labels, narrowed)
    # One thread: the framework is the user's, and may be busy elsewhere.
    tensors = TensorSource(
        live.names,
        narrowed.read,
        workers=1,
        suspicion="is the model being trained at the same time, or the disk failing?",
    )
    with staged_model_folder(folder, overwrite=overwrite) as staging:
        written = write_weights(staging, config, tensors, {"source": _source_name(live)})
        provenance = _provenance(live, len(narrowed.rounded))
        write_records(staging, config, live.names, provenance, written)
    if narrowed.rounded:
        log.warning("%d tensors of float64 were rounded to the float32 of the file", len(narrowed.rounded))
    return read_folder(expand_user(folder))


class _Float32:
    """A model's values as float32. `rounded` are the tensors read so far that it could not hold exactly."""

    def __init__(self, live: LiveModel) -> None:
        self.rounded: set[TensorSpec] = set()
        self._live = live

    def read(self, spec: TensorSpec) -> np.ndarray:
        """Return a tensor's values in PyTorch's layout.

        Raises:
            UsageError: a finite value is too large for float32.
        """
        values = self._live.values(spec)
        with np.errstate(over="ignore", under="ignore"):
            narrow = values.astype(np.float32, copy=False)
        if values.dtype != np.float64:
            return narrow
        if np.isinf(narrow).sum() > np.isinf(values).sum():
            largest = np.abs(values[np.isfinite(values)]).max()
            raise UsageError(
                f"{self._live.names[spec]} has values up to {largest:.3g}, too large for the float32 of a model "
                "folder; has the training diverged?"
            )
        if not np.array_equal(narrow, values, equal_nan=True):
            self.rounded.add(spec)
        return narrow


def _describe(live: LiveModel, title: str | None, labels: Sequence[str] | None, values: _Float32) -> ModelConfig:
    """Bring together what the model knows of itself and what the user says.

    Raises:
        UsageError: something is missing or impossible.
    """
    origin, preprocessing = live.origin, getattr(live.network, "preprocessing", None)
    if not isinstance(preprocessing, Preprocessing):
        raise UsageError(
            f"model.preprocessing is {preprocessing!r}, but a model folder says what images go through; set "
            "model.preprocessing = rszoo.Preprocessing(image_size=...)"
        )
    if title is not None and (not isinstance(title, str) or not title.strip()):
        raise UsageError(f"title must be a text, received {title!r}; leave it out for the model's own")
    if labels is None and origin is not None and origin.arch.num_classes == live.arch.num_classes:
        labels = origin.labels
    config = ModelConfig(
        title or live.arch.label, None, live.arch, preprocessing, _checked_labels(labels, live.arch), "trained"
    )
    if origin is None:
        return config
    if not _is_untouched(live, origin, values):
        return replace(config, title=title or origin.title.removesuffix(_TRAINED_TITLE) + _TRAINED_TITLE)
    same = (config.preprocessing, config.labels) == (origin.preprocessing, origin.labels)
    pair = origin.pair if same else None
    return replace(config, title=title or origin.title, pair=pair, weights=origin.weights)


def _is_untouched(live: LiveModel, origin: ModelConfig, values: _Float32) -> bool:
    """Whether a model's values are, bit by bit, those that it was created with, and so are its layers."""
    if origin.digest is None:
        return False
    sums = {torch_name(spec): checksum(np.ascontiguousarray(values.read(spec))) for spec in live.names}
    return digest(sums) == origin.digest and computes_as_created(live, origin)


def _checked_labels(labels: Sequence[str] | None, arch: ArchConfig) -> tuple[str, ...] | None:
    if labels is None:
        return None
    # A string is a sequence of strings.
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"labels must be texts, one for each class, received {labels!r}")
    if len(labels) != arch.num_classes:
        raise UsageError(f"labels must be {arch.num_classes}, one for each class of the model, received {len(labels)}")
    return tuple(labels)


def _source_name(live: LiveModel) -> str:
    return live.arch.label if live.origin is None else live.origin.title


def _provenance(live: LiveModel, rounded: int) -> Provenance:
    origin = live.origin
    compared = "result re-read and equal to the model's values bit by bit"
    return Provenance(
        format=None,
        source={
            "name": _source_name(live),
            "pair": None if origin is None else origin.pair,
            "weights": None if origin is None else origin.weights,
            "framework": live.framework,
            "dtypes": live.dtypes,
            "variables": len(live.tensors) + sum(map(len, live.skipped.values())),
            "global_step": None,
        },
        skipped=live.skipped,
        checks=[
            "every tensor of the architecture found in the model once, none besides, each of its shape",
            f"{compared}, {rounded} tensors of float64 rounded" if rounded else compared,
        ],
    )
