"""Where tensors lie in a data shard that TensorFlow's Saver wrote: sorted by name, with nothing between them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

#: Byte ranges (start, end), ascending.
Ranges = tuple[tuple[int, int], ...]


def packed_ranges(sizes: Mapping[str, int], wanted: Collection[str]) -> tuple[Ranges, int]:
    """Return where the wanted tensors lie in a shard that holds tensors of these sizes in bytes, and its own size."""
    ranges, offset = [], 0
    for name in sorted(sizes, key=lambda name: name.encode("utf-8")):
        if name in wanted:
            ranges.append((offset, offset + sizes[name]))
        offset += sizes[name]
    return tuple(ranges), offset
