"""Tensors of an HDF5 file, whose structure is read in a process of its own, and whose values are read here.

The HDF5 library is written for files that one trusts: a few changed bytes can end its process. See
`converters/keras2/scan.py`, which says what is refused.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from rszoo.errors import CheckpointError
from rszoo.extras import check_installed

#: How such a file begins.
MAGIC = b"\x89HDF\r\n\x1a\n"
_SCAN = Path(__file__).with_name("scan.py")
# A 420 takes a second.
_TIMEOUT = 300


@dataclass(frozen=True)
class StoredTensor:
    """A dataset: the name of its dtype, its shape, how its numbers are stored, and where; None if it has none."""

    dtype: str
    shape: tuple[int, ...]
    stored: np.dtype
    offset: int | None


class Hdf5File:
    """An HDF5 file: `tensors` by their paths, `a/b`, and Keras's `config`, a text, if it has one. Closes `opened`."""

    def __init__(self, opened: IO[bytes], place: str) -> None:
        """Read the structure of an open file, which `place` names in errors.

        Raises:
            MissingPackageError: h5py is not installed. CheckpointError: the file is damaged, or refused.
        """
        self._opened, self._place = opened, place
        found = _scan(opened, place)
        self.config: str | None = found["config"]
        self.tensors = {path: _stored(*rest) for path, *rest in found["tensors"]}

    def read(self, stored: StoredTensor) -> np.ndarray:
        """Return a tensor's values. Raises CheckpointError if they are no numbers, or not all there."""
        size = math.prod(stored.shape) * stored.stored.itemsize
        if stored.offset is None:
            raise CheckpointError(f"{self._place} has {stored.dtype} where there must be numbers")
        content = os.pread(self._opened.fileno(), size, stored.offset)
        if len(content) != size:
            raise CheckpointError(f"{self._place} is damaged: it ends before its tensors do")
        values = np.frombuffer(content, stored.stored).reshape(stored.shape)
        return values.astype(stored.stored.newbyteorder("="), copy=False)

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stored(dtype: str, shape: list[int], offset: int | None) -> StoredTensor:
    stored = np.dtype(dtype)
    return StoredTensor(stored.name, tuple(shape), stored, offset)


def _scan(opened: IO[bytes], place: str) -> dict[str, Any]:
    check_installed("reading HDF5", "h5py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(_SCAN)]
    opened.seek(0)
    try:
        done = subprocess.run(  # noqa: S603
            command, stdin=opened, env=environment, capture_output=True, check=False, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{place} is damaged: its structure was not read within {_TIMEOUT} s") from error
    if done.returncode < 0:
        raise CheckpointError(f"{place} is damaged: reading it ended the HDF5 library, by signal {-done.returncode}")
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise CheckpointError(f"{place} cannot be read: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    if "refused" in found:
        raise CheckpointError(f"{place} is refused: {found['refused']}")
    if "damaged" in found:
        raise CheckpointError(f"{place} is damaged, or no HDF5 file that is read: {found['damaged']}")
    return found
