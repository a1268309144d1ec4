"""Where the wanted set lies in a published data shard, told before its index arrives.

A published shard holds three sets of weights, of which one is wanted, and precedes its index in the archive.
TensorFlow's Saver writes variables sorted by name with nothing between, so the size of a shard tells which registered
network it is, and with it every offset: two thirds need not be spooled. The index confirms or refutes the guess later.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from converters.account import EMA_SUFFIX, GLOBAL_STEP, MOMENTUM_SUFFIX
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import tf1_names
from rszoo.arch.walk import iter_tensors
from rszoo.folder.model_folder import WeightSet
from rszoo.registry.manifest import get_entry, list_models

#: Byte ranges (start, end), ascending.
Ranges = tuple[tuple[int, int], ...]

_ITEM_BYTES = 4
_STEP_BYTES = 8


def expected_ranges(size: int, weights: WeightSet) -> Ranges | None:
    """Return where a set's tensors and the step counter lie in a shard of `size` bytes, or None if no network fits."""
    arches = {replace(get_entry(name).arch, dropout_rate=0.0, drop_connect_rate=0.0) for name in list_models()}
    for arch in arches:
        ranges, end = _ranges(arch, weights)
        if end == size:
            return ranges
    return None


# Once for each network: a hostile archive may have a thousand shards.
@functools.cache
def _ranges(arch: ArchConfig, weights: WeightSet) -> tuple[Ranges, int]:
    """Return the wanted ranges of a training checkpoint of this network, and the size of all of it."""
    sizes = {GLOBAL_STEP: _STEP_BYTES}
    wanted = {GLOBAL_STEP}
    specs = list(iter_tensors(arch))
    for spec, name in zip(specs, tf1_names(specs), strict=True):
        sizes[name] = sizes[name + EMA_SUFFIX] = spec.size * _ITEM_BYTES
        if spec.kind.trainable:
            sizes[name + MOMENTUM_SUFFIX] = spec.size * _ITEM_BYTES
        wanted.add(name + EMA_SUFFIX if weights == "ema" else name)
    ranges, offset = [], 0
    for name in sorted(sizes, key=lambda name: name.encode("utf-8")):
        if name in wanted:
            ranges.append((offset, offset + sizes[name]))
        offset += sizes[name]
    return tuple(ranges), offset
