"""Feature maps: which ones a network has, and which tensors they need. The same in both frameworks.

Indices are timm's for its ResNets: 0 is the stem before its last, strided convolution; 1 to 4 are the stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.errors import UsageError

_MODULES = ("act1", "layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class FeatureInfo:
    """Which feature maps a model returns, in order; the methods are timm's.

    `out_indices` counts from 0; `choose_features` describes what users may pass.
    """

    config: ArchConfig
    out_indices: tuple[int, ...]

    @property
    def last(self) -> int:
        """The deepest feature map; later layers are not needed."""
        return max(self.out_indices)

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [_levels(self.config)[index][0] for index in self.out_indices]

    def reduction(self) -> list[int]:
        """Return the factor by which each map is smaller than the image."""
        return [_levels(self.config)[index][1] for index in self.out_indices]

    def module_name(self) -> list[str]:
        """Return the PyTorch module that returns each map."""
        return [_MODULES[index] for index in self.out_indices]

    def iter_tensors(self) -> Iterator[TensorSpec]:
        """Yield the tensors that the maps need, in the walk's order."""
        stage_of = {block.name: block.stage for block in self.config.iter_blocks()}
        _, strided = self.config.split_stem()
        after_first_map = (f"stem.{strided.name}", f"stem.{strided.bn_name}") if strided else ()
        for spec in iter_tensors(self.config):
            owner = spec.layer.rpartition(".")[0]
            needed_from = int(spec.layer in after_first_map) if owner == "stem" else stage_of.get(owner, len(_MODULES))
            if needed_from <= self.last:
                yield spec


def choose_features(out_indices: Sequence[int] | None) -> tuple[int, ...]:
    """Return the requested feature maps as 0 to 4. Negative ones count from the end; None means all.

    Raises:
        UsageError: the list is empty, or has a duplicate or an index that does not exist.
    """
    count = len(_MODULES)
    chosen = range(count) if out_indices is None else out_indices
    valid = isinstance(chosen, Sequence) and all(type(index) is int and -count <= index < count for index in chosen)
    indices = tuple(index % count for index in chosen) if valid else ()
    if not indices or len(set(indices)) < len(indices):
        raise UsageError(
            f"out_indices must be different numbers from 0 to {count - 1}, or -{count} to -1 from the end, "
            f"received {out_indices!r}; (1, 2, 3, 4) are the four stages"
        )
    return indices


def _levels(config: ArchConfig) -> list[tuple[int, int]]:
    """Return channels and stride of every feature map."""
    before, _ = config.split_stem()
    stride = math.prod(conv.stride for conv in before)
    levels = [(before[-1].out_channels, stride)]
    # The stride of the last convolution or the max pool.
    stride *= 2
    for stage in range(1, len(_MODULES)):
        blocks = [block for block in config.iter_blocks() if block.stage == stage]
        stride *= math.prod(block.stride for block in blocks)
        levels.append((blocks[-1].out_channels, stride))
    return levels
