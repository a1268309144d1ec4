"""The layer groups of a network, for freezing and learning rates: 0 the stem, 1 to 4 the stages, 5 the head."""

from __future__ import annotations

from rszoo.arch.walk import TensorSpec

_HEAD = 5


def layer_group(spec: TensorSpec) -> int:
    """Return the group of a tensor's layer: 0 the stem, 1 to 4 the stages, 5 the head."""
    first = spec.layer.partition(".")[0]
    return int(first.removeprefix("stage")) if first.startswith("stage") else {"stem": 0, "head": _HEAD}[first]


def rate_factor(spec: TensorSpec, layer_decay: float) -> float:
    """Return the factor of a step's learning rate for a tensor."""
    return float(layer_decay ** (_HEAD - layer_group(spec)))
