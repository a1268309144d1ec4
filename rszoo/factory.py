"""`rszoo.create`: a name, a model folder or an architecture in, a ready PyTorch or Keras model out.

With weights nothing is initialized first: PyTorch modules are built on the meta device and take tensors that map the
file; Keras variables are created from the file's values.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rszoo.cache import find_folder
from rszoo.config import ArchConfig
from rszoo.errors import MissingPackageError, UsageError, nearest
from rszoo.folder import ModelFolder, looks_like_folder
from rszoo.names import keras_name, to_tf_layout, torch_name
from rszoo.preprocessing import Preprocessing
from rszoo.registry import get_entry
from rszoo.tensors import iter_tensors
from rszoo.weights import Weights, check_header, open_torch

Framework = Literal["torch", "keras"]

_FRAMEWORKS = ("torch", "keras")
# All that Keras 3 has; the last two were not tried here.
_KERAS_BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino")
_HEAD = ("fc.weight", "fc.bias")
_STEM = "conv1.0.weight"

log = logging.getLogger("rszoo")


def create(
    model: str | os.PathLike[str] | ArchConfig,
    *,
    pretrained: bool = False,
    framework: Framework = "torch",
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> Any:
    """Build a model: a `torch.nn.Module` or a `keras.Model`, in evaluation mode if it has weights.

    Args:
        model: a registered name (`resnet-rs-152` means its largest resolution), a model folder, whose weights are
            always loaded, or an `ArchConfig`.
        pretrained: for a registered name, load its EMA weights; converted into the cache on first use.
        framework: "torch" (input NCHW) or "keras" (input NHWC, whatever backend Keras is set to).
        num_classes: another number than the weights' keeps the backbone and starts a new head, with a warning.
        in_chans: another number than the weights' adapts the first convolution: summed over RGB for 1, else RGB's
            kernels repeated in turn and scaled by 3 / in_chans.

    Raises:
        UnknownModelError, SourceNotFoundError: there is no such model or folder.
        WeightsError: the folder's weights are missing, damaged, or of another architecture.
        UsageError, ConfigError: an argument is not allowed.
        MissingPackageError: the framework is not installed.
    """
    if framework not in _FRAMEWORKS:
        likely = nearest(str(framework), _FRAMEWORKS) or list(_FRAMEWORKS)
        raise UsageError(f"framework must be torch or keras, received {framework!r}; did you mean {likely[0]!r}?")
    # First of all: a missing framework should not cost a download.
    module = import_model_module(framework)
    folder, stored, settings = _resolve(model, pretrained)
    wanted = replace(
        stored,
        num_classes=stored.num_classes if num_classes is None else num_classes,
        in_chans=stored.in_chans if in_chans is None else in_chans,
    )
    path = None if folder is None else folder.weights_path
    if path is not None:
        check_header(path, stored)
        if wanted.num_classes != stored.num_classes:
            classes = wanted.num_classes, stored.num_classes
            log.warning("new head: %d classes with initial values; the weights have %d", *classes)
    build = _create_torch if framework == "torch" else _create_keras
    built = build(module, path, stored, wanted)
    if settings is not None:
        built.preprocessing = settings
    return built


def import_model_module(framework: Framework) -> Any:
    """Import the module that builds models for a framework.

    Raises:
        MissingPackageError: the framework, or Keras's backend, is not installed. A breakage inside it is passed on.
        UsageError: KERAS_BACKEND is set to what Keras does not have.
    """
    backend = os.environ.get("KERAS_BACKEND") or _KERAS_BACKENDS[0]
    if framework == "keras" and backend not in _KERAS_BACKENDS:
        likely = nearest(backend, _KERAS_BACKENDS) or list(_KERAS_BACKENDS)
        raise UsageError(f"KERAS_BACKEND is {backend!r}; set it to {', '.join(likely)}, or leave it out")
    try:
        return importlib.import_module(f"rszoo.models.{framework}_resnet_rs")
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "keras", "tensorflow", "jax"):
            raise
        hint = "" if error.name == framework else f" (or set KERAS_BACKEND to an installed one; {error.name} is not)"
        raise MissingPackageError(
            f'{framework} models need a package that is not installed; run: pip install "rszoo[{framework}]"{hint}'
        ) from error


def keras_weights(tensors: Mapping[str, np.ndarray], config: ArchConfig) -> Mapping[tuple[str, str], np.ndarray]:
    """Return tensors with PyTorch's keys and layout under Keras's names and in its layout, read when asked for."""
    return _KerasView(tensors, config)


class _KerasView(Mapping[tuple[str, str], np.ndarray]):
    def __init__(self, tensors: Mapping[str, np.ndarray], config: ArchConfig) -> None:
        self._tensors = tensors
        self._specs = {keras_name(spec): spec for spec in iter_tensors(config)}

    def __getitem__(self, name: tuple[str, str]) -> np.ndarray:
        spec = self._specs[name]
        return to_tf_layout(spec.kind, self._tensors[torch_name(spec)])

    def __iter__(self) -> Any:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


def _resolve(
    model: str | os.PathLike[str] | ArchConfig, pretrained: bool
) -> tuple[ModelFolder | None, ArchConfig, Preprocessing | None]:
    if isinstance(model, ArchConfig):
        if pretrained:
            raise UsageError("an ArchConfig has no pretrained weights; give a registered name or a model folder")
        return None, model, None
    if pretrained or not isinstance(model, str) or looks_like_folder(model):
        folder = find_folder(model)
        return folder, folder.config.arch, folder.preprocessing
    entry = get_entry(model)
    return None, entry.arch, entry.preprocessing


def _create_torch(module: Any, path: Path | None, stored: ArchConfig, wanted: ArchConfig) -> Any:
    model = module.empty_model(wanted)
    if path is None:
        model.to_empty(device="cpu")
        model.init_weights()
        return model
    module.assign_weights(model, _adapt(open_torch(path), stored, wanted))
    return model.eval()


def _create_keras(module: Any, path: Path | None, stored: ArchConfig, wanted: ArchConfig) -> Any:
    if path is None:
        return module.build_model(wanted)
    with Weights(path) as weights:
        return module.build_model(wanted, keras_weights(_adapt(weights, stored, wanted), wanted))


def _adapt(tensors: Mapping[str, Any], stored: ArchConfig, wanted: ArchConfig) -> Mapping[str, Any]:
    """Return the tensors without the head if the classes differ, and with another first kernel if the channels do."""
    changed: dict[str, Any] = {}
    if wanted.in_chans != stored.in_chans:
        changed[_STEM] = _adapt_stem(tensors[_STEM], wanted.in_chans)
        log.warning("first convolution adapted from %d to %d input channels", stored.in_chans, wanted.in_chans)
    dropped = _HEAD if wanted.num_classes != stored.num_classes else ()
    return _Changed(tensors, changed, dropped) if changed or dropped else tensors


class _Changed(Mapping[str, Any]):
    """A mapping with some values replaced and some keys gone, the rest still read when asked for."""

    def __init__(self, base: Mapping[str, Any], changed: Mapping[str, Any], dropped: tuple[str, ...]) -> None:
        self._base, self._changed, self._dropped = base, changed, dropped

    def __getitem__(self, name: str) -> Any:
        if name in self._dropped:
            raise KeyError(name)
        return self._changed[name] if name in self._changed else self._base[name]

    def __iter__(self) -> Any:
        return (name for name in self._base if name not in self._dropped)

    def __len__(self) -> int:
        return len(self._base) - len(self._dropped)


def _adapt_stem(kernel_oihw: Any, in_chans: int) -> Any:
    """Adapt a first kernel, numpy or torch, to another number of channels; timm's rule for RGB weights."""
    stored = kernel_oihw.shape[1]
    if in_chans == 1:
        return kernel_oihw.sum(1)[:, None]
    return kernel_oihw[:, [channel % stored for channel in range(in_chans)]] * (stored / in_chans)
