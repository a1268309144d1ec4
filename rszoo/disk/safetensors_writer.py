"""A safetensors file laid out beforehand and filled tensor by tensor: bounded memory, the same bytes everywhere.

The safetensors package writes only what is in memory as a whole, writes a transposed view's bytes in the wrong order
without an error, and orders metadata differently from run to run. Its reader checks what is written here.
Format: huggingface/safetensors README, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

_ALIGNMENT = 8
_ITEM_BYTES = 4


class SafetensorsWriter:
    """Creates the file with its header; `write` fills in tensors, from several threads if need be.

    `shapes`: name and shape of each float32 tensor, in the order in which they lie in the file.
    """

    def __init__(self, path: Path, shapes: Sequence[tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> None:
        self._path = path
        self._shapes = dict(shapes)
        self._offsets: dict[str, int] = {}
        offset = 0
        header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
        for name, shape in shapes:
            end = offset + math.prod(shape) * _ITEM_BYTES
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
            self._offsets[name], offset = offset, end
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        encoded += b" " * (-len(encoded) % _ALIGNMENT)
        self._data_start = 8 + len(encoded)
        with path.open("wb") as out:
            out.write(len(encoded).to_bytes(8, "little") + encoded)
            out.truncate(self._data_start + offset)

    def write(self, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
        """Write tensors at their places, in C order whatever their strides.

        Raises:
            ValueError: a tensor has another shape or dtype than was announced.
        """
        with self._path.open("r+b", buffering=0) as out:
            for name, values in tensors:
                if values.shape != self._shapes[name] or values.dtype != np.float32:
                    announced = f"float32 {self._shapes[name]}"
                    raise ValueError(f"{name} was announced as {announced} and came as {values.dtype} {values.shape}")
                out.seek(self._data_start + self._offsets[name])
                out.write(np.ascontiguousarray(values, "<f4").data)
