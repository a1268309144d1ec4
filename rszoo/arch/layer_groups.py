"""The layer groups of a network from its front: 0 the stem, 1 to 4 the stages, 5 the head. For freezing and rates."""

from __future__ import annotations

from rszoo.arch.walk import TensorSpec

_HEAD = 5


def layer_group(spec: TensorSpec) -> int:
    """Return the place of a tensor's layer: 0 the stem, 1 to 4 the stages, 5 the head."""
    first = spec.layer.partition(".")[0]
    return int(first.removeprefix("stage")) if first.startswith("stage") else {"stem": 0, "head": _HEAD}[first]


def rate_factor(spec: TensorSpec, layer_decay: float) -> float:
    """Return what the learning rate of a step is multiplied by for a tensor."""
    return float(layer_decay ** (_HEAD - layer_group(spec)))
