"""A safetensors file written tensor by tensor, in bounded memory and with the same bytes everywhere.

The safetensors package writes only what is in memory as a whole, writes a transposed view's bytes in the wrong order
without an error, and orders metadata differently from run to run. Its reader checks what is written here.
Format: huggingface/safetensors README, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import numpy as np

_ALIGNMENT = 8


def write_safetensors(
    out: BinaryIO,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    values: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write float32 tensors of the given names and shapes, whose `values` come in the same order, one at a time.

    Raises:
        ValueError: a value has another shape or dtype than was announced, or there are too few or too many.
    """
    out.write(_header(shapes, metadata))
    for (name, shape), array in zip(shapes, values, strict=True):
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"{name} was announced as float32 {shape} and came as {array.dtype} {array.shape}")
        out.write(np.ascontiguousarray(array, "<f4").data)


def _header(shapes: Sequence[tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, shape in shapes:
        size = int(np.prod(shape, dtype=np.int64)) * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    return len(encoded).to_bytes(8, "little") + encoded
