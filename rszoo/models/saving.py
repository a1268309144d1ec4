"""`rszoo.save`: a model in memory in, the model folder on disk out, in which `rszoo.create` finds it again.

What was trained further becomes what the converter writes: the same files, names, layout and account, whole or not at
all. Values are taken from the model one tensor at a time, wherever they are.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from converters.convert import is_model_folder
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import keras_name, to_torch_layout, torch_name, torch_shape
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.disk.paths import expand_user
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.disk.staging import staged_folder
from rszoo.errors import OutputError, UsageError, summarize
from rszoo.folder.model_folder import (
    CONFIG,
    CONVERSION,
    WEIGHTS,
    ModelConfig,
    ModelFolder,
    config_sha256,
    read_folder,
    sha256_of,
)
from rszoo.models.factory import Framework
from rszoo.registry.preprocessing import Preprocessing
from rszoo.version import __version__

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_TRAINED_TITLE = ", trained further"
# What PyTorch puts around a network, and the name under which the network stands in it: torch.compile; DataParallel,
# DistributedDataParallel and AveragedModel.
_WRAPPED_AS = ("_orig_mod", "module")
# Tensors compared between two openings of the file: what its reader has mapped counts as memory.
_COMPARED_AT_ONCE = 64

log = logging.getLogger("rszoo")


@dataclass(frozen=True)
class _LiveModel:
    """A network in memory: what it is, and its tensors by the walk's specs. `names` are the framework's."""

    framework: Framework
    network: Any
    arch: ArchConfig
    tensors: dict[TensorSpec, Any]
    names: dict[TensorSpec, str]
    skipped: dict[str, list[str]]

    @property
    def origin(self) -> ModelConfig | None:
        """What the network was created from; None if it was from an architecture alone."""
        return getattr(self.network, "origin", None)

    def values(self, spec: TensorSpec) -> np.ndarray:
        """Return a tensor's values now, in PyTorch's layout: float64 if they are, else float32, which holds all others.

        On the CPU and in float32, a PyTorch tensor's are not copied.
        """
        if self.framework == "torch":
            tensor = self.tensors[spec].detach().cpu()
            return (tensor if _dtype(tensor) == "float64" else tensor.float()).numpy()
        import keras

        values = keras.ops.convert_to_numpy(self.tensors[spec])
        wide = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
        return to_torch_layout(spec.kind, wide)


def save(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ModelFolder:
    """Write a model that `rszoo.create` made, trained further or not, to a model folder.

    The file is float32: float16 and bfloat16 are widened exactly, float64 is rounded, with a warning if that changes
    a value. Optimizer state, and what was rewired in the network since it was created, is not kept.

    Args:
        model: a PyTorch or Keras classifier; for PyTorch also inside `torch.compile`, `DataParallel` and the like.
        folder: where to; a name of no existing folder, unless `overwrite`.
        title: the model's name for people; that of what it was created from, or the architecture's, if left out.
        labels: class names, index by index; those of what it was created from if left out, unless the number of
            classes is another.
        overwrite: replace a former model folder. The model may have been created from it.

    Raises:
        UsageError: the model is not a classifier of `rszoo.create`, its tensors are not the architecture's, or title,
            labels or preprocessing are missing or impossible.
        OutputError: the folder exists, or cannot be written.
    """
    live = _open(model)
    config = _describe(live, title, labels)
    target = expand_user(folder)
    with staged_folder(target, overwrite=overwrite, is_ours=is_model_folder) as staging:
        metadata = _metadata(live, config)
        rounded = _write(staging / WEIGHTS, live, metadata)
        _compare_reread(staging / WEIGHTS, live, metadata)
        report = _report(live, config, sha256_of(staging / WEIGHTS), rounded)
        (staging / CONFIG).write_text(config.to_json(), encoding="utf-8")
        (staging / CONVERSION).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if rounded:
        log.warning("%d tensors of float64 were rounded to the float32 of the file", rounded)
    return read_folder(target)


def _open(model: Any) -> _LiveModel:
    """Find the network in what the user gave, and every tensor of its architecture in the network.

    Raises:
        UsageError: there is none, or its tensors are others.
    """
    # A model is there, so its framework was imported; one that was not is not needed. Keras first: on the PyTorch
    # backend its models are PyTorch modules, too.
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    framework: Framework = "keras" if keras is not None and isinstance(model, keras.Model) else "torch"
    if framework == "torch" and not (torch is not None and isinstance(model, torch.nn.Module)):
        raise UsageError(f"cannot save a {type(model).__name__}; give a PyTorch or Keras model made by rszoo.create")
    network = _unwrapped(model) if framework == "torch" else model
    arch = getattr(network, "config", None)
    if not isinstance(arch, ArchConfig):
        raise UsageError(
            f"cannot save a {type(network).__name__} that rszoo.create did not make: it has no rszoo.ArchConfig at "
            "model.config; give the network itself, or, if another library loaded it, set model.config"
        )
    if hasattr(network, "feature_info"):
        raise UsageError(
            "cannot save a model made with features_only=True: it has no head, and a model folder holds whole "
            "classifiers; put its values into a model created without features_only, and save that"
        )
    found, skipped = _torch_tensors(network) if framework == "torch" else _keras_tensors(network)
    names = {spec: _framework_name(spec, framework) for spec in iter_tensors(arch)}
    _check_tensors(found, names, framework, arch)
    tensors = {spec: found[name] for spec, name in names.items()}
    return _LiveModel(framework, network, arch, tensors, names, skipped)


def _unwrapped(module: Any) -> Any:
    """Return the network inside PyTorch's wrappers, of which there may be several."""
    children = dict(module.named_children())
    inner = next((children[name] for name in _WRAPPED_AS if name in children), None)
    return module if inner is None else _unwrapped(inner)


def _torch_tensors(network: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the tensors by name, and the names of what is no weight by the reason why not."""
    state = network.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    found = {name: tensor for name, tensor in state.items() if name not in counters}
    return found, {"PyTorch's counts of batches, which no network needs": counters} if counters else {}


def _keras_tensors(network: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    # `weights` has neither the optimizer's variables nor the seeds of the dropout layers. Layers inside other models
    # have these models' names before their own.
    return {"/".join(variable.path.split("/")[-2:]): variable for variable in network.weights}, {}


def _framework_name(spec: TensorSpec, framework: Framework) -> str:
    return torch_name(spec) if framework == "torch" else "/".join(keras_name(spec))


def _dtype(tensor: Any) -> str:
    """Return a tensor's or Keras variable's dtype by its plain name: `bfloat16`."""
    return str(tensor.dtype).removeprefix("torch.")


def _check_tensors(found: dict[str, Any], names: dict[TensorSpec, str], framework: Framework, arch: ArchConfig) -> None:
    """Raise a UsageError if the network's tensors are not the architecture's; all differences are counted."""
    shapes = {name: torch_shape(spec) if framework == "torch" else spec.shape for spec, name in names.items()}
    there = {name: tensor for name, tensor in found.items() if name in shapes}
    dtypes = {name: _dtype(tensor) for name, tensor in there.items()}
    problems = {
        "missing": [name for name in shapes if name not in found],
        "unexpected": [name for name in found if name not in shapes],
        "misshapen": [
            f"{name} {tuple(tensor.shape)}" for name, tensor in there.items() if tuple(tensor.shape) != shapes[name]
        ],
        f"of a dtype that is not {', '.join(_DTYPES)}": [
            f"{name} {dtype}" for name, dtype in dtypes.items() if dtype not in _DTYPES
        ],
        "without values": [name for name, tensor in there.items() if getattr(tensor, "is_meta", False)],
    }
    listed = [f"{len(some)} {what} ({summarize(some)})" for what, some in problems.items() if some]
    if listed:
        raise UsageError(
            f"the model does not have the tensors of the {arch.label} that its config says: {'; '.join(listed)}; a new "
            "head comes with create(..., num_classes=...) or, in PyTorch, model.reset_classifier(...)"
        )


def _describe(live: _LiveModel, title: str | None, labels: Sequence[str] | None) -> ModelConfig:
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
    if title is None:
        start = live.arch.label if origin is None else origin.title.removesuffix(_TRAINED_TITLE)
        title = start if origin is None else start + _TRAINED_TITLE
    if not isinstance(title, str) or not title.strip():
        raise UsageError(f"title must be a text, received {title!r}; leave it out for the model's own")
    if labels is None and origin is not None and origin.arch.num_classes == live.arch.num_classes:
        labels = origin.labels
    return ModelConfig(title, None, live.arch, preprocessing, _checked_labels(labels, live.arch), "trained")


def _checked_labels(labels: Sequence[str] | None, arch: ArchConfig) -> tuple[str, ...] | None:
    if labels is None:
        return None
    # A text is a sequence of texts, too.
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"labels must be texts, one for each class, received {labels!r}")
    if len(labels) != arch.num_classes:
        raise UsageError(f"labels must be {arch.num_classes}, one for each class of the model, received {len(labels)}")
    return tuple(labels)


def _metadata(live: _LiveModel, config: ModelConfig) -> dict[str, str]:
    """Return the safetensors metadata: nothing in it depends on the machine, the folder or the time."""
    return {
        "format": "pt",
        "model": config.title,
        "source": _source_name(live),
        "weights": config.weights,
        "converter": f"rszoo {__version__}",
    }


def _source_name(live: _LiveModel) -> str:
    return live.arch.label if live.origin is None else live.origin.title


def _write(path: Path, live: _LiveModel, metadata: dict[str, str]) -> int:
    """Write all tensors, and return how many of them float32 could not hold exactly."""
    writer = SafetensorsWriter(path, [(torch_name(spec), torch_shape(spec)) for spec in live.tensors], metadata)
    rounded = 0

    def narrowed() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal rounded
        for spec in live.tensors:
            values = live.values(spec)
            stored = _to_float32(values, live.names[spec])
            rounded += values.dtype == np.float64 and not np.array_equal(stored, values, equal_nan=True)
            yield torch_name(spec), stored

    writer.write(narrowed())
    return int(rounded)


def _to_float32(values: np.ndarray, name: str) -> np.ndarray:
    """Return float64 as float32, and float32 as it is.

    Raises:
        UsageError: a finite value is too large for float32.
    """
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32, copy=False)
    if values.dtype == np.float64 and np.isinf(narrow).sum() > np.isinf(values).sum():
        raise UsageError(
            f"{name} has values up to {np.abs(values[np.isfinite(values)]).max():.3g}, too large for the float32 of a "
            "model folder; has the training diverged?"
        )
    return narrow


def _compare_reread(path: Path, live: _LiveModel, metadata: dict[str, str]) -> None:
    """Read the file again with the safetensors package and compare it bit by bit with the model.

    Raises:
        OutputError: they differ.
    """
    specs = list(live.tensors)
    try:
        with safe_open(path, framework="numpy") as written:
            if set(written.keys()) != {torch_name(spec) for spec in specs} or written.metadata() != metadata:
                raise OutputError(f"{path.name} reads back with another header than was written; is the disk failing?")
        for start in range(0, len(specs), _COMPARED_AT_ONCE):
            with safe_open(path, framework="numpy") as written:
                for spec in specs[start : start + _COMPARED_AT_ONCE]:
                    expected = _to_float32(live.values(spec), live.names[spec])
                    actual = written.get_tensor(torch_name(spec))
                    # As integers: NaN equals itself, and 0.0 is not -0.0.
                    if not np.array_equal(expected.view(np.int32), actual.view(np.int32)):
                        raise OutputError(
                            f"{path.name} reads back with other values for {live.names[spec]}; is the model being "
                            "trained meanwhile, or the disk failing?"
                        )
    except SafetensorError as error:
        raise OutputError(f"{path.name} does not read back ({error}); is the disk failing?") from error


def _report(live: _LiveModel, config: ModelConfig, sha256: str, rounded: int) -> dict[str, Any]:
    origin = live.origin
    converted = f"result re-read and equal to the model's values bit by bit, {rounded} tensors of float64 rounded"
    return {
        "format_version": 1,
        "converter": f"rszoo {__version__}",
        "model": config.title,
        "architecture": live.arch.label,
        "parameters": sum(spec.size for spec in live.tensors if spec.kind.trainable),
        "weights": config.weights,
        "source": {
            "name": _source_name(live),
            "pair": None if origin is None else origin.pair,
            "weights": None if origin is None else origin.weights,
            "framework": live.framework,
            "dtypes": sorted(set(map(_dtype, live.tensors.values()))),
            "variables": len(live.tensors) + sum(map(len, live.skipped.values())),
            "global_step": None,
        },
        "result": {
            "file": WEIGHTS,
            "sha256": sha256,
            "config_sha256": config_sha256(config.to_json()),
            "tensors": len(live.tensors),
        },
        "checks": [
            "every tensor of the architecture found in the model once, none besides, each of its shape",
            converted if rounded else "result re-read and equal to the model's values bit by bit",
        ],
        "mapped": {live.names[spec]: torch_name(spec) for spec in live.tensors},
        "skipped": live.skipped,
    }
