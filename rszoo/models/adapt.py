"""Weights as another network needs them: a mapping in, one that still reads lazily out.

Another number of classes or channels, or Keras's names and layout.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from rszoo.arch.config import ArchConfig
from rszoo.arch.features import FeatureInfo
from rszoo.arch.names import keras_name, to_tf_layout, torch_name
from rszoo.arch.walk import iter_tensors

_HEAD = ("fc.weight", "fc.bias")

log = logging.getLogger("rszoo")


def adapt_weights(tensors: Mapping[str, Any], stored: ArchConfig, wanted: ArchConfig) -> Mapping[str, Any]:
    """Return the tensors, without the head if the number of classes differs, with an adapted stem if channels differ.

    `tensors`: numpy or PyTorch, by state dict key. A warning says what was changed.
    """
    changed: dict[str, Any] = {}
    dropped: tuple[str, ...] = ()
    if wanted.num_classes != stored.num_classes:
        dropped = _HEAD if stored.num_classes else ()
        counts = wanted.num_classes, stored.num_classes or "none"
        if wanted.num_classes:
            log.warning("new head: %d classes with initial values; the weights have %s", *counts)
    if wanted.in_chans != stored.in_chans:
        stem = torch_name(next(iter_tensors(stored)))
        changed[stem] = _adapt_stem(tensors[stem], wanted.in_chans)
        log.warning("first convolution adapted from %d to %d input channels", stored.in_chans, wanted.in_chans)
    return _Changed(tensors, changed, dropped) if changed or dropped else tensors


def keras_weights(tensors: Mapping[str, np.ndarray], config: ArchConfig) -> Mapping[tuple[str, str], np.ndarray]:
    """Return tensors with PyTorch's keys and layout under Keras's names and in its layout, read when asked for."""
    return _KerasView(tensors, config)


def needed_tensors(stored: ArchConfig, wanted: ArchConfig, features: FeatureInfo | None) -> list[str]:
    """Return the state dict keys of stored tensors that the wanted network uses; `features`: the maps it returns."""
    specs = iter_tensors(wanted) if features is None else features.iter_tensors()
    names = [torch_name(spec) for spec in specs]
    return names if wanted.num_classes == stored.num_classes else [name for name in names if name not in _HEAD]


class _Changed(Mapping[str, Any]):
    """A mapping with some values replaced and some keys removed; all other values are still read lazily."""

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


def _adapt_stem(kernel_oihw: Any, in_chans: int) -> Any:
    """Adapt a first kernel, numpy or torch, to another number of channels, by timm's rule for RGB weights."""
    stored = kernel_oihw.shape[1]
    if in_chans == 1:
        return kernel_oihw.sum(1)[:, None]
    return kernel_oihw[:, [channel % stored for channel in range(in_chans)]] * (stored / in_chans)
