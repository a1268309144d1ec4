"""Where the wanted set lies in a data shard of known size, before its index arrives.

A published shard holds several sets of weights, of which one is wanted, and precedes its index in the archive. Where a
format can say from a shard's size what it holds, the rest need not be spooled. The index confirms or refutes it later.
"""

from __future__ import annotations

from converters.formats import list_formats
from converters.tensorbundle.layout import Ranges
from rszoo.folder.model_folder import WeightSet


def expected_ranges(size: int, weights: WeightSet) -> Ranges | None:
    """Return where a set's tensors and the step counter lie in a shard of `size` bytes, or None if no format knows."""
    for known in list_formats():
        if known.shard_ranges is not None and (ranges := known.shard_ranges(size, weights)):
            return ranges
    return None
