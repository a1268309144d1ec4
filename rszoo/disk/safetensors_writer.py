"""A safetensors file laid out beforehand and filled tensor by tensor: bounded memory, the same bytes everywhere.

The safetensors package writes only what is in memory as a whole, and orders metadata differently from run to run. Its
reader checks what is written here. Format: huggingface/safetensors README, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rszoo.disk.checksums import CHECKSUMS, DIGEST, blank, checksum, digest, pack

_LENGTH_BYTES = 8
_ALIGNMENT = 8
_ITEM_BYTES = 4
_COUNTER = np.zeros(1, "<i8")


class SafetensorsWriter:
    """Creates the file with its header; `write` fills in tensors, from several threads if need be; then `seal` it.

    `shapes`: name and shape of each float32 tensor, in the order in which they lie in the file. `counters`: names of
    scalars of 8 bytes, int64, all 0. They lie before the others, where they are aligned.
    """

    def __init__(
        self,
        path: Path,
        shapes: Sequence[tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
        counters: Sequence[str] = (),
    ) -> None:
        self._path = path
        self._shapes = dict(shapes)
        self._counters = list(counters)
        self._offsets: dict[str, int] = {}
        self._checksums: dict[str, str] = {}
        # As long as what `seal` puts there.
        self._metadata = {**metadata, CHECKSUMS: blank(len(counters) + len(shapes)), DIGEST: digest({})}
        encoded, size = self._lay_out()
        self._data_start = _LENGTH_BYTES + len(encoded)
        with path.open("wb") as out:
            out.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
            out.truncate(self._data_start + size)

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
                ordered = np.ascontiguousarray(values, "<f4")
                self._checksums[name] = checksum(ordered)
                out.seek(self._data_start + self._offsets[name])
                out.write(ordered.data)

    def seal(self) -> dict[str, str]:
        """Write the checksums, and the digest of all but the counters, into the header; return the file's metadata."""
        self._metadata[DIGEST] = digest(self._checksums)
        ordered = [checksum(_COUNTER)] * len(self._counters) + [self._checksums[name] for name in self._shapes]
        self._metadata[CHECKSUMS] = pack(self._lay_out()[0], ordered)
        with self._path.open("r+b", buffering=0) as out:
            out.seek(_LENGTH_BYTES)
            out.write(self._lay_out()[0])
        return self._metadata

    def _lay_out(self) -> tuple[bytes, int]:
        """Return the header's text and the size of all values in bytes."""
        header: dict[str, object] = {"__metadata__": dict(sorted(self._metadata.items()))}
        offset = 0
        for name in self._counters:
            header[name] = {"dtype": "I64", "shape": [], "data_offsets": [offset, offset + _COUNTER.nbytes]}
            offset += _COUNTER.nbytes
        for name, shape in self._shapes.items():
            end = offset + math.prod(shape) * _ITEM_BYTES
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
            self._offsets[name], offset = offset, end
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        return encoded + b" " * (-len(encoded) % _ALIGNMENT), offset
